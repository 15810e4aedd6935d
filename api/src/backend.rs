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
    doc = "A ModelBackend is a provider's API, the models that it serves and what they cost.\n\n\
        The smallest useful one (prices in US dollars for a million tokens):\n\n\
        spec: {provider: {api: OpenAI, baseURL: https://api.openai.com/v1, apiKeySecretRef: {name: openai, key: api-key}}, \
        models: [{name: gpt-5.2, price: {inputPerMillion: \"1.25\", outputPerMillion: 10}}]}",
    plural = "modelbackends",
    shortname = "mbackend",
    category = "plimsoll",
    namespaced,
    status = "ModelBackendStatus",
    derive = "PartialEq",
    validation = schema::object_name(),
    printcolumn(name = "API", type_ = "string", json_path = ".spec.provider.api",
        description = "The API that it speaks"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.provider.baseURL",
        description = "Where the API begins"),
    printcolumn(name = "Priced", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"PriceKnown\")].status",
        description = "Whether every model has a price"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether gateways can use it"),
    printcolumn(name = "Reason", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not, in a word"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".spec.provider.apiKeySecretRef.name",
        priority = 1, description = "The Secret that holds the provider's key"),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1, description = "Why it is ready or not, and what to do")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelBackendSpec {
    /// Who serves the models: the API, its address and its key.
    pub provider: Provider,
    /// 1 to 256 models, each with its own name.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<Model>,
    /// Which namespaces' routes and callers may use it. Default: its own namespace alone.
    #[serde(default)]
    pub allowed_routes: AllowedRoutes,
}

/// A provider's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// The API that it speaks; clients must speak the same, nothing is translated. OpenAI: chat completions,
    /// as OpenAI and most other servers have them.
    pub api: Api,
    /// Where the API begins, like `https://api.openai.com/v1`. Plain HTTP and private addresses are accepted
    /// only in the root namespace (plimsoll-system, unless the installation has another).
    #[serde(rename = "baseURL")]
    #[schemars(schema_with = "schema::base_url")]
    pub base_url: String,
    /// The Secret with the provider's key, which replaces the credential that the caller sends. Secrets are
    /// read in the root namespace and in those that the installation lists. Absent: calls carry no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// What the provider takes off every declared price, in percent: an integer or a decimal string from 0
    /// to 100, like `"12.5"`. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::percent")]
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
    /// The model's name as the provider knows it, like `gpt-5.2`. Callers may use it too where no ModelRoute
    /// claims it.
    #[schemars(schema_with = "schema::model")]
    pub name: String,
    /// The most tokens that input and output can have together, like 400000; it bounds what is reserved for
    /// a call. Absent: the size of the request bounds the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 100_000_000))]
    pub context_tokens: Option<u32>,
    /// The most tokens that it can answer with, like 128000; it bounds what is reserved for a call that
    /// names no bound itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10_000_000))]
    pub max_output_tokens: Option<u32>,
    /// What it costs. Absent: the model has no price, and budgets with `unpriced: Deny` refuse its calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// US dollars for a million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// For a million input tokens: US dollars as an integer or a decimal string, like `"1.25"`.
    #[schemars(schema_with = "schema::usd")]
    pub input_per_million: Decimal,
    /// For a million input tokens that the provider read from its cache, like `"0.125"`. Absent: as other
    /// input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::usd")]
    pub cached_input_per_million: Option<Decimal>,
    /// For a million output tokens, reasoning included, like `10`.
    #[schemars(schema_with = "schema::usd")]
    pub output_per_million: Decimal,
}

/// Who may use a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowedRoutes {
    /// The namespaces whose routes and callers may use it.
    #[serde(default)]
    pub namespaces: NamespaceScope,
}

/// Some namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.selector) == (self.from == 'Selector')")
    .message("give selector with from: Selector, and only then")
    .field_path(".selector"))]
pub struct NamespaceScope {
    /// Same: the backend's own namespace. All: every namespace. Selector: those that `selector` selects.
    /// Default Same.
    #[serde(default)]
    pub from: From,
    /// Selects namespaces by their labels; with `from: Selector` only.
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
    /// Ready: gateways can use it. Reconciling: it will come right by itself. Stalled: somebody must change
    /// something. Accepted: the spec is right. ResolvedRefs: what it refers to is there. Programmed: every
    /// connected gateway has it; Envoy's own words where one refuses it. PriceKnown: every model has a price.
    #[serde(default)]
    #[schemars(schema_with = "shared::conditions")]
    pub conditions: Arc<Vec<Condition>>,
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl ModelBackendStatus {
    /// The types of the conditions that Plimsoll writes; others in the list are somebody else's.
    pub const CONDITIONS: [&'static str; 7] =
        ["Ready", "Reconciling", "Stalled", "Accepted", "ResolvedRefs", "Programmed", "PriceKnown"];
}
