//! What was applied: which gateways hold what, and what the ledger has counted.
//!
//! Statuses come only from this and the plan. Whoever fills it in (ledger, policy stream, xDS) may be
//! behind; then the status is behind, never ahead.

use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::policy::PolicyKey;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long a gateway that left without Close is believed to serve, in milliseconds (LEDGER.md rule 6). Then it
/// counts no more, and what it holds is unaccounted.
pub const GIVEN_UP_AFTER_MS: i64 = 600_000;

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
    /// Its filter's stream to the ledger, by which policy comes.
    pub ledger: Link,
    /// Its Envoy's xDS stream, by which clusters and keys come.
    pub xds: Link,
    /// Policy that it lacks in the planned version. Few, as a rule: what it holds is never listed.
    pub lacks: Arc<BTreeMap<PolicyKey, Instead>>,
    /// Policy of the planned version that it does not understand, in its words.
    pub rejected: BTreeMap<PolicyKey, String>,
    /// Clusters that its Envoy lacks in the planned version, or whose key it lacks.
    pub clusters: BTreeMap<String, Missing>,
}

/// A stream from a gateway to the operator. What came by it stays in force when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// There has been none.
    #[default]
    Never,
    /// There was one before this operator started; the gateway may be back any moment.
    Expected,
    /// It ended then.
    Down {
        /// When.
        since: UnixMs,
    },
    /// It is open.
    Up,
}

/// What a gateway holds instead of the planned version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instead {
    /// A version before it, which stays in force there.
    Before,
    /// Nothing.
    Nothing,
}

/// What an Envoy lacks of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which part of it.
    pub part: Part,
    /// Why it won't have it, in its words; absent: it has not answered.
    pub rejected: Option<String>,
}

/// What a backend has in Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The cluster itself.
    Cluster,
    /// The key that it injects.
    Key,
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
