//! `AIBudget`: what may be spent, by whom, in which window.

use crate::decimal::Decimal;
use crate::schema;
use crate::shared::{self, Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What may be spent on AI calls. A call is charged to every budget that matches it; the strictest of
/// all holds.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "AIBudget",
    doc = "What may be spent on AI calls.",
    plural = "aibudgets",
    shortname = "aib",
    category = "plimsoll",
    namespaced,
    status = "AIBudgetStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name has more than 63 characters; use a shorter one"),
    printcolumn(name = "Within", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"WithinBudget\")].status"),
    printcolumn(name = "Used%", type_ = "string", json_path = ".status.limits[0].usedPercent"),
    printcolumn(name = "Spent", type_ = "string", json_path = ".status.limits[0].spent"),
    printcolumn(name = "Limit", type_ = "string", json_path = ".status.limits[0].amount"),
    printcolumn(name = "Resets", type_ = "date", json_path = ".status.limits[0].window.end"),
    printcolumn(name = "Enforcing", type_ = "integer", json_path = ".status.gateways.enforcing"),
    printcolumn(name = "Gateways", type_ = "integer", json_path = ".status.gateways.total", priority = 1),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct AIBudgetSpec {
    /// Which calls are charged: all that is given must hold. Absent: every call of this namespace (in the
    /// root namespace: every call).
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub match_: Option<Match>,
    /// 1 to 8 limits; every one holds.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub limits: Vec<Limit>,
    /// What happens on the way to the limit. Block at 100 percent is always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub stages: Option<Vec<Stage>>,
    /// Enforce, or Observe: decide, count and report, but change nothing.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Calls to a model without a price: Deny, or Allow (charged 0, flagged).
    #[serde(default)]
    pub unpriced: Unpriced,
    /// Printed in every refusal: whom to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::line")]
    pub contact: Option<String>,
}

/// Which calls are charged. Within a list any may hold; a trailing * is a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.features) || has(self.users) || has(self.routes) || has(self.models) \
    || has(self.namespaceSelector)")
    .message("give at least one of features, users, routes, models and namespaceSelector, or leave match out"))]
pub struct Match {
    /// Features, as callers name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub features: Option<Vec<String>>,
    /// Users, as callers name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub users: Option<Vec<String>>,
    /// ModelRoutes by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub routes: Option<Vec<String>>,
    /// Models, as sent upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub models: Option<Vec<String>>,
    /// Namespaces of the callers; only in the root namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// One limit: an amount for a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limit {
    /// Unique in the budget.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// How much, as an integer or a decimal string; Tokens and Requests are whole.
    pub amount: Decimal,
    /// What is counted.
    #[serde(default)]
    pub unit: Unit,
    /// For how long; then it begins anew.
    #[serde(default)]
    pub window: Window,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Unit {
    /// US dollars.
    #[default]
    USD,
    /// Tokens of all classes.
    Tokens,
    /// Requests sent to a backend.
    Requests,
}

/// A calendar window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Its length. Total never ends.
    #[serde(default)]
    pub period: Period,
    /// The IANA time zone whose calendar it follows.
    #[serde(default = "utc")]
    #[schemars(schema_with = "schema::time_zone")]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Default for Window {
    fn default() -> Self {
        Self { period: Period::default(), time_zone: utc() }
    }
}

/// The length of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Period {
    Minute,
    Hour,
    Day,
    Week,
    #[default]
    Month,
    Quarter,
    Year,
    Total,
}

/// What happens when so much of a limit is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.action != 'Block' || self.percent <= 100")
    .message("a Block stage stands at 100 percent at most; to allow more, raise the amount"))]
pub struct Stage {
    /// What is judged.
    pub trigger: Trigger,
    /// Where it is reached, in percent of the amount.
    #[schemars(with = "i32", range(min = 1, max = 1000))]
    pub percent: u32,
    /// What is done.
    pub action: Action,
}

/// What a stage judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Trigger {
    /// The share of the amount that is used.
    Used,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Writes an Event.
    Notify,
    /// Refuses further calls until the window ends.
    Block,
}

/// Whether a budget acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Enforcement {
    /// Decide and act.
    #[default]
    Enforce,
    /// Decide, count and report; change nothing.
    Observe,
}

/// Calls to a model without a price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Unpriced {
    /// Refused.
    #[default]
    Deny,
    /// They pass, are charged 0 and flagged.
    Allow,
}

/// How a budget stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AIBudgetStatus {
    /// Ready, Reconciling, Stalled, WithinBudget, PriceKnown, Enforced.
    #[serde(default)]
    #[schemars(schema_with = "shared::conditions")]
    pub conditions: Arc<Vec<Condition>>,
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where each limit stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub limits: Vec<LimitStatus>,
    /// How many gateways enforce this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<GatewayCount>,
}

impl AIBudgetStatus {
    /// The types of the conditions that Plimsoll writes; others in the list are somebody else's.
    pub const CONDITIONS: [&'static str; 6] =
        ["Ready", "Reconciling", "Stalled", "WithinBudget", "PriceKnown", "Enforced"];
}

/// Where a limit stands in its current window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitStatus {
    /// The limit.
    pub name: String,
    /// The current window.
    pub window: WindowStatus,
    /// How much there is, in the limit's unit.
    pub amount: String,
    /// How much is settled.
    pub spent: String,
    /// The share that is spent or unaccounted, with one decimal.
    pub used_percent: String,
    /// The stages reached in this window, Block at 100 percent included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub stages: Vec<Stage>,
    /// How much is held by gateways that are lost; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaccounted: Option<String>,
    /// When this account was first charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_since: Option<Time>,
}

/// A window's instants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WindowStatus {
    /// Its first instant; absent for Total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Time>,
    /// The first instant after it; absent for Total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Time>,
}

/// Gateways that enforce, of those connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GatewayCount {
    /// Those that acknowledged it.
    #[schemars(with = "i32")]
    pub enforcing: u32,
    /// Those connected.
    #[schemars(with = "i32")]
    pub total: u32,
}
