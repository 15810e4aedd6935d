//! The ledger's side of the protocol: who holds what of each account, who asks, who is refused.
//!
//! [`Ledger`] is the volatile part (waiting asks, noes, recalls, streams): it ends with its
//! [`Incarnation`]. [`Rows`] is the durable part: read before a step, saved and committed after it, and
//! only then are the step's answers sent. If a commit fails the `Ledger` must be dropped and a new one
//! made: gateways say Hello again, and totals are cumulative. Nothing here does I/O or reads a clock.

mod absurd;
mod asks;
mod ended;
mod hear;
mod rows;

use crate::account::{AccountKey, Amount, LimitKey};
use crate::ids::{Epoch, Incarnation, UnixMs};
use crate::policy::Enforcement;
use crate::protocol::{Answer, Ask, AskId, FromGateway, FromLedger, Grant, No};
pub use absurd::{Absurd, check};
pub use ended::{ended_before, over_before};
pub use rows::{Balance, EpochRecord, EpochState, Held, Rows, Standing};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
pub struct Ledger {
    incarnation: Incarnation,
    settings: Settings,
    limits: BTreeMap<LimitKey, Terms>,
    streams: BTreeMap<StreamId, Stream>,
    /// The stream that speaks for each gateway now.
    speakers: BTreeMap<String, StreamId>,
    /// What the epochs on a stream said of their slices, and what they were told.
    slices: HashMap<AccountKey, BTreeMap<Epoch, SliceView>>,
    /// Unmet asks in order of arrival, those of one gateway in its own order.
    asks: BTreeMap<(u64, AskId), Waiting>,
    asked: BTreeMap<(Epoch, AskId), u64>,
    next_ask: u64,
    /// By account, to whom *exhausted* was said, for which smallest reserve.
    exhausted: BTreeMap<AccountKey, BTreeMap<Epoch, Amount>>,
    /// What [`Rows::went_back`] said at the last step.
    went_back: bool,
    /// Limits whose terms fell since the last step.
    fallen: BTreeSet<LimitKey>,
    /// Reports whose rows did not sum to their totals.
    mismatches: u64,
    /// When windows that are over were last looked for.
    looked_for_ended: UnixMs,
    /// When this life began to serve.
    served_since: Option<UnixMs>,
}

#[derive(Clone, Debug)]
struct Stream {
    gateway: String,
    epoch: Epoch,
}

/// One epoch's slice of one account, as last heard and told.
#[derive(Clone, Copy, Debug, Default)]
struct SliceView {
    reserved: Amount,
    rate: Amount,
    w_max: Amount,
    recall: u64,
    recalled: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    stream: StreamId,
    epoch: Epoch,
    ask: Ask,
    /// When *contended* must be said.
    until: UnixMs,
}

/// Answers under way in one step.
#[derive(Default)]
struct Out {
    first: Vec<(StreamId, FromLedger)>,
    answers: BTreeMap<StreamId, Draft>,
}

#[derive(Default)]
struct Draft {
    /// Slices to tell the state of; the grant itself is read from the rows at the end of the step.
    slices: BTreeSet<AccountKey>,
    earmarks: Vec<AskId>,
    noes: Vec<No>,
    withdrawals: BTreeSet<AccountKey>,
}

impl Ledger {
    /// A fresh serving process: no stream, no ask, no no.
    #[must_use]
    pub fn new(incarnation: Incarnation, settings: Settings) -> Self {
        Self {
            incarnation,
            settings,
            limits: BTreeMap::new(),
            streams: BTreeMap::new(),
            speakers: BTreeMap::new(),
            slices: HashMap::new(),
            asks: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_ask: 0,
            exhausted: BTreeMap::new(),
            went_back: false,
            fallen: BTreeSet::new(),
            mismatches: 0,
            looked_for_ended: UnixMs(0),
            served_since: None,
        }
    }

    /// What `events` will read and write. Call [`Ledger::step`] with these rows and the same events.
    #[must_use]
    pub fn touches(&self, events: &[Event]) -> Touched {
        let mut touched = Touched::default();
        // Those that will be in force when the event's turn comes.
        let mut limits = &self.limits;
        for event in events {
            match event {
                Event::Said(stream, said) => self.touched_by(*stream, said, limits, &mut touched),
                Event::Limits(new) => {
                    let changed = |key: &LimitKey| self.limits.get(key) != new.get(key);
                    touched.accounts.extend(self.slices.keys().filter(|key| changed(&key.limit)).cloned());
                    touched.accounts.extend(self.exhausted.keys().filter(|key| changed(&key.limit)).cloned());
                    limits = new;
                }
                Event::Gone(_) | Event::Tick => {}
            }
        }
        // What comes free goes to those who wait, whatever else they need.
        let waiting = self.asks.values().flat_map(|waiting| &waiting.ask.needs);
        touched.accounts.extend(waiting.map(|need| need.account.clone()));
        touched
    }

