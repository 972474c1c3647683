//! The CustomResourceDefinition, made from the types and what is said of them, and a test that `manifests/webhook/burst-profile.yaml` is that.

use std::path::Path;

use schemars::{JsonSchema as _, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Value, json};

use super::BurstProfile;
use crate::policy::Policy;

/// Writes the file in place of comparing it.
const WRITE: &str = "KVMLET_WRITE_CRD";
/// The prefix of names (`k8s.io/apimachinery/pkg/util/validation`, IsQualifiedName) and their last part.
const NAME: &str = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";

fn rule(rule: impl Into<String>, message: &str) -> Value {
    json!({"rule": rule.into(), "message": message})
}

pub(super) fn policy(_: &mut SchemaGenerator) -> Schema {
    let all = [Policy::VirtualNodeOnly, Policy::NormalNodePrefer, Policy::Fair];
    json_schema!({"type": "string", "enum": all.map(|one| one.to_string())})
}

/// A LabelSelector of meta/v1.
pub(super) fn selector(_: &mut SchemaGenerator) -> Schema {
    let values = rule(
        "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0",
        "In and NotIn need values, Exists and DoesNotExist take none",
    );
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "type": "object", "maxProperties": 32, "additionalProperties": {"type": "string", "maxLength": 63},
                "description": "Labels with these values.",
            },
            "matchExpressions": {
                "type": "array", "maxItems": 32, "x-kubernetes-list-type": "atomic",
                "description": "Requirements of labels, all of which hold.",
                "items": {
                    "type": "object", "required": ["key", "operator"], "x-kubernetes-validations": [values],
                    "properties": {
                        "key": {"type": "string", "minLength": 1, "maxLength": 317, "description": "The label's name."},
                        "operator": {
                            "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "How its value is to be: one of values, none of values or missing, there, missing.",
                        },
                        "values": {
                            "type": "array", "maxItems": 64, "x-kubernetes-list-type": "atomic",
                            "items": {"type": "string", "maxLength": 63}, "description": "Values, for In and NotIn.",
                        },
                    },
                },
            },
        },
    })
}

/// Names that pods may be given, and values of at most so many bytes.
fn names(what: &str, value: Value) -> Schema {
    let each = |condition: &str| format!("self.all(name, {condition})");
    let rules = [
        rule(
            each(&format!("name.matches('{NAME}')")),
            &format!("a name is none that {what} can have"),
        ),
        rule(
            each("name.size() <= 317 && name.substring(name.lastIndexOf('/') + 1).size() <= 63"),
            &format!("a name of {what} is too long: at most 253 characters before the slash and 63 after it"),
        ),
        rule(
            each("!name.startsWith('kvmlet.io/')"),
            &format!("{what} of kvmlet.io are the webhook's own"),
        ),
    ];
    json_schema!({"type": "object", "minProperties": 1, "maxProperties": 32, "additionalProperties": value, "x-kubernetes-validations": rules})
}

pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    names("annotations", json!({"type": "string", "maxLength": 4096}))
}

pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    let pattern = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
    names("labels", json!({"type": "string", "maxLength": 63, "pattern": pattern}))
}

pub(super) fn effect_rules(schema: &mut Schema) {
    let fields = ["policy", "annotations", "labels", "runtimeClassName", "max"];
    let any = fields.map(|field| format!("has(self.{field})")).join(" || ");
    let rules = json!([
        rule(
            any,
            "the effect is empty: set one of policy, annotations, labels, runtimeClassName and max"
        ),
        rule(
            "!has(self.max) || !has(self.policy) || self.policy != 'fair'",
            "max and policy fair exclude each other: pods wait for one of max places, and fair pods do not wait",
        ),
        rule(
            "!has(self.max) || !has(self.runtimeClassName)",
            "max and runtimeClassName exclude each other: a RuntimeClass may let pods onto virtual nodes past max",
        ),
    ]);
    schema.insert("x-kubernetes-validations".into(), rules);
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

fn schema() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<BurstProfile>().to_value();
    structural(&mut schema);
    // Nobody writes the status by hand, so nobody is told what it must have.
    schema["properties"]["status"].as_object_mut().unwrap().remove("required");
    // The API server itself says what an object's metadata is, and wants no word here.
    schema["properties"]["metadata"] = json!({"type": "object"});
    for (field, what) in [("apiVersion", "kvmlet.io/v1alpha1."), ("kind", "BurstProfile.")] {
        schema["properties"][field] = json!({"type": "string", "description": what});
    }
    schema["required"] = json!(["spec"]);
    schema["x-kubernetes-validations"] = json!([rule(
        "self.metadata.name.size() <= 63",
        "the name is the value of a label of pods, so it has at most 63 characters"
    )]);
    schema
}

fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let columns = [
        column("Priority", "integer", ".spec.priority"),
        column("Policy", "string", ".spec.effect.policy"),
        column("Max", "integer", ".spec.effect.max"),
        column("Pods", "integer", ".status.pods"),
        column("Virtual", "integer", ".status.onVirtualNodes"),
        column("Waiting", "integer", ".status.waiting"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ];
    let version = json!({
        "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
        "additionalPrinterColumns": columns, "schema": {"openAPIV3Schema": schema()},
    });
    let names = json!({"kind": "BurstProfile", "listKind": "BurstProfileList", "plural": "burstprofiles", "singular": "burstprofile"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "burstprofiles.kvmlet.io"},
        "spec": {"group": "kvmlet.io", "scope": "Cluster", "names": names, "versions": [version]},
    })
}

#[test]
fn the_definition_that_is_installed_is_what_the_types_say() {
    assert_eq!(BurstProfile::schema_name(), "BurstProfile");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/webhook/burst-profile.yaml");
    let made = definition();
    if std::env::var_os(WRITE).is_some() {
        let head = format!(
            "# Made from provider/admission/src/profile/types.rs: `{WRITE}=1 cargo test --release -p kvmlet-admission --lib crd`.\n"
        );
        std::fs::write(&file, head + &serde_saphyr::to_string(&made).unwrap()).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let installed: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(installed, made, "{WRITE}=1 writes it anew");
}

#[test]
fn every_field_is_explained() {
    fn check(path: &str, schema: &Value) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(path == ".metadata" || field["description"].is_string(), "{path}");
            check(&path, field);
            check(&path, &field["items"]);
        }
    }
    check("", &schema());
}
