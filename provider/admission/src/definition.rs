//! CustomResourceDefinitions, made from types and what is said of them, and the comparison with the files that are installed.

use std::path::Path;

use kube::Resource;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::kinds::{GROUP, VERSION};

/// Writes the files in place of comparing them.
const WRITE: &str = "KVMLET_WRITE_CRD";

/// A rule in CEL, and what the API server says of an object that breaks it.
pub(crate) fn rule(rule: impl Into<String>, message: &str) -> Value {
    json!({"rule": rule.into(), "message": message})
}

/// A column of what `kubectl get` prints.
pub(crate) fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path})
}

/// What of JSON Schema Kubernetes does not know, or says otherwise (structural schemas of apiextensions/v1).
fn structural(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(structural),
        Value::Object(map) => {
            for unknown in ["$schema", "title", "nullable"] {
                if map.get(unknown).is_some_and(|value| !value.is_object()) {
                    map.remove(unknown);
                }
            }
            if map
                .get("default")
                .is_some_and(|value| value.is_null() || *value == json!({}) || *value == json!([]))
            {
                map.remove("default");
            }
            if let Some(Value::Array(types)) = map.get("type") {
                let one = types.iter().find(|one| *one != "null").cloned();
                map.insert("type".into(), one.unwrap_or_default());
            }
            if map.get("format").is_some_and(|format| format == "uint32") {
                map.insert("format".into(), "int32".into());
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            map.values_mut().for_each(structural);
        }
        _ => {}
    }
}

/// The schema of a kind, with rules about the whole object.
pub(crate) fn schema<K: JsonSchema + Resource<DynamicType = ()>>(rules: &[Value]) -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<K>().to_value();
    structural(&mut schema);
    // Nobody writes the status by hand, so nobody is told what it must have.
    schema["properties"]["status"].as_object_mut().unwrap().remove("required");
    // The API server itself says what an object's metadata is, and wants no word here.
    schema["properties"]["metadata"] = json!({"type": "object"});
    for (field, what) in [
        ("apiVersion", format!("{GROUP}/{VERSION}.")),
        ("kind", format!("{}.", K::kind(&()))),
    ] {
        schema["properties"][field] = json!({"type": "string", "description": what});
    }
    schema["required"] = json!(["spec"]);
    if !rules.is_empty() {
        schema["x-kubernetes-validations"] = rules.into();
    }
    schema
}

/// The definition of a kind; `selectable` are the fields by which objects can be listed and watched, besides their names.
pub(crate) fn definition<K: Resource<DynamicType = ()>>(columns: &[Value], selectable: &[&str], schema: &Value) -> Value {
    let mut version = json!({
        "name": VERSION, "served": true, "storage": true, "subresources": {"status": {}},
        "additionalPrinterColumns": columns, "schema": {"openAPIV3Schema": schema},
    });
    if !selectable.is_empty() {
        version["selectableFields"] = selectable.iter().map(|path| json!({"jsonPath": path})).collect();
    }
    let (kind, plural) = (K::kind(&()), K::plural(&()));
    let names = json!({"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {"group": GROUP, "scope": "Cluster", "names": names, "versions": [version]},
    })
}

/// Panics unless the file of `manifests/webhook` is this definition, which is made from `types`.
pub(crate) fn is_installed(file: &str, types: &str, made: &Value) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/webhook").join(file);
    if std::env::var_os(WRITE).is_some() {
        let head = format!("# Made from provider/admission/src/{types}: `{WRITE}=1 cargo test --release -p kvmlet-admission --lib crd`.\n");
        std::fs::write(&file, head + &serde_saphyr::to_string(made).unwrap()).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let installed: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(installed, *made, "{WRITE}=1 writes it anew");
}

/// Panics unless each field has a word for `kubectl explain`.
pub(crate) fn is_explained(path: &str, schema: &Value) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        assert!(path == ".metadata" || field["description"].is_string(), "{path}");
        is_explained(&path, field);
        is_explained(&path, &field["items"]);
    }
}
