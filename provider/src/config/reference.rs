//! The table of keys in docs/configuration.md, made from the types: keys and meanings are the fields' own, defaults what a configuration that is
//! silent has. What a default is in words stands beside its field (`x-default`), as does what stands for any key of a map (`x-key`).

use std::{fmt, path::Path};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Visitor, value::Error},
};
use serde_json::Value;

use super::{
    AllowedPath, Config, Guest, HostPath, ImageGc, Images, Io, Logs, MachineUids, Machines, Network, PodDefaults, Registry, Reservation,
    Reserved, SharedHost, SharingPolicy, ShutdownGracePeriod, Span, Tls, Tracing, Volumes,
};
use crate::quantity::Quantity;

/// Writes the table in place of comparing it.
const WRITE: &str = "KVMLET_WRITE_REFERENCE";
/// What stands before the table, with the command that makes it anew.
const BEGIN: &str =
    "<!-- keys: made from provider/src/config.rs by KVMLET_WRITE_REFERENCE=1 cargo test --release -p kvmlet-provider --lib reference -->\n";
/// And behind it.
const END: &str = "<!-- end of keys -->\n";

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_nanos() != 0 {
            return Err(serde::ser::Error::custom("no default has parts of a second"));
        }
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// Takes the names of a type's fields, in their order, and nothing else.
struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(serde::de::Error::custom("only its fields were asked for"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("no struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: for<'de> Deserialize<'de> + fmt::Debug>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    T::deserialize(Fields(&mut fields)).unwrap_err();
    fields
}

/// Fields of all types of the configuration that have some, in their order: a schema has lost it.
fn orders() -> [&'static [&'static str]; 21] {
    [
        fields::<Config>(),
        fields::<Tls>(),
        fields::<SharedHost>(),
        fields::<Reservation>(),
        fields::<Guest>(),
        fields::<Reserved>(),
        fields::<PodDefaults>(),
        fields::<MachineUids>(),
        fields::<Machines>(),
        fields::<Io>(),
        fields::<SharingPolicy>(),
        fields::<Logs>(),
        fields::<Volumes>(),
        fields::<HostPath>(),
        fields::<AllowedPath>(),
        fields::<Images>(),
        fields::<ImageGc>(),
        fields::<ShutdownGracePeriod>(),
        fields::<Registry>(),
        fields::<Network>(),
        fields::<Tracing>(),
    ]
}

/// The keys of an object of the schema, as they stand in its type.
fn in_order(object: &Value) -> Vec<(&'static str, &Value)> {
    let Some(properties) = object["properties"].as_object() else {
        return Vec::new();
    };
    let same = |order: &&&[&str]| order.len() == properties.len() && order.iter().all(|name| properties.contains_key(*name));
    let orders = orders();
    let mut found = orders.iter().filter(same);
    let order = found
        .next()
        .unwrap_or_else(|| panic!("no type is known with {:?}", properties.keys()));
    assert!(
        found.all(|other| other == order),
        "types with {order:?} have them in the same order"
    );
    order.iter().map(|name| (*name, &properties[*name])).collect()
}

/// A default as it stands in the table.
fn default(field: &Value, is_required: bool) -> String {
    if let Some(words) = field["x-default"].as_str() {
        return words.into();
    }
    if is_required {
        return "required".into();
    }
    match &field["default"] {
        Value::String(text) if text.is_empty() => "empty".into(),
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.clone(),
        Value::String(text) => format!("`{text}`"),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(number) => number.to_string(),
        _ => "none".into(),
    }
}

/// Rows for the keys of an object; `before` is what stands before each.
fn rows(object: &Value, before: &str, table: &mut String) {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in in_order(object) {
        let key = format!("{before}{name}");
        let is_required = required.iter().any(|one| one == name);
        if field["properties"].is_object() {
            rows(field, &format!("{key}."), table);
            continue;
        }
        let meaning = field["description"].as_str().unwrap_or_else(|| panic!("{key} has no meaning"));
        let meaning = meaning.replace('\n', " ").replace('|', "\\|");
        table.push_str(&format!("| `{key}` | {} | {meaning} |\n", default(field, is_required)));
        rows(&field["items"], &format!("{key}[]."), table);
        let any = field["x-key"].as_str().unwrap_or("<name>");
        rows(&field["additionalProperties"], &format!("{key}.{any}."), table);
    }
}

#[test]
fn the_reference_of_the_configuration_is_what_its_types_say() {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    let mut table = "| key | default | meaning |\n| --- | --- | --- |\n".to_owned();
    rows(&schema, "", &mut table);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once("<!-- keys: ").expect("a mark before the table");
    let (_, after) = rest.split_once(END).expect("a mark behind the table");
    let made = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    assert!(
        std::fs::read_to_string(&file).unwrap() == made,
        "{WRITE}=1 writes it anew:\n{table}"
    );
}
