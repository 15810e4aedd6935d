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
    doc = "An AIBudget says what may be spent on AI calls, by whom and in which window. A call is charged to every \
        budget that matches it; the strictest of all holds.\n\nThe smallest useful one, 500 US dollars a calendar month \
        for every call of its namespace:\n\n\
        spec: {limits: [{name: month, amount: 500}]}",
    plural = "aibudgets",
    shortname = "aib",
    category = "plimsoll",
    namespaced,
    status = "AIBudgetStatus",
    derive = "PartialEq",
    validation = schema::object_name(),
    printcolumn(name = "Limit", type_ = "string", json_path = ".status.tightest.limit",
        description = "The limit of which most is used; the others stand in status.limits"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.tightest.used",
        description = "What is spent, or held by gateways that are lost"),
    printcolumn(name = "Of", type_ = "string", json_path = ".status.tightest.of",
        description = "How much there is for the window"),
    printcolumn(name = "%", type_ = "string", json_path = ".status.tightest.usedPercent",
        description = "The share that is used"),
    printcolumn(name = "Resets", type_ = "string", json_path = ".status.tightest.resets",
        description = "When the window ends, in the limit's time zone"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.tightest.stage",
        description = "What the budget does now because of it"),
    printcolumn(name = "Enforced", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].reason",
        description = "Whether gateways act on it, or why not"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the budget is in force; an exhausted one is"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Enforcing", type_ = "integer", json_path = ".status.gateways.enforcing",
        priority = 1, description = "Gateways that hold this version"),
    printcolumn(name = "Gateways", type_ = "integer", json_path = ".status.gateways.total",
        priority = 1, description = "Gateways connected"),
    printcolumn(name = "Priced", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"PriceKnown\")].status",
        priority = 1, description = "Whether every model that it can be charged for has a price"),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"WithinBudget\")].message",
        priority = 1, description = "Which limits are used up, and what that does")
)]
pub struct AIBudgetSpec {
    /// Which calls are charged: all that is given must hold; within a list any may; a trailing * is a prefix.
    /// Absent: every call of this namespace; in the root namespace (plimsoll-system, unless the installation
    /// has another): every call.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub match_: Option<Match>,
    /// 1 to 8 limits, each with its own name; every one holds.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub limits: Vec<Limit>,
    /// Up to 8 stages: what happens on the way to a limit, like `{trigger: Used, percent: 80, action: Notify}`.
    /// Each limit is judged by itself, and every stage that is reached applies. Block at 100 percent used is
    /// always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub stages: Option<Vec<Stage>>,
    /// Enforce: decide and act. Observe: decide, count and report, but refuse nothing, to see first what a
    /// budget would do. Default Enforce.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Calls to a model without a price. Deny: they are refused. Allow: they pass, are charged 0 US dollars
    /// and flagged. Default Deny.
    #[serde(default)]
    pub unpriced: Unpriced,
    /// Whom to ask, printed in every refusal, like `#ai-platform`: one line of up to 200 characters.
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
    /// Features, as callers name them, like `invoice-processing` or `support-*`: 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub features: Option<Vec<String>>,
    /// Users, as callers name them: 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub users: Option<Vec<String>>,
    /// ModelRoutes by name: 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub routes: Option<Vec<String>>,
    /// Models as sent upstream, like `gpt-5*`: 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selection")]
    pub models: Option<Vec<String>>,
    /// The callers' namespaces, by their labels; only in the root namespace. `{}` selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// One limit: an amount for a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(self.unit) || self.unit == 'USD' || type(self.amount) in [int] || !self.amount.contains('.')")
    .message("Tokens and Requests are counted whole; write an integer")
    .field_path(".amount"))]
pub struct Limit {
    /// The limit's name, unique in the budget, like `month`. Renamed, it counts anew.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// How much may be used in a window, in `unit`: an integer or a decimal string, 0 or more, like `500` or
    /// `"12.50"`. Tokens and Requests are whole. USD go up to 9200000000.
    #[schemars(schema_with = "schema::amount")]
    pub amount: Decimal,
    /// What is counted. USD: US dollars, by the prices on ModelBackends. Tokens: input and output of all
    /// classes. Requests: calls sent to a backend. Default USD.
    #[serde(default)]
    pub unit: Unit,
    /// For how long; then it begins anew. Default: the calendar month in UTC.
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
    /// The window's length: a calendar Minute, Hour, Day, Week (from Monday), Month, Quarter or Year. Total
    /// never ends. Default Month.
    #[serde(default)]
    pub period: Period,
    /// The IANA time zone whose calendar the window follows, like `Europe/Berlin`. Default UTC.
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
    .message("a Block stage stands at 100 percent at most; to allow more, raise the amount")
    .field_path(".percent"))]
pub struct Stage {
    /// What is judged. Used: the share of the amount that is used.
    pub trigger: Trigger,
    /// Where the stage is reached, in percent of the amount, 1 to 1000, like 80. Block: 100 at most.
    #[schemars(with = "i32", range(min = 1, max = 1000))]
    pub percent: u32,
    /// What is done. Notify: an Event is written. Block: further calls are refused until the window ends.
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
    /// Ready: it is in force; an exhausted budget is, too. Reconciling: it will come right by itself.
    /// Stalled: somebody must change something. WithinBudget: every limit has room. PriceKnown: every model
    /// that it can be charged for has a price. Enforced: every connected gateway acts on it.
    #[serde(default)]
    #[schemars(schema_with = "shared::conditions")]
    pub conditions: Arc<Vec<Condition>>,
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where each limit stands in its current window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub limits: Vec<LimitStatus>,
    /// How many gateways enforce this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<GatewayCount>,
    /// The limit of which most is used, in words: what `kubectl get aibudgets` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tightest: Option<Tightest>,
}

/// A limit in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tightest {
    /// The limit's name.
    pub limit: String,
    /// How much is used: spent, or held by gateways that are lost.
    pub used: String,
    /// How much there is, with its unit: `5000.00 USD`.
    pub of: String,
    /// The share that is used, with one decimal.
    pub used_percent: String,
    /// When the window ends, in the limit's time zone; `never` for Total.
    pub resets: String,
    /// What the highest stage reached does; absent: none is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
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
    /// The limit's name.
    pub name: String,
    /// The current window.
    pub window: WindowStatus,
    /// How much there is, in the limit's unit.
    pub amount: String,
    /// How much is spent: settled calls, in the limit's unit.
    pub spent: String,
    /// The share that is spent or unaccounted, with one decimal.
    pub used_percent: String,
    /// The stages reached in this window, Block at 100 percent included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub stages: Vec<Stage>,
    /// How much is held by gateways that are lost, until the window ends; absent when nothing is.
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
