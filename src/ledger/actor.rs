//! The one task that owns protocol and store: take what waits, step and commit, then answer.
//!
//! Group commit: everything that came while the last commit ran goes into the next. After a failed
//! commit the protocol's volatile half is gone with its incarnation: every stream is closed, and gateways
//! say Hello again. Nothing here waits for a stream: one that doesn't take its answers is cut.

use super::clock::Clock;
use super::metrics::Metrics;
use super::server::LedgerState;
use super::spend::{SpendBoard, moved};
use super::store::{Store, StoreError};
use super::stream::Room;
use crate::random;
use plimsoll_core::account::LimitKey;
use plimsoll_core::ids::{Epoch, Incarnation};
use plimsoll_core::ledger::{EpochState, Event, Ledger, Rows, Settings, StreamId, Terms};
use plimsoll_core::policy::{PolicyKey, PolicyObject};
use plimsoll_core::protocol::{FromGateway, FromLedger};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Events in one commit.
const MAX_BATCH: usize = 512;
/// How often a store that failed is tried again while nobody asks.
const RETRY: Duration = Duration::from_secs(2);

/// What the task is told.
pub(super) enum Input {
    /// A stream said Hello; its answers go to `out`.
    Opened(StreamId, String, Epoch, mpsc::Sender<Out>),
    /// A stream said something, which takes up this room until it is committed.
    Said(StreamId, FromGateway, Option<Room>),
    /// A stream ended.
    Gone(StreamId),
    /// The limits in force; answered when they are committed.
    Limits(BTreeMap<LimitKey, Terms>, oneshot::Sender<()>),
    /// Of policy these are in force from now on, and these no more.
    Remember(Remember),
    /// Close every stream and end.
    Stop,
}

/// What a stream is told.
pub(super) enum Out {
    /// Send this.
    Say(FromLedger),
    /// End, with this reason.
    Close(&'static str),
}

struct Open {
    gateway: String,
    epoch: Epoch,
    out: mpsc::Sender<Out>,
}

pub(super) struct Actor<S> {
    pub store: Arc<S>,
    pub clock: Arc<Clock>,
    pub settings: Settings,
    pub inputs: mpsc::Receiver<Input>,
    pub board: Arc<SpendBoard>,
    pub state: watch::Sender<LedgerState>,
    pub metrics: Metrics,
    pub life: Life,
}

/// What ends with a failed commit, and what outlives it.
pub(super) struct Life {
    ledger: Ledger,
    streams: HashMap<StreamId, Open>,
    /// Told to every new incarnation before anything else.
    limits: BTreeMap<LimitKey, Terms>,
    /// What the board believes of each open epoch.
    epochs: BTreeMap<Epoch, EpochState>,
    /// The gateways that were named as missing.
    undeclared: BTreeSet<String>,
    fresh: bool,
}

impl Life {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            ledger: Ledger::new(incarnation(), settings),
            streams: HashMap::new(),
            limits: BTreeMap::new(),
            epochs: BTreeMap::new(),
            undeclared: BTreeSet::new(),
            fresh: true,
        }
    }
}

/// 128 random bits.
fn incarnation() -> Incarnation {
    // A generator that gives nothing leaves the clock, which differs between two lives as well.
    let clock = |_| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        since.as_nanos().to_be_bytes()
    };
    Incarnation(u128::from_be_bytes(random::bytes().unwrap_or_else(clock)))
}

/// Changed and removed policy, and who waits for it to be kept.
pub(super) type Remember = (Vec<PolicyObject>, Vec<PolicyKey>, oneshot::Sender<Result<(), StoreError>>);

/// One batch: what the protocol sees, and who waits for its commit.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    limits: Vec<oneshot::Sender<()>>,
    remember: Vec<Remember>,
    stop: bool,
    rooms: Vec<Room>,
}

impl<S: Store> Actor<S> {
    pub(super) async fn run(mut self) {
        loop {
            let mut batch = Batch::default();
            let first = tokio::time::timeout(self.patience(), self.inputs.recv()).await;
            match first {
                Err(_) => batch.events.push(Event::Tick),
                Ok(None) => return,
                Ok(Some(input)) => self.take(input, &mut batch),
            }
            while batch.events.len() < MAX_BATCH && !batch.stop {
                match self.inputs.try_recv() {
                    Ok(input) => self.take(input, &mut batch),
                    Err(_) => break,
                }
            }
            if !batch.events.is_empty() {
                self.carry_out(&batch.events).await;
            }
            for (changed, removed, answer) in batch.remember {
                let _ = answer.send(self.store.remember(changed, removed).await);
            }
            for waiting in batch.limits {
                // Whoever asked may have gone.
                let _ = waiting.send(());
            }
            if batch.stop {
                self.close_all("the ledger is shutting down; connect again");
                return;
            }
        }
    }

