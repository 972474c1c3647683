//! The reference of the objects of kvmlet.io, `docs/objects.md`: its tables are what the installed definitions say, which are what the types say.

use std::{env, fs, path::Path};

use serde_json::Value;

use crate::CertConfig;

/// Writes the tables in place of comparing them.
const WRITE: &str = "KVMLET_WRITE_REFERENCE";
/// Behind each table.
const END: &str = "<!-- end of fields -->";
/// What has a table, and the definition that it is made from.
const KINDS: [(&str, &str); 3] = [
    ("BurstProfile", "burst-profile.yaml"),
    ("KvmletRuntime", "runtime.yaml"),
    ("PreflightCheck", "preflight-check.yaml"),
];

fn schema(file: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/webhook").join(file);
    let definition: Value = serde_saphyr::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Its type, as a reader says it: what it may be one of, or whose list or map it is.
fn kind(field: &Value) -> String {
    if let Some(all) = field["enum"].as_array() {
        let all: Vec<_> = all.iter().filter_map(Value::as_str).map(|one| format!("`{one}`")).collect();
        return all.join(", ");
    }
    let name = field["type"].as_str().expect("a field has a type");
    match name {
        "array" => format!("list of {}", field["items"]["type"].as_str().expect("items have a type")),
        "object" if field["additionalProperties"].is_object() => "map".into(),
        "string" if field["format"] == "date-time" => "time".into(),
        _ => name.into(),
    }
}

fn default(field: &Value, is_required: bool) -> String {
    match &field["default"] {
        _ if is_required => "required".into(),
        Value::String(text) if !text.is_empty() => format!("`{text}`"),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(number) => number.to_string(),
        _ => "none".into(),
    }
}

/// Rows for the fields of an object, and what its rules say; `before` is what stands before each name. Of a status there are no defaults: nobody writes it by hand.
fn rows(object: &Value, before: &str, table: &mut String, rules: &mut Vec<String>) {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    for rule in object["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let place = before.trim_end_matches('.');
        rules.push(format!(
            "- `{place}`: {}.",
            rule["message"].as_str().expect("a rule says what it wants")
        ));
    }
    for (name, field) in object["properties"].as_object().into_iter().flatten() {
        let path = format!("{before}{name}");
        if ["apiVersion", "kind", "metadata"].contains(&path.as_str()) {
            continue;
        }
        let default = if path.starts_with("status") {
            String::new()
        } else {
            default(field, required.iter().any(|one| one == name))
        };
        let meaning = field["description"].as_str().unwrap_or_else(|| panic!("{path} has no meaning"));
        let meaning = meaning.trim().replace('\n', " ").replace('|', "\\|");
        table.push_str(&format!("| `{path}` | {} | {default} | {meaning} |\n", kind(field)));
        rows(field, &format!("{path}."), table, rules);
        rows(&field["items"], &format!("{path}[]."), table, rules);
    }
}

fn of_kind(file: &str) -> String {
    let schema = schema(file);
    let (mut table, mut rules) = (String::new(), Vec::new());
    rows(&schema, "", &mut table, &mut rules);
    let what = schema["description"]
        .as_str()
        .expect("a kind is explained")
        .trim()
        .replace('\n', " ");
    let rules = if rules.is_empty() {
        String::new()
    } else {
        let rules: Vec<_> = rules.iter().map(|rule| rule.replace("``", "the object")).collect();
        format!(
            "\nWhat breaks a rule is refused by the API server, in these words:\n\n{}\n",
            rules.join("\n")
        )
    };
    format!("{what}\n\n| field | type | default | meaning |\n| --- | --- | --- | --- |\n{table}{rules}")
}

/// The webhook's file has the same certificates as the KvmletRuntime, and defaults.
fn of_file() -> String {
    let schema = schema("runtime.yaml");
    let fields = &schema["properties"]["spec"]["properties"]["certConfig"]["properties"];
    let defaults = CertConfig::default();
    let mut table = "| field | default | meaning |\n| --- | --- | --- |\n".to_owned();
    for (part, span) in [("ca", defaults.ca), ("server", defaults.server)] {
        let whose = fields[part]["description"].as_str().expect("it is explained");
        for (name, value) in [("duration", span.duration), ("renewBefore", span.renew_before)] {
            let meaning = fields[part]["properties"][name]["description"].as_str().expect("it is explained");
            table.push_str(&format!("| `certConfig.{part}.{name}` | `{value:#}` | {whose} {meaning} |\n"));
        }
    }
    table
}

#[test]
fn the_reference_of_objects_is_what_their_definitions_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/objects.md");
    let text = fs::read_to_string(&file).unwrap();
    let tables = KINDS.map(|(kind, file)| (kind, of_kind(file)));
    let tables = tables.into_iter().chain([("KvmletWebhookConfiguration", of_file())]);
    let made = tables.fold(text, |text, (kind, table)| {
        let begin = format!("<!-- fields of {kind}: made by {WRITE}=1 cargo test --release -p kvmlet-admission --lib reference -->");
        let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{begin} is not there"));
        let (_, after) = rest.split_once(END).expect("a mark behind the table");
        format!("{before}{begin}\n\n{table}\n{END}{after}")
    });
    if env::var_os(WRITE).is_some() {
        fs::write(&file, &made).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap() == made, "{WRITE}=1 writes it anew:\n{made}");
}
