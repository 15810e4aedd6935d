//! Accounts: what is counted, in which unit, in which window, for whom.
//!
//! An account is a name with an amount behind it; it never is a UID, so deleting and re-creating a
//! budget clears nothing (DESIGN section 4). What is held and spent of it stands in
//! [`crate::ledger`] and [`crate::slice`].

use crate::ids::{ObjectName, UnixMs};
use crate::money::NanoUsd;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Nano-dollars.
    #[serde(rename = "USD")]
    Usd,
    /// Tokens of all classes.
    Tokens,
    /// Requests that were sent to a backend.
    Requests,
}

impl Unit {
    /// Its name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usd => "USD",
            Self::Tokens => "Tokens",
            Self::Requests => "Requests",
        }
    }

    /// `amount` of this unit for people: `12.50`, `1200`.
    #[must_use]
    pub fn show(self, amount: Amount) -> String {
        match self {
            Self::Usd => NanoUsd(amount.0).cents(),
            Self::Tokens | Self::Requests => amount.0.to_string(),
        }
    }
}

/// A number in an account's unit: nano-dollars, tokens or requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Amount(pub i64);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The sum, held at the ends of the range.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, held at the ends of the range.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// What an attempt takes or took, in every unit: each account takes the number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Charge {
    /// Money.
    pub usd: NanoUsd,
    /// Tokens of all classes.
    pub tokens: u64,
    /// Requests: 1, or 0 for an attempt that never left.
    pub requests: u64,
}

impl Charge {
    /// The number that an account of `unit` takes.
    #[must_use]
    pub fn of(&self, unit: Unit) -> Amount {
        let count = |n: u64| Amount(i64::try_from(n).unwrap_or(i64::MAX));
        match unit {
            Unit::Usd => Amount(self.usd.0),
            Unit::Tokens => count(self.tokens),
            Unit::Requests => count(self.requests),
        }
    }
}

/// A limit of a budget, without its window's start: what outlives the rollover.
///
/// A shared name: a call carries up to 64 of them through queues, log and ledger, so a clone copies nothing,
/// and a look-up hashes nothing.
#[derive(Clone)]
pub struct LimitKey(Arc<LimitName>);

/// What a [`LimitKey`] names.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LimitName {
    /// The budget.
    pub budget: ObjectName,
    /// The limit's name in it.
    pub limit: String,
    /// What it counts.
    pub unit: Unit,
    /// The canonical window, `Month@Europe/Berlin` (see [`crate::window::WindowSpec`]).
    pub window: String,
    /// All of it, as an account's text begins.
    text: String,
    hash: u64,
}

impl LimitKey {
    /// The limit `limit` of `budget`.
    #[must_use]
    pub fn new(budget: ObjectName, limit: String, unit: Unit, window: String) -> Self {
        let text = format!("{}|{}|{limit}|{}|{window}", budget.namespace, budget.name, unit.as_str());
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self(Arc::new(LimitName { budget, limit, unit, window, text, hash: hasher.finish() }))
    }
}

impl Deref for LimitKey {
    type Target = LimitName;

    fn deref(&self) -> &LimitName {
        &self.0
    }
}

impl PartialEq for LimitKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.hash == other.hash && self.0 == other.0
    }
}

impl Eq for LimitKey {}

impl PartialOrd for LimitKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for LimitKey {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl Hash for LimitKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LimitKey({})", self.text)
    }
}

/// One account. Its text form is the identity on the wire, in the log and in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountKey {
    /// The limit that it belongs to.
    pub limit: LimitKey,
    /// The start of the window; 0 for `Total`.
    pub start: UnixMs,
    /// Whose allowance; empty for a limit that all share.
    pub key: String,
}

/// The most accounts that one call may be charged to.
pub const MAX_ACCOUNTS: usize = 64;

impl AccountKey {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> String {
        // An instant has at most 20 digits.
        let mut text = String::with_capacity(self.limit.text.len() + self.key.len() + 22);
        // Writing to a String does not fail.
        let _ = write!(text, "{self}");
        text
    }
}

impl fmt::Display for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, start, key } = self;
        write!(f, "{}|{}|{key}", limit.text, start.0)
    }
}

/// A text that names no account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" does not name an account")]
pub struct NotAnAccount(pub String);

impl FromStr for AccountKey {
    type Err = NotAnAccount;

    fn from_str(text: &str) -> Result<Self, NotAnAccount> {
        let bad = || NotAnAccount(text.to_owned());
        let mut parts = text.splitn(7, '|');
        let mut next = || parts.next().ok_or_else(bad);
        let budget = ObjectName::new(next()?, next()?);
        let limit = next()?.to_owned();
        let unit = match next()? {
            "USD" => Unit::Usd,
            "Tokens" => Unit::Tokens,
            "Requests" => Unit::Requests,
            _ => return Err(bad()),
        };
        let window = next()?.to_owned();
        let start = UnixMs(next()?.parse().map_err(|_| bad())?);
        let key = next()?.to_owned();
        Ok(Self { limit: LimitKey::new(budget, limit, unit, window), start, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_survives_its_text_form_whatever_the_key() {
        for key in ["", "(none)", "a|b", "päivi@example.com", "|"] {
            let account = AccountKey {
                limit: LimitKey::new(
                    ObjectName::new("finance", "all"),
                    "month".into(),
                    Unit::Usd,
                    "Month@Europe/Berlin".into(),
                ),
                start: UnixMs(1_764_547_200_000),
                key: key.into(),
            };
            assert_eq!(account.to_string().parse(), Ok(account));
        }
        assert!("finance|all|month|EUR|Day@UTC|0|".parse::<AccountKey>().is_err());
    }
}
