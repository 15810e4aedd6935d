//! The ledger's side of the protocol: who holds what of each account, who asks, who is refused.
//!
//! [`Ledger`] is the volatile part (waiting asks, noes, recalls, streams): it ends with its
//! [`Incarnation`]. [`Rows`] is the durable part: read before a step, saved and committed after it, and
//! only then are the step's answers sent. If a commit fails the `Ledger` must be dropped and a new one
//! made: gateways say Hello again, and totals are cumulative. Nothing here does I/O or reads a clock.

use crate::account::{AccountKey, Amount, LimitKey};
use crate::ids::{Epoch, Incarnation, ObjectName, UnixMs};
use crate::policy::Enforcement;
use crate::protocol::{Decision, FromGateway, FromLedger, UsageRow};
use std::collections::{BTreeMap, BTreeSet};

/// One epoch's part of an account; cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Held {
    /// Granted.
    pub granted: Amount,
    /// Returned.
    pub returned: Amount,
    /// Settled.
    pub settled: Amount,
}

/// What the store holds of one account.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Balance {
    /// Settled by epochs that are folded in.
    pub settled: Amount,
    /// Held by epochs whose log proves nothing.
    pub unaccounted: Amount,
    /// When the account was first charged or granted.
    pub counted_since: UnixMs,
    /// Observing only: calls that would not have fitted.
    pub would_refuse: u64,
    /// Epochs that hold something or have not been folded.
    pub held: BTreeMap<Epoch, Held>,
}

/// What an epoch is to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum EpochState {
    /// Its gateway lives, or was heard lately.
    #[default]
    Live,
    /// Silent too long: what it holds counts as unaccounted until it says Hello with an intact log.
    Lost,
    /// Closed, or its log proves nothing: accepts nothing more.
    Closed,
}

/// What the store holds of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EpochRecord {
    /// The gateway's id.
    pub gateway: String,
    /// Settlements up to this sequence are stored.
    pub through: u64,
    /// Its state.
    pub state: EpochState,
    /// When it was last heard.
    pub heard: UnixMs,
}

/// The rows of one commit. The store fills in what [`Ledger::touches`] names (absent rows stay absent)
/// and saves what is in `changed_*`.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Balances by account.
    pub balances: BTreeMap<AccountKey, Balance>,
    /// Epochs. The store fills in every epoch that is not closed, and those named.
    pub epochs: BTreeMap<Epoch, EpochRecord>,
    /// Balances to save.
    pub changed_balances: BTreeSet<AccountKey>,
    /// Epochs to save.
    pub changed_epochs: BTreeSet<Epoch>,
    /// Usage rows to insert; (epoch, sequence) is unique, and the bucket of each is moved with it.
    pub usage: Vec<(Epoch, UsageRow)>,
    /// Decisions to insert (kept 24 h, capped).
    pub decisions: Vec<(Epoch, Decision)>,
}

/// Names one gRPC stream in this incarnation; later streams have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What happens to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A gateway said something.
    Said(StreamId, FromGateway),
    /// A stream ended.
    Gone(StreamId),
    /// Time has passed; see [`Ledger::next`].
    Tick,
    /// The limits in force changed: amounts that fell are recalled, noes that no longer hold withdrawn.
    Limits(BTreeMap<LimitKey, Terms>),
}

/// A limit, as far as the ledger needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// As declared.
    pub amount: Amount,
    /// Where calls are blocked; what grants may reach.
    pub block_at: Amount,
    /// Observe: charged by rows, never granted.
    pub enforcement: Enforcement,
}

/// What a step needs from the store.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Touched {
    /// Balances, in key order.
    pub accounts: BTreeSet<AccountKey>,
    /// Epochs beside the open ones.
    pub epochs: BTreeSet<Epoch>,
    /// Every balance that this epoch has a part in (for Hello and Close).
    pub all_of: BTreeSet<Epoch>,
    /// Every balance of these gateways' open epochs.
    pub all_of_gateways: BTreeSet<String>,
}

/// How the ledger behaves; from the installation's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long slices should last without the operator, in milliseconds.
    pub ride_through_ms: i64,
    /// How long a silent gateway is believed to live, in milliseconds (10 min).
    pub lost_after_ms: i64,
    /// The key sent in Welcome.
    pub hmac_key: [u8; 32],
}

/// The serving process's part of the ledger.
#[derive(Debug)]
pub struct Ledger {}

impl Ledger {
    /// A fresh serving process: no stream, no ask, no no.
    #[must_use]
    pub fn new(incarnation: Incarnation, settings: Settings) -> Self {
        todo!()
    }

    /// What `events` will read and write. Call [`Ledger::step`] with these rows and the same events.
    pub fn touches(&self, events: &[Event]) -> Touched {
        todo!()
    }

    /// Carries out `events` in order. Send the messages only when `rows` is committed.
    pub fn step(&mut self, events: &[Event], rows: &mut Rows, now: UnixMs) -> Vec<(StreamId, FromLedger)> {
        todo!()
    }

    /// When to step with [`Event::Tick`] at the latest: an ask's pause ends, a gateway is to be counted lost.
    pub fn next(&self, now: UnixMs) -> UnixMs {
        todo!()
    }

    /// Open streams by gateway id.
    pub fn gateways(&self) -> impl Iterator<Item = (&str, StreamId)> {
        std::iter::empty()
    }
}
