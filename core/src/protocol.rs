//! What gateways and ledger tell each other: LEDGER.md's messages as plain data.
//!
//! How they look on the wire is the `wire` crate's affair. Totals are cumulative and the higher
//! wins, so any message may be lost, doubled or late.

use crate::account::{AccountKey, Amount, Charge};
use crate::ids::{Epoch, Incarnation, ObjectName, UnixMs};
use crate::money::NanoUsd;
use crate::policy::{PolicyKey, PolicyObject, PolicyVersion};
use crate::price::PriceVersion;
use crate::usage::Usage;

/// What a gateway says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGateway {
    /// First on every stream.
    Hello(Hello),
    /// Totals, rows, refills wanted.
    Report(Report),
    /// A paused request's needs; an ask with a known id replaces it.
    Ask(Ask),
    /// A paused request ended.
    Cancel(AskId),
    /// Refused and altered calls.
    Decisions(Vec<Decision>),
    /// Which deltas are in force.
    PolicyAck(PolicyAck),
    /// A clean end, after the last settlement.
    Close,
}

/// What the ledger says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromLedger {
    /// Answers Hello.
    Welcome(Welcome),
    /// Answers everything else.
    Answer(Answer),
    /// What is in force.
    PolicyDelta(PolicyDelta),
}

impl FromGateway {
    /// The message's name, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Report(_) => "report",
            Self::Ask(_) => "ask",
            Self::Cancel(_) => "cancel",
            Self::Decisions(_) => "decisions",
            Self::PolicyAck(_) => "policy_ack",
            Self::Close => "close",
        }
    }
}

impl FromLedger {
    /// The message's name, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Welcome(_) => "welcome",
            Self::Answer(_) => "answer",
            Self::PolicyDelta(_) => "policy_delta",
        }
    }
}

/// What a gateway's log proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// There was none.
    New,
    /// Complete, written under this boot.
    Intact,
    /// Records are missing.
    Gap,
    /// Written under another boot: the page cache may have been lost.
    NodeCrashed,
}

/// Who speaks, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Envoy's node id; unique among gateways.
    pub gateway: String,
    /// This life of its log.
    pub epoch: Epoch,
    /// What its log proves. All but `Intact` start a new epoch.
    pub log: LogState,
    /// Everything it holds; empty after a restart: the ledger's Welcome tells.
    pub totals: Vec<Totals>,
    /// The last sequence in its log.
    pub sequence: u64,
    /// The policy it holds.
    pub policy: Vec<(PolicyKey, PolicyVersion)>,
}

/// Answers Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// This life of the serving process.
    pub incarnation: Incarnation,
    /// The ledger's time.
    pub now: UnixMs,
    /// Settlements up to this sequence are stored.
    pub durable: u64,
    /// What the ledger knows of this epoch: the gateway takes the higher of each number.
    pub holdings: Vec<Holding>,
    /// The installation's key for hashing user ids.
    pub hmac_key: [u8; 32],
    /// Nothing is granted until every known gateway has declared itself.
    pub went_back: bool,
    /// The ledger takes nothing more of this epoch; the gateway must start a new one.
    pub epoch_closed: bool,
}

/// The ledger's record of one epoch in one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The account.
    pub account: AccountKey,
    /// Cumulative.
    pub granted: Amount,
    /// Cumulative.
    pub returned: Amount,
    /// Cumulative.
    pub settled: Amount,
}

/// A gateway's account of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The account.
    pub account: AccountKey,
    /// Cumulative, as far as the gateway has heard.
    pub granted: Amount,
    /// Cumulative.
    pub returned: Amount,
    /// Cumulative, of the rows up to the report's `through`.
    pub settled: Amount,
    /// Reserved now, by calls in flight.
    pub reserved: Amount,
    /// Reserved a second, smoothed.
    pub rate: Amount,
    /// The largest reserve lately.
    pub w_max: Amount,
    /// The latest recall that it obeys.
    pub recall_seen: u64,
}

/// Totals, rows, refills wanted. Sent every 5 s, or with the next message.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// Those that changed.
    pub totals: Vec<Totals>,
    /// Newly settled, in order of their settlement's sequence.
    pub rows: Vec<UsageRow>,
    /// `rows` are all settlements after this sequence …
    pub after: u64,
    /// … and up to this one. A report that begins after what the ledger has stored shows that one was
    /// lost: its rows and what it settled are not taken, and travel again.
    pub through: u64,
    /// Accounts that run low.
    pub refills: Vec<AccountKey>,
}

/// Names an ask within its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// One paused request's needs in the accounts that are short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Names it.
    pub id: AskId,
    /// The short accounts only.
    pub needs: Vec<Need>,
    /// How long the request can still wait, in milliseconds.
    pub wait_ms: i64,
}

/// What an ask needs in one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The account.
    pub account: AccountKey,
    /// The request's whole reserve there.
    pub reserve: Amount,
    /// What its slice can't cover: what the ledger must earmark.
    pub short: Amount,
}

