//! `ModelRoute`: which backends answer under a model name.

use crate::schema;
use crate::shared::{self, Condition};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The backends that answer under a model name, to the callers of its namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "ModelRoute",
    doc = "The backends that answer under a model name.",
    plural = "modelroutes",
    shortname = "mroute",
    category = "plimsoll",
    namespaced,
    status = "ModelRouteStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name has more than 63 characters; use a shorter one"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteSpec {
    /// The name that clients send; absent: the object's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::model")]
    pub model: Option<String>,
    /// Exactly one tier.
    #[schemars(length(min = 1, max = 1))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tiers: Vec<Tier>,
    /// The most output tokens of a call; a client's own lower bound stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10_000_000))]
    pub max_output_tokens: Option<u32>,
    /// How long a call may take, as `120s`, `500ms` or `2m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub timeout: Option<String>,
}

/// Backends that are equally good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.backends.exists(b, b.weight > 0)")
    .message("every weight is 0, so nothing would answer; give at least one backend a weight above 0"))]
pub struct Tier {
    /// The tier's name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// 1 to 16; calls are shared out by weight.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub backends: Vec<RouteBackend>,
}

/// One backend of a tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteBackend {
    /// The ModelBackend.
    pub backend_ref: BackendRef,
    /// The model, as sent upstream; one of the backend's `spec.models`.
    #[schemars(schema_with = "schema::model")]
    pub model: String,
    /// Its share of the calls against the others'; 0 takes none.
    #[serde(default = "one")]
    #[schemars(with = "i32", range(min = 0, max = 1_000_000))]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Names a ModelBackend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendRef {
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// Its namespace; absent: the route's. Another one must allow this one (`spec.allowedRoutes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub namespace: Option<String>,
}

/// How a route stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteStatus {
    /// Accepted, ResolvedRefs, Programmed, Ready, Reconciling, Stalled.
    #[serde(default)]
    #[schemars(schema_with = "shared::conditions")]
    pub conditions: Arc<Vec<Condition>>,
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl ModelRouteStatus {
    /// The types of the conditions that Plimsoll writes; others in the list are somebody else's.
    pub const CONDITIONS: [&'static str; 6] =
        ["Ready", "Reconciling", "Stalled", "Accepted", "ResolvedRefs", "Programmed"];
}
