//! The client: the one thread of a gateway that talks to the ledger.
//!
//! It carries what [`Gateway`](plimsoll_core::gateway::Gateway) wants said, feeds in what the ledger says and
//! what the log holds, and wakes paused requests. It decides nothing. With no ledger it goes on: pauses
//! end, the log grows, a new stream is tried.

mod link;
mod outbox;
mod strand;
mod tls;

use crate::abi::{self, Level};
use crate::log::{Tail, TailError};
use crate::metrics::Kind;
use crate::process::{Shared, random_epoch};
use crate::status;
use link::{Link, LinkEvent};
use outbox::{Outbox, Useless};
use plimsoll_core::protocol::{FromGateway, FromLedger, LogState, PolicyAck, PolicyDelta, Welcome};
use plimsoll_core::snapshot::Snapshot;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};
use strand::outlive;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// The longest that the thread sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How often a log that could not be written is tried.
const PROBE: Duration = Duration::from_secs(1);
/// How often the log is read when nobody waits.
const READ_LOG: Duration = Duration::from_millis(100);
/// Rows read from the log at once.
const ROWS: usize = 2_000;
/// Decision records in one message.
const DECISIONS: usize = 1_000;
/// How long decision records wait for a report to go with.
const DECISIONS_WAIT: Duration = Duration::from_secs(5);
/// How long a clean end may take.
const FAREWELL: Duration = Duration::from_millis(2_500);

/// Starts the thread. What it returns hears when the thread has ended.
///
/// # Errors
/// The runtime, the metrics' address or the TLS files can't be used.
pub fn spawn(shared: Arc<Shared>) -> io::Result<std::sync::mpsc::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let link = Link::new(&shared.config)?;
    let listener = match shared.config.metrics_address {
        Some(address) => {
            let listener = std::net::TcpListener::bind(address).map_err(|error| {
                io::Error::new(error.kind(), format!("metricsAddress {address}: {error}"))
            })?;
            listener.set_nonblocking(true)?;
            Some(listener)
        }
        None => None,
    };
    let thread = std::thread::Builder::new().name("plimsoll".into());
    let (end, ended) = std::sync::mpsc::channel();
    thread.spawn(move || {
        runtime.block_on(async move {
            if let Some(listener) = listener.and_then(|listener| TcpListener::from_std(listener).ok()) {
                tokio::spawn(status::serve(listener, shared.clone()));
            }
            outlive(&shared, run(shared.clone(), link)).await;
        });
        // Its tasks hold the log; the next client may open it.
        drop(runtime);
        let _ = end.send(());
    })?;
    Ok(ended)
}

