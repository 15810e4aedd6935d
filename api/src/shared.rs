//! Parts that several kinds have: references, selectors, conditions.

use crate::schema;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// The Secret's name; it stands in the same namespace.
    #[schemars(schema_with = "schema::secret_name")]
    pub name: String,
    /// The key in the Secret, like `api-key`.
    #[schemars(schema_with = "schema::secret_key")]
    pub key: String,
}

/// Selects by labels: all that is given must hold; `{}` selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must have exactly these values, like `{team: search}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::labels")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Requirements on labels, like `{key: team, operator: In, values: [search, ads]}`; all must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Option<Vec<LabelRequirement>>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.values) == (self.operator in ['In', 'NotIn'])")
    .message("give values with In and NotIn, and none with Exists and DoesNotExist")
    .field_path(".values"))]
pub struct LabelRequirement {
    /// The label, like `team` or `example.com/team`.
    #[schemars(schema_with = "schema::label_key")]
    pub key: String,
    /// In: the label has one of the values. NotIn: it has none of them, or is absent. Exists: it is there,
    /// whatever its value. DoesNotExist: it is absent.
    pub operator: LabelOperator,
    /// 1 to 64 values, for In and NotIn only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_values")]
    pub values: Option<Vec<String>>,
}

/// How a label relates to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// Its value is one of them.
    In,
    /// Its value is none of them, or it is absent.
    NotIn,
    /// It is present.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether `labels` are selected.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let equal = self.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
        let meets = |requirement: &LabelRequirement| {
            let value = labels.get(&requirement.key);
            let listed =
                value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
            match requirement.operator {
                LabelOperator::In => listed,
                LabelOperator::NotIn => !listed,
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        };
        equal && self.match_expressions.iter().flatten().all(meets)
    }
}

/// The schema of conditions: a map list by type.
pub(crate) fn conditions(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": generator.subschema_for::<Condition>(),
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
