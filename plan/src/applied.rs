//! What was applied: which gateways hold what, and what the ledger has counted.
//!
//! Statuses come only from this and the plan. Whoever fills it in (ledger, policy stream, xDS) may be
//! behind; then the status is behind, never ahead.

use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::policy::{PolicyKey, PolicyVersion};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the gateways hold and the ledger knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The gateways that count: connected, or not yet given up.
    pub gateways: BTreeMap<String, Gateway>,
    /// Where accounts stand.
    pub spend: Spend,
    /// The ledger grants nothing, and why.
    pub trouble: Option<Trouble>,
}

/// Why the ledger grants nothing to anyone, `LedgerWentBack` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase.
    pub reason: String,
    /// What is wrong, what to do.
    pub message: String,
}

/// What one gateway holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Policy that it acknowledged.
    pub held: Arc<BTreeMap<PolicyKey, PolicyVersion>>,
    /// Policy that it does not understand, in its words.
    pub rejected: BTreeMap<PolicyKey, String>,
    /// Clusters as planned now: those that Envoy answered for.
    pub clusters: BTreeMap<String, ClusterState>,
}

/// What Envoy said of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// It has it.
    Acknowledged,
    /// It won't have it, in its words.
    Rejected(String),
}

/// Where accounts stand; one that is absent was never charged.
pub type Spend = BTreeMap<AccountKey, Spent>;

/// Where one account stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Settled by all epochs.
    pub settled: Amount,
    /// Held by gateways that are lost or whose log proves nothing.
    pub unaccounted: Amount,
    /// When it was first charged or granted.
    pub counted_since: Option<UnixMs>,
    /// The ledger has answered exhausted, and not withdrawn it: calls are refused although less than the
    /// whole amount may be used.
    pub exhausted: bool,
    /// By how much calls cost more than was reserved for them.
    pub overrun: Amount,
}

impl Spent {
    /// What is used for good.
    #[must_use]
    pub fn used(&self) -> Amount {
        self.settled.plus(self.unaccounted)
    }
}
