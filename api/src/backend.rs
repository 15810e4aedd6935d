//! `ModelBackend`: where models run, and what they cost.

use crate::decimal::Decimal;
use crate::schema;
use crate::shared::{self, Condition, LabelSelector, SecretKeyRef};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A provider, its models and their prices.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "ModelBackend",
    doc = "A provider, its models and their prices.",
    plural = "modelbackends",
    shortname = "mbackend",
    category = "plimsoll",
    namespaced,
    status = "ModelBackendStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name has more than 63 characters; use a shorter one"),
    printcolumn(name = "API", type_ = "string", json_path = ".spec.provider.api"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.provider.baseURL"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Priced", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"PriceKnown\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelBackendSpec {
    /// Who serves the models.
    pub provider: Provider,
    /// The models, by name as sent upstream.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<Model>,
    /// Which namespaces' routes and callers may use it.
    #[serde(default)]
    pub allowed_routes: AllowedRoutes,
}

/// A provider's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// The API that it speaks; clients must speak the same.
    pub api: Api,
    /// Where the API begins, `https://api.openai.com/v1`. Plain HTTP and private addresses only in the
    /// root namespace.
    #[serde(rename = "baseURL")]
    #[schemars(schema_with = "schema::base_url")]
    pub base_url: String,
    /// The provider's key. It replaces what the caller sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// The discount on every declared price, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discount_percent: Option<Decimal>,
}

/// An API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Api {
    /// OpenAI's, chat completions.
    OpenAI,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// As sent upstream.
    #[schemars(schema_with = "schema::model")]
    pub name: String,
    /// The most tokens that input and output can have together; bounds what the body's bytes do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 100_000_000))]
    pub context_tokens: Option<u32>,
    /// The most tokens that it can answer with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10_000_000))]
    pub max_output_tokens: Option<u32>,
    /// What it costs; absent: unpriced, refused by budgets with `unpriced: Deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// US dollars for a million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Input.
    pub input_per_million: Decimal,
    /// Input read from the provider's cache; absent: as other input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_per_million: Option<Decimal>,
    /// Output, reasoning included.
    pub output_per_million: Decimal,
}

/// Who may use a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowedRoutes {
    /// The namespaces.
    #[serde(default)]
    pub namespaces: NamespaceScope,
}

/// Some namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.selector) == (self.from == 'Selector')")
    .message("give selector with from: Selector, and only then"))]
pub struct NamespaceScope {
    /// The backend's own, all, or those that the selector selects.
    #[serde(default)]
    pub from: From,
    /// Selects namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Which namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum From {
    /// The object's own.
    #[default]
    Same,
    /// Every one.
    All,
    /// Those selected.
    Selector,
}

/// How a backend stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelBackendStatus {
    /// Accepted, ResolvedRefs, Programmed, Ready, Reconciling, Stalled, PriceKnown.
    #[serde(default)]
    #[schemars(schema_with = "shared::conditions")]
    pub conditions: Arc<Vec<Condition>>,
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl ModelBackendStatus {
    /// The types of the conditions that Plimsoll writes; others in the list are somebody else's.
    pub const CONDITIONS: [&'static str; 7] =
        ["Ready", "Reconciling", "Stalled", "Accepted", "ResolvedRefs", "Programmed", "PriceKnown"];
}