async fn run(shared: Arc<Shared>, link: Link) {
    let (events, mut inbox) = mpsc::channel(64);
    tokio::spawn(link.run(shared.clone(), events));
    let mut client = Client {
        replay: None,
        tail: None,
        unreadable: false,
        greeted: false,
        outbox: None,
        last_read: None,
        last_decisions: Instant::now(),
        last_probe: Instant::now(),
        farewell: None,
        shared,
    };
    loop {
        let mut sleep = client.turn();
        if client.shared.finishing.load(Relaxed) {
            if client.finish() {
                return;
            }
            sleep = sleep.min(Duration::from_millis(20));
        }
        tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => client.take(event),
                None => return,
            },
            () = client.shared.wake.notified() => {}
            () = outbox::room(client.outbox.as_ref().and_then(Outbox::awaited)) => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

struct Client {
    shared: Arc<Shared>,
    /// What is left of the replay; begins with the first Welcome, and runs once.
    replay: Option<Tail>,
    /// The log behind us; begins after the replay.
    tail: Option<Tail>,
    /// The log could not be read the last time.
    unreadable: bool,
    /// A Welcome came on this stream.
    greeted: bool,
    /// Where messages go.
    outbox: Option<Outbox>,
    last_read: Option<Instant>,
    last_decisions: Instant,
    last_probe: Instant,
    farewell: Option<Farewell>,
}

/// How far a clean end has come.
struct Farewell {
    begun: Instant,
    /// Close is the last that waits to be said, or said.
    said: bool,
    /// Close is sent; the stream is kept open until the ledger ends it.
    closed: Option<oneshot::Sender<()>>,
    /// The stream is gone.
    broken: bool,
    /// By the ledger: it has read to the end.
    heard: bool,
}

impl Client {
    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Opening(outbox) => {
                self.greeted = false;
                // A Hello of an epoch that has ended since must not be answered for the new one.
                self.outbox = Some(outbox).filter(|outbox| outbox.epoch == self.shared.gateway.epoch());
            }
            // Of a stream that was given up.
            LinkEvent::Heard(_) if self.outbox.is_none() => {}
            LinkEvent::Heard(message) => self.hear(message),
            LinkEvent::Broken { by_ledger } => {
                if let Some(farewell) = &mut self.farewell {
                    farewell.heard = by_ledger;
                }
                self.disconnect();
            }
        }
    }

    fn disconnect(&mut self) {
        if let Some(farewell) = &mut self.farewell {
            farewell.broken = true;
        }
        self.shared.gateway.disconnected();
        self.shared.metrics.connected.set(0);
        self.outbox = None;
        self.greeted = false;
    }

    fn hear(&mut self, message: FromLedger) {
        let kind = message.kind();
        self.shared.metrics.heard.get_or_create(&Kind { kind }).inc();
        match message {
            FromLedger::Welcome(welcome) => self.welcome(&welcome),
            FromLedger::Answer(answer) if self.greeted => {
                self.shared.clock.heard(answer.now);
                self.shared.gateway.answer(&answer, self.shared.clock.now());
            }
            FromLedger::PolicyDelta(delta) if self.greeted => self.apply(&delta),
            // Before the Welcome nothing else means anything.
            FromLedger::Answer(_) | FromLedger::PolicyDelta(_) => {}
        }
    }

    fn welcome(&mut self, welcome: &Welcome) {
        let shared = self.shared.clone();
        if welcome.epoch_closed {
            if !shared.closing.swap(true, SeqCst) {
                abi::log(
                    Level::Warn,
                    "plimsoll: the ledger has closed this gateway's epoch (it was counted lost, or its log was replaced); \
                     calls are refused until those in flight have ended, then a new one begins",
                );
            }
            self.disconnect();
            return;
        }
        if shared.closing.load(SeqCst) {
            // It would bring an ending epoch back, and what was replayed off its slices would be again.
            self.disconnect();
            return;
        }
        shared.clock.heard(welcome.now);
        shared.gateway.welcome(welcome, shared.clock.now());
        if self.tail.is_none() {
            if !self.replayed(welcome.durable) {
                // Nothing is admitted before the first Welcome is through; the next one goes on from here.
                self.disconnect();
                return;
            }
            self.tail = Some(Tail::new(shared.log.clone()));
        }
        // The key is the installation's; it never changes.
        let _ = shared.hmac_key.set(welcome.hmac_key);
        shared.metrics.connected.set(1);
        self.greeted = true;
    }

    /// Takes what earlier processes spent, and the ledger has not stored, off the slices that it names. Returns
    /// whether that is done.
    fn replayed(&mut self, durable: u64) -> bool {
        let shared = self.shared.clone();
        let tail = self.replay.get_or_insert_with(|| Tail::new(shared.log.clone()));
        loop {
            match tail.read(ROWS) {
                Ok(rows) if rows.is_empty() => break,
                Ok(rows) => {
                    rows.iter()
                        .filter(|row| row.settled_sequence > durable)
                        .for_each(|row| shared.gateway.replay(row));
                }
                Err(error @ TailError::Read(_)) => {
                    self.cannot_read(&error);
                    return false;
                }
                Err(error) => {
                    // Slices would be too large by what can't be read: nothing more is spent from this epoch.
                    self.give_log_up(&error);
                    break;
                }
            }
        }
        self.replay = None;
        true
    }

    /// Tells once that the log can't be read now.
    fn cannot_read(&mut self, error: &TailError) {
        if !std::mem::replace(&mut self.unreadable, true) {
            abi::log(Level::Error, &format!("plimsoll: {error}; it is tried again"));
        }
    }

    fn give_log_up(&self, error: &TailError) {
        if !self.shared.closing.swap(true, SeqCst) {
            abi::log(
                Level::Error,
                &format!(
                    "plimsoll: {error}; it proves nothing now: a new epoch begins when calls in flight have ended"
                ),
            );
        }
    }

    fn apply(&mut self, delta: &PolicyDelta) {
        let shared = self.shared.clone();
        let PolicyDelta { number, whole, objects, removed } = delta;
        let old = shared.snapshot.load_full();
        let (snapshot, rejected) = old.apply(*whole, objects, removed);
        for (key, why) in &rejected {
            shared.metrics.policy_rejected.inc();
            abi::log(
                Level::Warn,
                &format!(
                    "plimsoll: policy object {key} is not understood: {why}; its predecessor stays. Update this gateway."
                ),
            );
        }
        if let Some(installation) = snapshot.installation() {
            shared.gateway.set_ride_through(installation.ride_through_ms);
        }
        if self.farewell.is_some() {
            // What is free goes back now, whatever would be in force.
            return;
        }
        // Slices first: a call that finds the new budget must find its account. Those that go, go last: a call
        // that misses one finds the policy without it (see `Filter::decide`).
        let windows = |of: &Snapshot| -> Vec<_> {
            of.windows().map(|(spec, bounds)| (spec.to_owned(), bounds.to_vec())).collect()
        };
        let limits: HashSet<_> = snapshot.enforced_limits().cloned().collect();
        let gone: Vec<_> = old.enforced_limits().filter(|limit| !limits.contains(limit)).cloned().collect();
        let new = windows(&snapshot);
        if gone.is_empty() {
            shared.gateway.set_policy(limits, new);
            shared.snapshot.store(Arc::new(snapshot));
        } else {
            let both = windows(&old).into_iter().chain(new.iter().cloned());
            shared.gateway.set_policy(limits.iter().cloned().chain(gone), both);
            shared.snapshot.store(Arc::new(snapshot));
            shared.gateway.set_policy(limits, new);
        }
        self.say(FromGateway::PolicyAck(PolicyAck { number: *number, rejected }));
    }

    /// Everything that is due. Returns how long nothing will be.
    fn turn(&mut self) -> Duration {
        let shared = self.shared.clone();
        if shared.closing.load(SeqCst) {
            self.begin_epoch();
        }
        if shared.log.delayed() > 0 {
            let retried = shared.log.retry();
            shared.log_written(retried.as_ref().copied());
        } else if shared.log_failing.load(Relaxed) && self.last_probe.elapsed() >= PROBE {
            // No call may come to tell: this gateway is not ready.
            self.last_probe = Instant::now();
            let probed = shared.log.probe();
            shared.log_written(probed.as_ref().copied());
        }
        let now = shared.clock.now();
        if self.greeted {
            self.read_log();
        }
        self.flush();
        // What waits for room is said first: a tick's messages follow from those before it. After Close nothing is.
        let may_speak = self.outbox.as_ref().is_none_or(Outbox::is_flushed)
            && !self.farewell.as_ref().is_some_and(|farewell| farewell.said);
        let said = if may_speak {
            shared.gateway.tick(now)
        } else {
            shared.gateway.serve(now);
            Vec::new()
        };
        let reports = said.iter().any(|message| matches!(message, FromGateway::Report(_)));
        for message in said {
            self.say(message);
        }
        for id in shared.gateway.wakes() {
            shared.waiters.wake(id);
        }
        if self.greeted && may_speak {
            self.say_decisions(reports);
        }
        if self.outbox.as_ref().is_some_and(|outbox| !outbox.is_flushed()) {
            // Room wakes it; what the gateway would say next has to wait.
            return READ_LOG;
        }
        let next = u64::try_from(shared.gateway.next(now).since(now)).unwrap_or(0);
        Duration::from_millis(next.max(1)).min(LONGEST_SLEEP)
    }

    /// Records go with a report, or when they are many or old: nobody waits for them.
    fn say_decisions(&mut self, reports: bool) {
        let due = reports
            || self.shared.decisions.len() >= DECISIONS
            || self.last_decisions.elapsed() >= DECISIONS_WAIT
            || self.shared.finishing.load(Relaxed);
        if !due {
            return;
        }
        self.last_decisions = Instant::now();
        // They wait for a place in the outbox: they are said once.
        while self.outbox.as_ref().is_some_and(Outbox::has_room) {
            let decisions = self.shared.decisions.take(DECISIONS);
            if decisions.is_empty() {
                return;
            }
            self.say(FromGateway::Decisions(decisions));
        }
    }

    /// A clean end: every row stored, everything returned, the epoch closed. Returns whether it is over.
    fn finish(&mut self) -> bool {
        let shared = self.shared.clone();
        let farewell = self.farewell.get_or_insert_with(|| {
            // Nothing is in force any more: all that is free goes back.
            shared.gateway.set_policy([], []);
            shared.gateway.hurry();
            Farewell { begun: Instant::now(), said: false, closed: None, broken: false, heard: false }
        });
        if farewell.closed.is_some() {
            if !farewell.broken && farewell.begun.elapsed() <= FAREWELL {
                return false;
            }
            if farewell.heard {
                // A closed epoch takes nothing more: the next start begins another.
                let fresh = random_epoch().map_err(|error| error.to_string());
                let begun =
                    fresh.and_then(|epoch| shared.log.restart(epoch).map_err(|error| error.to_string()));
                if let Err(error) = begun {
                    abi::log(Level::Warn, &format!("plimsoll: the closed log stays: {error}"));
                }
            }
            // Else Close may not have come: the next start asks with the log as it is.
            return true;
        }
        if farewell.said {
            let over = farewell.begun.elapsed() > FAREWELL;
            // None: the stream broke just now.
            let Some(outbox) = self.outbox.take_if(|outbox| outbox.is_flushed()) else {
                return over || self.outbox.is_none();
            };
            self.greeted = false;
            farewell.closed = Some(outbox.close());
            return false;
        }
        let in_use = shared.in_flight.load(SeqCst) > 0 || shared.log.delayed() > 0;
        if !self.greeted || in_use || farewell.begun.elapsed() > FAREWELL {
            // The log goes on at the next start.
            return true;
        }
        self.last_read = None;
        let read = self.tail.as_ref().is_some_and(|tail| tail.is_at_end());
        if read && shared.gateway.is_stored() {
            shared.gateway.hurry();
            for message in shared.gateway.tick(shared.clock.now()) {
                self.say(message);
            }
            self.say(FromGateway::Close);
            if let Some(farewell) = &mut self.farewell {
                farewell.said = true;
            }
            return self.finish();
        }
        false
    }

    fn read_log(&mut self) {
        let shared = &self.shared;
        let Some(tail) = &mut self.tail else { return };
        let now = Instant::now();
        if self.last_read.is_some_and(|at| now.duration_since(at) < READ_LOG) {
            return;
        }
        let durable = shared.gateway.durable();
        let most = shared.gateway.room().min(ROWS);
        match tail.read(most) {
            Ok(rows) => {
                if std::mem::take(&mut self.unreadable) {
                    abi::log(Level::Info, "plimsoll: the admission log can be read again");
                }
                // A full read means more: read again at the next turn.
                self.last_read = (rows.len() < most).then_some(now);
                shared.gateway.settled(rows.into_iter().filter(|row| row.settled_sequence > durable));
            }
            Err(error @ TailError::Read(_)) => {
                self.last_read = Some(now);
                self.cannot_read(&error);
                return;
            }
            Err(error) => {
                self.tail = None;
                self.give_log_up(&error);
                return;
            }
        }
        tail.forget(durable);
    }

    /// A new life of the log, once nothing of the old one is in flight.
    fn begin_epoch(&mut self) {
        let shared = &self.shared;
        if shared.in_flight.load(SeqCst) > 0 {
            return;
        }
        let begun = random_epoch().map_err(|error| error.to_string()).and_then(|epoch| {
            shared.log.restart(epoch).map_err(|error| error.to_string())?;
            Ok(epoch)
        });
        match begun {
            Ok(epoch) => {
                shared.gateway.restart(epoch);
                self.tail = Some(Tail::new(shared.log.clone()));
                self.replay = None;
                shared.closing.store(false, SeqCst);
                abi::log(Level::Info, &format!("plimsoll: epoch {epoch} begins"));
                self.disconnect();
            }
            Err(error) => abi::log(Level::Error, &format!("plimsoll: a new epoch can't begin: {error}")),
        }
    }

    fn say(&mut self, message: FromGateway) {
        let Some(outbox) = &mut self.outbox else { return };
        outbox.say(message, Instant::now());
        self.flush();
    }

    fn flush(&mut self) {
        let Some(outbox) = &mut self.outbox else { return };
        let said = &self.shared.metrics.said;
        let count = |kind| {
            said.get_or_create(&Kind { kind }).inc();
        };
        match outbox.flush(Instant::now(), count) {
            Ok(()) => return,
            // On the next stream everything that was not heard is said again.
            Err(Useless::Stuck) => abi::log(
                Level::Warn,
                "plimsoll: the ledger does not take its messages; the stream is opened anew",
            ),
            Err(Useless::Ended) => {}
        }
        self.disconnect();
    }
}

/// What Hello says of the log: only a process's first one speaks of what was found.
pub(crate) fn log_state(shared: &Shared) -> LogState {
    if shared.hmac_key.get().is_some() { LogState::Intact } else { shared.found }
}
