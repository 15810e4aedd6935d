//! The installation's settings, as far as planning needs them.
//!
//! The operator's settings file has more (ledger, listen, tls): it takes those keys out and leaves the
//! rest to this type, which refuses what it does not know.

use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::{Enforcement, Installation, Verdict};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;

/// Settings of one installation; an absent field has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// The namespace whose objects may span the cluster and are believed.
    pub root_namespace: String,
    /// Further namespaces whose Secrets may hold providers' keys.
    pub secret_namespaces: BTreeSet<String>,
    /// Enforce, or observe everywhere.
    pub mode: Enforcement,
    /// Callers without identity.
    pub anonymous: Verdict,
    /// The namespace that they get.
    pub anonymous_namespace: String,
    /// Calls that no enforcing budget matches.
    pub unbudgeted: Verdict,
    /// Where unknown models go while observing.
    pub default_backend: Option<ObjectName>,
    /// The output bound where neither client, route nor model gives one, in tokens.
    pub max_output_tokens: u64,
    /// How long a gateway should last without the operator.
    pub ride_through: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root_namespace: "plimsoll-system".to_owned(),
            secret_namespaces: BTreeSet::new(),
            mode: Enforcement::Enforce,
            anonymous: Verdict::Allow,
            anonymous_namespace: "default".to_owned(),
            unbudgeted: Verdict::Allow,
            default_backend: None,
            max_output_tokens: 4096,
            ride_through: Duration { ms: 600_000 },
        }
    }
}

impl Settings {
    /// Whether Secrets of `namespace` may be read.
    #[must_use]
    pub fn may_hold_keys(&self, namespace: &str) -> bool {
        namespace == self.root_namespace || self.secret_namespaces.contains(namespace)
    }

    /// The part that gateways need.
    #[must_use]
    pub fn installation(&self) -> Installation {
        Installation {
            mode: self.mode,
            root_namespace: self.root_namespace.clone(),
            anonymous_namespace: self.anonymous_namespace.clone(),
            anonymous: self.anonymous,
            unbudgeted: self.unbudgeted,
            default_backend: self.default_backend.clone(),
            max_output_tokens: self.max_output_tokens,
            ride_through_ms: self.ride_through.ms,
        }
    }
}

/// A length of time, written as `500ms`, `120s`, `10m` or `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration {
    /// In milliseconds, never negative.
    pub ms: i64,
}

impl Duration {
    /// Reads `120s`. `None`: it is no duration, or longer than a month.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let ms = number.parse::<i64>().ok()?.checked_mul(unit_ms)?;
        (ms <= 31 * 24 * 3_600_000).then_some(Self { ms })
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong =
            || serde::de::Error::custom(format!("{text:?} is not a duration; write it like 10m or 90s"));
        Self::parse(&text).ok_or_else(wrong)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = self.ms;
        serializer.collect_str(&match ms % 1000 {
            0 => format!("{}s", ms / 1000),
            _ => format!("{ms}ms"),
        })
    }
}
