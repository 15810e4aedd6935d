//! The compiled policy: the contract between operator, filter and backtest.
//!
//! Bodies travel as versioned JSON, one object a key; the version is the hash of the body. They
//! hold what a gateway needs to decide and nothing else: references are resolved, rates are exact,
//! namespaces are names. A body with a field or value that this build does not know is refused
//! whole (`deny_unknown_fields`), never half understood: the gateway then says so in its
//! acknowledgement and keeps the predecessor.

use crate::account::{Amount, LimitKey, Unit};
use crate::ids::{ObjectName, UnixMs};
use crate::price::{PriceVersion, Rates};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Which object a body is for. Text form: `installation`, `budget/finance/all`, `window/Month@UTC`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKey {
    /// The installation's settings; exactly one.
    Installation,
    /// The bounds of one window specification.
    Window(String),
    /// A `ModelBackend`.
    Backend(ObjectName),
    /// A `ModelRoute`.
    Route(ObjectName),
    /// An `AIBudget`.
    Budget(ObjectName),
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installation => f.write_str("installation"),
            Self::Window(spec) => write!(f, "window/{spec}"),
            Self::Backend(name) => write!(f, "backend/{name}"),
            Self::Route(name) => write!(f, "route/{name}"),
            Self::Budget(name) => write!(f, "budget/{name}"),
        }
    }
}

/// A text that names no policy object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the key of a policy object that this build knows")]
pub struct UnknownKey(pub String);

impl FromStr for PolicyKey {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        let bad = || UnknownKey(text.to_owned());
        if text == "installation" {
            return Ok(Self::Installation);
        }
        let (kind, rest) = text.split_once('/').ok_or_else(bad)?;
        let name = || ObjectName::try_from(rest.to_owned()).map_err(|_| bad());
        match kind {
            "window" => Ok(Self::Window(rest.to_owned())),
            "backend" => name().map(Self::Backend),
            "route" => name().map(Self::Route),
            "budget" => name().map(Self::Budget),
            _ => Err(bad()),
        }
    }
}

/// The version of a body: its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PolicyVersion(pub u64);

impl PolicyVersion {
    /// The version of `body`.
    #[must_use]
    pub fn of(body: &str) -> Self {
        let digest = Sha256::digest(body.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(first))
    }
}

/// One object as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyObject {
    /// Which object.
    pub key: PolicyKey,
    /// The hash of the body.
    pub version: PolicyVersion,
    /// The body's JSON.
    pub body: String,
}

/// A body, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The installation.
    Installation(Installation),
    /// A window specification's bounds.
    Window(WindowBounds),
    /// A backend.
    Backend(Backend),
    /// A route.
    Route(Route),
    /// A budget.
    Budget(Budget),
}

impl PolicyObject {
    /// Encodes `body` under `key`.
    #[must_use]
    pub fn encode(key: PolicyKey, body: &impl Serialize) -> Self {
        let body = serde_json::to_string(body).expect("a policy body has string keys only");
        Self { key, version: PolicyVersion::of(&body), body }
    }

    /// Decodes the body.
    ///
    /// # Errors
    /// Says which field this build does not understand.
    pub fn decode(&self) -> Result<Body, serde_json::Error> {
        Ok(match self.key {
            PolicyKey::Installation => Body::Installation(serde_json::from_str(&self.body)?),
            PolicyKey::Window(_) => Body::Window(serde_json::from_str(&self.body)?),
            PolicyKey::Backend(_) => Body::Backend(serde_json::from_str(&self.body)?),
            PolicyKey::Route(_) => Body::Route(serde_json::from_str(&self.body)?),
            PolicyKey::Budget(_) => Body::Budget(serde_json::from_str(&self.body)?),
        })
    }
}

/// Whether decisions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Enforcement {
    /// Decide and act.
    #[default]
    Enforce,
    /// Decide, count and report; change nothing.
    Observe,
}

/// Let a class of calls pass, or refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It passes; it is counted.
    Allow,
    /// It is refused.
    Deny,
}

/// The installation's settings, as far as a gateway needs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installation {
    /// Enforce, or observe everywhere.
    pub mode: Enforcement,
    /// The namespace whose objects may span the cluster.
    pub root_namespace: String,
    /// The namespace that callers without identity get.
    pub anonymous_namespace: String,
    /// Callers without identity.
    pub anonymous: Verdict,
    /// Calls that no enforcing budget matches.
    pub unbudgeted: Verdict,
    /// Where unknown models go while observing.
    pub default_backend: Option<ObjectName>,
    /// The output bound where neither client, route nor model gives one, in tokens.
    pub max_output_tokens: u64,
    /// How long a gateway should last without the operator, in milliseconds.
    pub ride_through_ms: i64,
}

