//! The CustomResourceDefinitions, made from the types and what is said of them, and tests that the files of `manifests/webhook` are that.

use schemars::{JsonSchema as _, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{ImageFormat, KvmletRuntime, NAME, PreflightCheck, Reason};
use crate::definition::{self, column, rule};

pub(super) fn stays(schema: &mut Schema) {
    let stays = rule(
        "self == oldSelf",
        "what is asked of a node stays as it is: create another PreflightCheck",
    );
    schema.insert("x-kubernetes-validations".into(), json!([stays]));
}

/// The rules of `CertConfig::check`, in CEL: each that is broken is told.
pub(super) fn cert_config(_: &mut SchemaGenerator) -> Schema {
    let time = |what: &str| json!({"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2, "maxLength": 16, "description": what});
    let span = |what: &str| {
        let properties = json!({
            "duration": time("How long it lives: 48h, 24h0m0s. At least 10m."),
            "renewBefore": time("How long before its end it is renewed. At least 10m, and less than duration."),
        });
        json!({"type": "object", "description": what, "required": ["duration", "renewBefore"], "properties": properties})
    };
    let mut rules = Vec::new();
    for name in ["ca", "server"] {
        for field in ["duration", "renewBefore"] {
            let least = format!("duration(self.{name}.{field}) >= duration('10m')");
            rules.push(rule(least, &format!("{name}.{field} must be at least 10m")));
        }
        rules.push(rule(
            format!("duration(self.{name}.duration) > duration(self.{name}.renewBefore)"),
            &format!("{name}.duration is smaller than {name}.renewBefore, or the same"),
        ));
    }
    rules.push(rule(
        "duration(self.ca.duration) >= duration(self.server.duration)",
        "ca.duration is smaller than server.duration",
    ));
    json_schema!({
        "type": "object", "required": ["ca", "server"], "x-kubernetes-validations": rules,
        "properties": {"ca": span("Of the authority."), "server": span("Of the serving certificate.")},
    })
}

pub(super) fn image_format(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": [ImageFormat::Raw, ImageFormat::Qcow2]})
}

pub(super) fn reason(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": Reason::ALL})
}

pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

fn runtime() -> Value {
    let message = format!("there is one KvmletRuntime, and its name is {NAME}");
    definition::schema::<KvmletRuntime>(&[rule(format!("self.metadata.name == '{NAME}'"), &message)])
}

#[test]
fn the_definition_of_runtimes_that_is_installed_is_what_the_types_say() {
    assert_eq!(KvmletRuntime::schema_name(), "KvmletRuntime");
    let columns = [
        column("Enabled", "boolean", ".spec.enabled"),
        column("Ready", "boolean", ".status.ready"),
        column("Nodes", "integer", ".status.preflightCheckSummary.nodes"),
        column("Passed", "integer", ".status.preflightCheckSummary.passed"),
        column("Age", "date", ".metadata.creationTimestamp"),
        json!({"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1}),
    ];
    let made = definition::definition::<KvmletRuntime>(&columns, &[], &runtime());
    definition::is_installed("runtime.yaml", "runtime/types.rs", &made);
}

#[test]
fn the_definition_of_checks_that_is_installed_is_what_the_types_say() {
    assert_eq!(PreflightCheck::schema_name(), "PreflightCheck");
    let columns = [
        column("Node", "string", ".spec.nodeName"),
        column("Reason", "string", ".spec.reason"),
        column("Pass", "boolean", ".status.passed"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ];
    let schema = definition::schema::<PreflightCheck>(&[]);
    let made = definition::definition::<PreflightCheck>(&columns, &[".spec.nodeName"], &schema);
    definition::is_installed("preflight-check.yaml", "runtime/types.rs", &made);
}

#[test]
fn every_field_of_both_is_explained() {
    definition::is_explained("", &runtime());
    definition::is_explained("", &definition::schema::<PreflightCheck>(&[]));
}