/// What the ledger decided, all of it or none in one step.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Answer {
    /// Slices that changed.
    pub grants: Vec<Grant>,
    /// Asks whose needs are in `grants`.
    pub earmarks: Vec<AskId>,
    /// Asks that are refused.
    pub noes: Vec<No>,
    /// Accounts whose *exhausted* no longer holds.
    pub withdrawals: Vec<AccountKey>,
    /// Settlements up to this sequence are stored.
    pub durable: u64,
    /// The ledger's time.
    pub now: UnixMs,
}

/// The state of a slice, as the ledger wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The account.
    pub account: AccountKey,
    /// Cumulative; the higher wins.
    pub granted: Amount,
    /// What a slice of this gateway should hold; what exceeds twice of it goes back.
    pub size: Amount,
    /// The account is small: refill at a fifth, gather asks.
    pub small: bool,
    /// The version of the recall state; the higher wins.
    pub recall: u64,
    /// Whether everything not reserved must be returned.
    pub recalled: bool,
}

/// An answer that refuses an ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct No {
    /// The ask.
    pub ask: AskId,
    /// The account that is short; of several the one that resets last.
    pub account: AccountKey,
    /// Whether a retry can help.
    pub kind: NoKind,
    /// The smallest reserve that is refused there: of *exhausted* the first that is more than what is left.
    pub reserve: Amount,
    /// Settled and unaccounted in the account, for the message.
    pub used: Amount,
}

/// Why the ledger refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoKind {
    /// Settled + unaccounted + reserve > amount: don't retry before the reset.
    Exhausted,
    /// The rest is reserved by calls in flight: retry soon.
    Contended,
}

/// Changed policy objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyDelta {
    /// Counts the deltas of one stream from 1.
    pub number: u64,
    /// Whether objects not named here are gone.
    pub whole: bool,
    /// New and changed ones.
    pub objects: Vec<PolicyObject>,
    /// Gone ones.
    pub removed: Vec<PolicyKey>,
}

/// A delta is in force, but for the keys named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyAck {
    /// The delta.
    pub number: u64,
    /// Objects that this gateway does not understand, and why; their predecessors stay.
    pub rejected: Vec<(PolicyKey, String)>,
}

/// Who called, as far as it may be known outside the gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Caller {
    /// The call's namespace.
    pub namespace: String,
    /// `(none)` where not given, as in all fields below.
    pub feature: String,
    /// The customer.
    pub customer: String,
    /// HMAC of the user id with the installation's key.
    pub user_hash: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// The session.
    pub session: String,
}

/// The key of a dimension that the call does not carry.
pub const NONE: &str = "(none)";

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Answered with usage.
    Completed,
    /// Answered without usage: settled at the reserve.
    UsageMissing,
    /// The provider said no, or no connection: settled at (0, 0, 1).
    ProviderError,
    /// The client went away, or the stream broke off: settled at the reserve.
    Abandoned,
    /// Found open in the log after a restart: settled at the reserve.
    Replayed,
}

/// One attempt, settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// The admission's sequence.
    pub sequence: u64,
    /// The settlement's sequence; rows travel in its order.
    pub settled_sequence: u64,
    /// Envoy's, sent on to the provider.
    pub request_id: String,
    /// Which attempt of the request, from 0.
    pub attempt: u32,
    /// When it paused; equal to `admitted_at` where it did not.
    pub paused_at: UnixMs,
    /// When its reserve was taken, in the ledger's time.
    pub admitted_at: UnixMs,
    /// When it settled, in the ledger's time.
    pub settled_at: UnixMs,
    /// The accounts that it is charged to.
    pub accounts: Vec<AccountKey>,
    /// Observing budgets that match; the ledger names their windows.
    pub observed: Vec<ObjectName>,
    /// Who called.
    pub caller: Caller,
    /// The route; empty where a backend's model answered under its own name.
    pub route: String,
    /// The tier.
    pub tier: String,
    /// The backend.
    pub backend: ObjectName,
    /// The model as sent upstream.
    pub model: String,
    /// Tokens by class.
    pub usage: Usage,
    /// What it cost: what its accounts are charged.
    pub charge: Charge,
    /// What was reserved.
    pub reserve: Charge,
    /// What the best tier would have cost.
    pub best_tier_cost: NanoUsd,
    /// The rates used.
    pub price_version: PriceVersion,
    /// How it ended.
    pub outcome: Outcome,
}

/// A call that was refused or altered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The request.
    pub request_id: String,
    /// The account that decided, where one did.
    pub account: Option<AccountKey>,
    /// All accounts that it would have been charged to.
    pub accounts: Vec<AccountKey>,
    /// The stage, `Block`; empty where none did.
    pub stage: String,
    /// The refusal's code, `budget_exceeded`.
    pub reason: String,
    /// What it would have reserved.
    pub reserve: Charge,
    /// When it paused.
    pub paused_at: UnixMs,
    /// When it was answered.
    pub answered_at: UnixMs,
}
