//! The CustomResourceDefinition, made from the types and what is said of them, and a test that `manifests/webhook/burst-profile.yaml` is that.

use schemars::{JsonSchema as _, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::BurstProfile;
use crate::{
    definition::{self, column, rule},
    policy::Policy,
};

/// The prefix of names (`k8s.io/apimachinery/pkg/util/validation`, IsQualifiedName) and their last part.
const NAME: &str = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";

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

fn schema() -> Value {
    definition::schema::<BurstProfile>(&[rule(
        "self.metadata.name.size() <= 63",
        "the name is the value of a label of pods, so it has at most 63 characters",
    )])
}

#[test]
fn the_definition_that_is_installed_is_what_the_types_say() {
    assert_eq!(BurstProfile::schema_name(), "BurstProfile");
    let columns = [
        column("Priority", "integer", ".spec.priority"),
        column("Policy", "string", ".spec.effect.policy"),
        column("Max", "integer", ".spec.effect.max"),
        column("Pods", "integer", ".status.pods"),
        column("Virtual", "integer", ".status.onVirtualNodes"),
        column("Waiting", "integer", ".status.waiting"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ];
    let made = definition::definition::<BurstProfile>(&columns, &[], &schema());
    definition::is_installed("burst-profile.yaml", "profile/types.rs", &made);
}

#[test]
fn every_field_is_explained() {
    definition::is_explained("", &schema());
}