/// The half-open interval `[start, end)` of one window. `Total` is `[0, NEVER)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// First instant in the window.
    pub start: UnixMs,
    /// First instant after it.
    pub end: UnixMs,
}

/// The current window of a specification and all that begin within `rideThrough`; at least one ahead
/// (none for `Total`), in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WindowBounds {
    /// Adjacent, in order.
    pub bounds: Vec<Bounds>,
}

/// Namespaces that something applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Namespaces {
    /// Every one.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Namespaces {
    /// Whether `namespace` is one of them.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(namespace),
        }
    }
}

/// A literal, or a prefix written with a trailing `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Pattern {
    /// Exactly this.
    Literal(String),
    /// Everything that starts so.
    Prefix(String),
}

impl Pattern {
    /// Whether `value` matches.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == value,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
        }
    }
}

impl From<String> for Pattern {
    fn from(mut text: String) -> Self {
        if text.ends_with('*') {
            text.pop();
            return Self::Prefix(text);
        }
        Self::Literal(text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        match pattern {
            Pattern::Literal(literal) => literal,
            Pattern::Prefix(prefix) => prefix + "*",
        }
    }
}

/// A budget: whom it matches, and its limits. An absent list matches any value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// The callers' namespaces.
    pub namespaces: Namespaces,
    /// Features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<Pattern>>,
    /// Users, by their raw id: it is compared at the gateway and stays there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<Pattern>>,
    /// Routes by the name of the `ModelRoute`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Pattern>>,
    /// Models as sent upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<Pattern>>,
    /// 1 to 8; every one holds.
    pub limits: Vec<Limit>,
    /// Enforce or observe.
    pub enforcement: Enforcement,
    /// Calls to a model without a price.
    pub unpriced: Verdict,
    /// Printed in every refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
}

/// One limit of a budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Unique in the budget.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// The canonical window specification; its bounds are the object `window/<spec>`.
    pub window: String,
    /// As declared.
    pub amount: Amount,
    /// Where calls are blocked: the least Block stage's share of the amount, at most the amount.
    pub block_at: Amount,
}

impl Limit {
    /// Its key under `budget`.
    #[must_use]
    pub fn key(&self, budget: &ObjectName) -> LimitKey {
        LimitKey::new(budget.clone(), self.name.clone(), self.unit, self.window.clone())
    }
}

/// A route: the backends that answer under a model name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The name that clients send.
    pub model: String,
    /// The tier's name.
    pub tier: String,
    /// At least one, and only those that are accepted; drawn by weight.
    pub backends: Vec<WeightedBackend>,
    /// An upper bound of output tokens for a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// How long a call may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// One choice of a tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedBackend {
    /// The backend.
    pub backend: ObjectName,
    /// The model as sent upstream.
    pub model: String,
    /// Its share; 0 takes none.
    pub weight: u32,
}

/// How a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dialect {
    /// OpenAI's API.
    OpenAI,
}

/// A backend: where it is, how it speaks, what its models cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// Its dialect.
    pub dialect: Dialect,
    /// Envoy's cluster that injects the provider's key.
    pub cluster: String,
    /// Envoy's cluster that passes the caller's own credential.
    pub passthrough_cluster: String,
    /// The `:authority` to send, `api.openai.com`.
    pub authority: String,
    /// What replaces the client's `/v1`: the base URL's path, `/v1`.
    pub path_prefix: String,
    /// Whether an abandoned call is billed to its end.
    pub bills_after_disconnect: bool,
    /// Namespaces whose routes and callers may use it.
    pub allowed: Namespaces,
    /// Its models, by name.
    pub models: Vec<Model>,
}

/// One model of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// As sent upstream.
    pub name: String,
    /// The most tokens that input and output can have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// The most tokens that it can answer with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// What it costs; absent: unpriced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

impl Model {
    /// The version of its rates; 0 where it has none.
    #[must_use]
    pub fn price_version(&self) -> PriceVersion {
        self.rates.map(|rates| rates.version()).unwrap_or_default()
    }
}
