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
    doc = "A ModelRoute says which backends answer under a model name. Callers in its namespace send the name; \
        what answers can change without them.\n\nThe smallest useful one, for clients that send \"model\": \"assistant\":\n\n\
        metadata: {name: assistant}\n\n\
        spec: {tiers: [{name: only, backends: [{backendRef: {name: openai, namespace: plimsoll-system}, model: gpt-5.2}]}]}",
    plural = "modelroutes",
    shortname = "mroute",
    category = "plimsoll",
    namespaced,
    status = "ModelRouteStatus",
    derive = "PartialEq",
    validation = schema::object_name(),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model",
        description = "The name that clients send"),
    printcolumn(name = "Backend", type_ = "string",
        json_path = ".spec.tiers[0].backends[0].backendRef.name",
        description = "The first backend of the best tier"),
    printcolumn(name = "Answers", type_ = "string", json_path = ".spec.tiers[0].backends[0].model",
        description = "The model that the first backend answers with"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether calls can take it"),
    printcolumn(name = "Reason", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not, in a word"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1, description = "Why it is ready or not, and what to do")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteSpec {
    /// The name that clients send, like `assistant`. Default: the object's own name. Of two routes with one
    /// name in a namespace the older serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::model")]
    pub model: Option<String>,
    /// Exactly one tier for now.
    #[schemars(length(min = 1, max = 1))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tiers: Vec<Tier>,
    /// The most output tokens of a call, 1 to 10000000; a client's own lower bound stays. Absent: the model's
    /// bound, or the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10_000_000))]
    pub max_output_tokens: Option<u32>,
    /// How long a call may take, streaming included: `120s`, `500ms` or `2m`. Absent: as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub timeout: Option<String>,
}

/// Backends that are equally good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.backends.exists(b, !has(b.weight) || b.weight > 0)")
    .message("every weight is 0, so nothing would answer; give at least one backend a weight above 0")
    .field_path(".backends"))]
pub struct Tier {
    /// The tier's name, like `premium`: a DNS label.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// 1 to 16 backends; calls are shared out by their weights.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub backends: Vec<RouteBackend>,
}

/// One backend of a tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteBackend {
    /// The ModelBackend that answers.
    pub backend_ref: BackendRef,
    /// The model that is asked for there, like `gpt-5.2`: one of the backend's `spec.models`.
    #[schemars(schema_with = "schema::model")]
    pub model: String,
    /// Its share of the tier's calls: weight 3 beside weight 1 takes three of four; 0 takes none. Default 1.
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
    /// The ModelBackend's name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// The ModelBackend's namespace. Default: the route's own. In another one it must allow the route's
    /// namespace (`spec.allowedRoutes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub namespace: Option<String>,
}

/// How a route stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRouteStatus {
    /// Ready: calls can take it. Reconciling: it will come right by itself. Stalled: somebody must change
    /// something. Accepted: no older route has its name. ResolvedRefs: its backends are there and allow it.
    /// Programmed: every connected gateway has it.
    #[serde(default)]
    #[schemars(schema_with = "shared::conditions")]
    pub conditions: Arc<Vec<Condition>>,
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The name that clients send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl ModelRouteStatus {
    /// The types of the conditions that Plimsoll writes; others in the list are somebody else's.
    pub const CONDITIONS: [&'static str; 6] =
        ["Ready", "Reconciling", "Stalled", "Accepted", "ResolvedRefs", "Programmed"];
}