    /// Carries out `events` in order. Send the messages only when `rows` is committed.
    pub fn step(&mut self, events: &[Event], rows: &mut Rows, now: UnixMs) -> Vec<(StreamId, FromLedger)> {
        let mut out = Out::default();
        let mut changed = BTreeSet::new();
        for event in events {
            match event {
                Event::Said(stream, said) => self.hear(*stream, said, rows, now, &mut out),
                Event::Gone(stream) => self.gone(*stream, rows, now),
                Event::Limits(limits) => changed.extend(self.set_limits(limits)),
                Event::Tick => {}
            }
        }
        self.went_back = rows.went_back();
        self.count_lost(rows, now);
        self.forget_ended(now);
        self.serve_asks(rows, now, &mut out);
        self.recall(rows, &mut out);
        self.withdraw_noes(&changed, rows, &mut out);
        self.finish(rows, now, out)
    }

    /// When to step with [`Event::Tick`] at the latest: an ask's pause ends, a gateway is to be counted lost.
    #[must_use]
    pub fn next(&self, now: UnixMs) -> UnixMs {
        let ask = self.asks.values().map(|waiting| waiting.until).min().unwrap_or(UnixMs::NEVER);
        ask.min(now.plus(LOST_LOOK_MS)).max(now.plus(1))
    }

    /// Open streams by gateway id.
    pub fn gateways(&self) -> impl Iterator<Item = (&str, StreamId)> {
        self.speakers.iter().map(|(gateway, stream)| (gateway.as_str(), *stream))
    }

    /// Accounts on which *exhausted* stands against some gateway, in order.
    pub fn exhausted(&self) -> impl Iterator<Item = &AccountKey> + Clone {
        self.exhausted.keys()
    }

    /// Asks that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.asks.len()
    }

    /// Whether commits are known to be lost; then nothing is granted until every known gateway has declared
    /// itself. As of the last step.
    #[must_use]
    pub fn went_back(&self) -> bool {
        self.went_back
    }

    /// Reports whose rows did not sum to their totals: a defect, or a log that was tampered with.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// Returns the limits whose terms differ.
    fn set_limits(&mut self, limits: &BTreeMap<LimitKey, Terms>) -> BTreeSet<LimitKey> {
        let changed = |key: &&LimitKey| self.limits.get(*key) != limits.get(*key);
        let changed = self.limits.keys().chain(limits.keys()).filter(changed).cloned().collect();
        for (key, terms) in &self.limits {
            let left = limits.get(key).map_or(Amount(i64::MIN), |new| new.block_at);
            if left < terms.block_at {
                self.fallen.insert(key.clone());
            }
        }
        self.limits.clone_from(limits);
        changed
    }

    /// What grants of `account` may reach; nothing where no budget in force enforces it.
    fn block_at(&self, account: &AccountKey) -> Amount {
        match self.limits.get(&account.limit) {
            Some(terms) if terms.enforcement == Enforcement::Enforce => terms.block_at,
            Some(_) | None => Amount(i64::MIN / 4),
        }
    }

    /// Gateways on a stream, at least 1.
    fn live(&self) -> i64 {
        i64::try_from(self.speakers.len()).unwrap_or(i64::MAX).max(1)
    }

    fn finish(&mut self, rows: &Rows, now: UnixMs, out: Out) -> Vec<(StreamId, FromLedger)> {
        let mut messages = out.first;
        for (stream, draft) in out.answers {
            let Some(epoch) = self.streams.get(&stream).map(|stream| stream.epoch) else { continue };
            let Draft { slices, earmarks, noes, withdrawals } = draft;
            let grants = slices.into_iter().map(|account| self.grant_message(epoch, account, rows)).collect();
            messages.push((
                stream,
                FromLedger::Answer(Answer {
                    grants,
                    earmarks,
                    noes,
                    withdrawals: withdrawals.into_iter().collect(),
                    durable: rows.epochs.get(&epoch).map_or(0, |record| record.through),
                    now,
                }),
            ));
        }
        messages
    }

    fn grant_message(&self, epoch: Epoch, account: AccountKey, rows: &Rows) -> Grant {
        let size = self.size(&account, epoch, Amount::ZERO, rows);
        let view = self.view(&account, epoch);
        let held = rows.held(&account, epoch);
        Grant {
            account,
            granted: held.granted,
            size: size.size,
            small: size.small,
            recall: view.recall,
            recalled: view.recalled,
        }
    }

    fn view(&self, account: &AccountKey, epoch: Epoch) -> SliceView {
        self.slices.get(account).and_then(|views| views.get(&epoch)).copied().unwrap_or_default()
    }

    fn view_mut(&mut self, account: &AccountKey, epoch: Epoch) -> &mut SliceView {
        self.slices.entry(account.clone()).or_default().entry(epoch).or_default()
    }
}

/// How often silent gateways are looked for.
const LOST_LOOK_MS: i64 = 10_000;