    fn patience(&self) -> Duration {
        if matches!(*self.state.borrow(), LedgerState::Failed { .. }) {
            return RETRY;
        }
        let now = self.clock.now();
        Duration::from_millis(self.life.ledger.next(now).since(now).clamp(1, 60_000).unsigned_abs())
    }

    fn take(&mut self, input: Input, batch: &mut Batch) {
        match input {
            Input::Opened(stream, gateway, epoch, out) => {
                // One stream speaks for a gateway, the latest. An older one is a connection that died
                // without saying so, or a second gateway with the same id.
                let same = |open: &Open| open.epoch == epoch || open.gateway == gateway;
                let older: Vec<StreamId> =
                    self.life.streams.iter().filter(|(_, open)| same(open)).map(|(id, _)| *id).collect();
                for older in older {
                    self.close(older, "a newer stream speaks for this gateway");
                    batch.events.push(Event::Gone(older));
                }
                self.life.streams.insert(stream, Open { gateway, epoch, out });
            }
            // What a closed stream still had to say is said again on the next.
            Input::Said(stream, message, room) if self.life.streams.contains_key(&stream) => {
                self.metrics.hear(&message);
                batch.events.push(Event::Said(stream, message));
                batch.rooms.extend(room);
            }
            Input::Said(..) => {}
            Input::Gone(stream) => {
                if self.life.streams.remove(&stream).is_some() {
                    batch.events.push(Event::Gone(stream));
                }
            }
            Input::Limits(limits, done) => {
                self.life.limits.clone_from(&limits);
                batch.events.push(Event::Limits(limits));
                batch.limits.push(done);
            }
            Input::Remember(remember) => batch.remember.push(remember),
            Input::Stop => batch.stop = true,
        }
    }

    async fn carry_out(&mut self, events: &[Event]) {
        let started = Instant::now();
        let result = self.commit(events).await;
        self.metrics.seconds.observe(started.elapsed().as_secs_f64());
        // A batch is far below 2^32.
        self.metrics.batch.observe(f64::from(u32::try_from(events.len()).unwrap_or(u32::MAX)));
        match result {
            Ok(stepped) => self.answer(stepped).await,
            Err(error) => self.fail(&error),
        }
    }

    async fn commit(&mut self, events: &[Event]) -> Result<Stepped, StoreError> {
        let now = self.clock.now();
        if matches!(*self.state.borrow(), LedgerState::Failed { .. }) {
            // A step that changes nothing writes nothing, and would prove nothing.
            self.store.probe(now).await?;
        }
        let Life { ledger, limits, fresh, .. } = &mut self.life;
        let mut first = Vec::new();
        let events = if std::mem::take(fresh) {
            first.push(Event::Limits(limits.clone()));
            first.extend_from_slice(events);
            &first
        } else {
            events
        };
        let touched = ledger.touches(events);
        let step = |rows: &mut Rows| {
            // The step's state may be in pieces after a panic; `fail` throws it away.
            catch_unwind(AssertUnwindSafe(|| {
                let messages = ledger.step(events, rows, now);
                Stepped {
                    messages,
                    moved: moved(rows),
                    epochs: rows.epochs.iter().map(|(epoch, record)| (*epoch, record.state)).collect(),
                    undeclared: rows.undeclared().map(|(_, gateway)| gateway.to_owned()).collect(),
                    rows: u64::try_from(rows.usage.len()).unwrap_or(u64::MAX),
                }
            }))
        };
        match self.store.commit(touched, now, step).await? {
            Ok(stepped) => Ok(stepped),
            Err(panic) => Err(StoreError::Bug(panic_text(panic.as_ref()))),
        }
    }

    async fn answer(&mut self, stepped: Stepped) {
        let Stepped { messages, moved, epochs, undeclared, rows } = stepped;
        self.metrics.commits.inc();
        self.metrics.rows.inc_by(rows);
        let mut slow = Vec::new();
        for (stream, message) in messages {
            let Some(open) = self.life.streams.get(&stream) else { continue };
            self.metrics.say(&message);
            if open.out.try_send(Out::Say(message)).is_err() {
                slow.push(stream);
            }
        }
        self.cut(slow);
        let changed = |(epoch, state): (&Epoch, &EpochState)| {
            self.life.epochs.get(epoch).is_some_and(|was| was != state)
        };
        let is_gone = |epoch: &Epoch| !epochs.contains_key(epoch);
        // Gone: retired by hand, beside us.
        let turned = epochs.iter().any(changed) || self.life.epochs.keys().any(is_gone);
        self.life.epochs = epochs;
        self.life.epochs.retain(|_, state| *state != EpochState::Closed);
        if turned {
            // What a gateway holds has become unaccounted, or is believed again, in all its accounts.
            match self.store.books().await {
                Ok(books) => self.board.replace(&books),
                Err(error) => tracing::warn!(%error, "spend is shown as of an earlier commit"),
            }
        } else {
            self.board.update(moved);
        }
        let ledger = &self.life.ledger;
        self.board.set_exhausted(ledger.exhausted());
        self.metrics.waiting.set(i64::try_from(ledger.waiting()).unwrap_or(i64::MAX));
        self.metrics.gateways.set(i64::try_from(ledger.gateways().count()).unwrap_or(i64::MAX));
        self.metrics.mismatches.set(i64::try_from(ledger.mismatches()).unwrap_or(i64::MAX));
        let state = if ledger.went_back() { LedgerState::WentBack } else { LedgerState::Serving };
        if self.life.undeclared != undeclared {
            for gateway in &undeclared {
                tracing::error!(
                    gateway,
                    "has not said Hello since the ledger went back; start it, or run: {}",
                    retirement(gateway, self.store.path())
                );
            }
            self.life.undeclared = undeclared;
        }
        self.enter(state);
    }

    /// Ends streams that don't take their answers; the ledger hears of it with the next batch.
    fn cut(&mut self, mut slow: Vec<StreamId>) {
        slow.dedup();
        for stream in slow {
            let Some(open) = self.life.streams.get(&stream) else { continue };
            tracing::warn!(gateway = open.gateway, "a stream that does not take its answers is cut");
            self.metrics.cut.inc();
            // Its task sees the closed channel, and says Gone.
            let (closed, _) = mpsc::channel(1);
            if let Some(open) = self.life.streams.get_mut(&stream) {
                open.out = closed;
            }
        }
    }

    fn fail(&mut self, error: &StoreError) {
        self.metrics.failures.inc();
        self.close_all("the ledger could not commit; connect again");
        let limits = std::mem::take(&mut self.life.limits);
        let epochs = std::mem::take(&mut self.life.epochs);
        let undeclared = std::mem::take(&mut self.life.undeclared);
        self.life = Life { limits, epochs, undeclared, ..Life::new(self.settings.clone()) };
        self.metrics.gateways.set(0);
        self.metrics.waiting.set(0);
        self.enter(LedgerState::Failed { why: error.to_string() });
    }

    fn enter(&self, state: LedgerState) {
        let entered = self.state.send_if_modified(|current| {
            let changed = *current != state;
            if changed {
                *current = state;
            }
            changed
        });
        if entered {
            match &*self.state.borrow() {
                LedgerState::Serving => tracing::info!("the ledger serves"),
                LedgerState::WentBack => {
                    tracing::error!(
                        "the ledger went back: nothing is granted until every gateway has said Hello"
                    );
                }
                LedgerState::Failed { why } => tracing::error!(why, "the ledger grants nothing"),
            }
        }
    }

    fn close(&mut self, stream: StreamId, why: &'static str) {
        if let Some(open) = self.life.streams.remove(&stream) {
            // Full: it ends all the same, without the reason.
            let _ = open.out.try_send(Out::Close(why));
        }
    }

    fn close_all(&mut self, why: &'static str) {
        for stream in self.life.streams.keys().copied().collect::<Vec<_>>() {
            self.close(stream, why);
        }
    }
}

/// What a committed step leaves to do.
struct Stepped {
    messages: Vec<(StreamId, FromLedger)>,
    moved: Vec<(plimsoll_core::account::AccountKey, super::spend::Spent)>,
    epochs: BTreeMap<Epoch, EpochState>,
    undeclared: BTreeSet<String>,
    rows: u64,
}

/// The command that retires `gateway`, for a shell.
fn retirement(gateway: &str, ledger: &Path) -> String {
    // An older build may have stored any id; and no path is known to be harmless.
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    format!("plimsoll retire {} --ledger {}", quoted(gateway), quoted(&ledger.display().to_string()))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_retire_a_gateway_is_whole_and_runs_nothing_else() {
        let ledger = Path::new("/var/lib/plimsoll/ledger.db");
        assert_eq!(
            retirement("gateway-3", ledger),
            "plimsoll retire 'gateway-3' --ledger '/var/lib/plimsoll/ledger.db'"
        );
        assert_eq!(
            retirement("x'; reboot #", ledger),
            r"plimsoll retire 'x'\''; reboot #' --ledger '/var/lib/plimsoll/ledger.db'"
        );
    }
}
