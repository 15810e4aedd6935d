//! What all requests of this process share: policy, slices, log, and the one client thread.
//!
//! Envoy makes a filter configuration for each listener and for each change; they all lead here. A
//! second one with the same settings shares what the first began, another one is refused: a gateway has
//! one log and one ledger.

use crate::abi::{self, Level};
use crate::client;
use crate::clock::Clock;
use crate::config::Config;
use crate::decisions::Decisions;
use crate::log::{self, Log};
use crate::metrics::{Kind, Metrics};
use crate::waiters::Waiters;
use arc_swap::ArcSwap;
use plimsoll_core::gateway::Gateway;
use plimsoll_core::ids::Epoch;
use plimsoll_core::protocol::LogState;
use plimsoll_core::snapshot::Snapshot;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What a filter configuration and its filters hold.
pub type Configured = Arc<Shared>;

/// How long the end of the last configuration waits for the ledger to hear of it; a little longer than the client
/// takes for it at most.
const FAREWELL: Duration = Duration::from_secs(3);

/// What all requests share.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// What is held and owed.
    pub gateway: Gateway,
    /// What is in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// What was let out.
    pub log: Arc<Log>,
    /// The ledger's time.
    pub clock: Clock,
    /// Paused requests.
    pub waiters: Waiters,
    /// Refused calls.
    pub decisions: Decisions,
    /// What is counted.
    pub metrics: Metrics,
    /// Wakes the client thread.
    pub wake: Notify,
    /// The installation's key for user ids; set by the first Welcome.
    pub hmac_key: OnceLock<[u8; 32]>,
    /// What the log proved at the start.
    pub found: LogState,
    /// The ledger has closed this epoch: nothing is admitted until a new one has begun.
    pub closing: AtomicBool,
    /// Metered calls that have not settled: see [`Shared::count`].
    pub in_flight: AtomicI64,
    /// The client thread failed: nothing is admitted any more.
    pub stranded: AtomicBool,
    /// The last configuration is gone: the client says what is left, and ends.
    pub finishing: AtomicBool,
    /// The log could not be written the last time it was tried.
    pub log_failing: AtomicBool,
}

impl Shared {
    /// Why this gateway should get no traffic; `None`: it is ready.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.stranded.load(Relaxed) {
            return Some("the filter's client has failed, see the log; restart this gateway");
        }
        if self.hmac_key.get().is_none() {
            return Some("no operator has answered since this gateway started");
        }
        if self.snapshot.load().installation().is_none() {
            return Some("no policy has come yet");
        }
        // Where nothing enforces no call is refused for it: the gateway serves on.
        if self.log_failing.load(Relaxed) && self.snapshot.load().enforced_limits().next().is_some() {
            return Some(
                "the admission log can't be written, see this gateway's own log; free space in logDirectory or make \
                 it writable",
            );
        }
        if self.closing.load(Relaxed) {
            return Some("the ledger has closed this gateway's epoch; calls in flight are ending");
        }
        None
    }

    /// Counts a call in flight, before anything is taken for it. `None`: an epoch ends, so the call must
    /// not be admitted to it.
    #[must_use]
    pub fn count(self: &Arc<Self>) -> Option<Counted> {
        self.in_flight.fetch_add(1, SeqCst);
        let counted = Counted(self.clone());
        // In this order: an epoch begins where `closing` was set and nothing was counted after it.
        (!self.closing.load(SeqCst)).then_some(counted)
    }

    /// The metrics' text, with what is read at this moment.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.waiting.set(i64::try_from(self.gateway.paused()).unwrap_or(i64::MAX));
        self.metrics.log_delayed.set(count(self.log.delayed()));
        self.metrics.log_segments.set(i64::try_from(self.log.segments()).unwrap_or(i64::MAX));
        // Each admission has its settlement after it, so the last one stored is the last record when nothing is open.
        self.metrics.log_unstored.set(count(self.log.sequence().saturating_sub(self.gateway.durable())));
        self.metrics.render()
    }

    /// Notes that the log could or could not be written; the change is told once.
    pub fn log_written(&self, result: Result<(), &log::LogError>) {
        match result {
            Ok(()) => {
                if self.log_failing.load(Relaxed) && self.log_failing.swap(false, Relaxed) {
                    abi::log(Level::Info, "plimsoll: the admission log can be written again");
                }
            }
            Err(error) => {
                self.metrics.log_failures.inc();
                if !self.log_failing.swap(true, Relaxed) {
                    abi::log(
                        Level::Error,
                        &format!("plimsoll: {error}; calls that a budget matches are refused until it can"),
                    );
                }
            }
        }
    }

    /// Counts a refusal.
    pub fn count_refusal(&self, code: &'static str) {
        self.metrics.refused.get_or_create(&Kind { kind: code }).inc();
    }
}

/// A call that is counted in flight. While there is one, no epoch begins.
#[derive(Debug)]
pub struct Counted(Configured);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

struct Running {
    shared: Configured,
    /// Filter configurations that lead here; none: it ends.
    configurations: usize,
    /// Says when the client thread has ended.
    ended: Receiver<()>,
}

static PROCESS: Mutex<Option<Running>> = Mutex::new(None);

fn process() -> MutexGuard<'static, Option<Running>> {
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What Envoy's configuration leads to. The first call opens the log and starts the client thread; each
/// is undone by [`release`].
///
/// While another configuration is in force this only counts. Where the last one is just going, it waits under the
/// lock until that client has let go of the log: the two can't have one directory, and a configuration that Envoy
/// gets refused here is not tried again.
///
/// # Errors
/// Says what is wrong with the settings or the node.
pub fn configure(bytes: &[u8]) -> Result<Configured, String> {
    let config = Config::read(bytes).map_err(|error| error.to_string())?;
    let mut process = process();
    if process.as_ref().is_some_and(|running| running.configurations == 0) {
        // It did not end in time for `release`; a disk that hangs, most likely.
        let_go(&mut process).map_err(|()| {
            "the client of the filter configuration before this one has not ended yet (does logDirectory's disk \
             answer?); apply this one again"
                .to_owned()
        })?;
    }
    if let Some(running) = process.as_mut() {
        if running.shared.config != config {
            return Err("filter_config differs from the one in force in this process; \
                        a gateway has one client: use the same settings everywhere, and restart Envoy to change them"
                .to_owned());
        }
        running.configurations += 1;
        return Ok(running.shared.clone());
    }
    let (shared, ended) = start(config)?;
    *process = Some(Running { shared: shared.clone(), configurations: 1, ended });
    Ok(shared)
}

/// A configuration is gone. With the last one the client returns what is held, closes the epoch where no
/// call is in flight, and ends.
///
/// That is waited for, 3 s at most, in Envoy's thread and under the lock. Mostly Envoy is ending, and the process
/// would be gone before the ledger has heard. If Envoy goes on (the filter was taken out of its last listener) no
/// call needs this filter any more, and one thing alone can wait for the lock: a new configuration, which needs the
/// log. A configuration that overlaps with another never waits: while one is left the count goes down, no more.
pub fn release(configured: Configured) {
    drop(configured);
    let mut process = process();
    let Some(running) = process.as_mut() else { return };
    running.configurations -= 1;
    if running.configurations == 0 {
        running.shared.finishing.store(true, Relaxed);
        running.shared.wake.notify_one();
        // Too late: it holds the log still, and a configuration that comes must know.
        let _ = let_go(&mut process);
    }
}

/// Waits for the client that ends. Its log stays as it is then, and the next start goes on with it.
fn let_go(process: &mut Option<Running>) -> Result<(), ()> {
    if let Some(running) = process
        && running.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout)
    {
        return Err(());
    }
    *process = None;
    Ok(())
}

fn start(config: Config) -> Result<(Configured, Receiver<()>), String> {
    let shared = share(config)?;
    let ended = client::spawn(shared.clone()).map_err(|error| format!("the client thread: {error}"))?;
    Ok((shared, ended))
}

/// Opens the log, for a client that is not there yet.
pub(crate) fn share(config: Config) -> Result<Configured, String> {
    let boot = boot_id().map_err(|error| format!("/proc/sys/kernel/random/boot_id: {error}"))?;
    let epoch = random_epoch().map_err(|error| format!("/dev/urandom: {error}"))?;
    let (log, found) = log::open(&config.log_directory, &boot, epoch).map_err(|error| error.to_string())?;
    let told = match found.state {
        LogState::New => "there was none".to_owned(),
        LogState::Intact => {
            format!("it is whole; {} calls that were open are charged their reserve", found.replayed)
        }
        LogState::Gap => "records are missing or damaged: it proves nothing, a new epoch begins".to_owned(),
        LogState::NodeCrashed => "it is of another boot: it proves nothing, a new epoch begins".to_owned(),
    };
    let level = if matches!(found.state, LogState::Gap) { Level::Warn } else { Level::Info };
    abi::log(level, &format!("plimsoll: admission log in {}: {told}", config.log_directory.display()));
    Ok(Arc::new(Shared {
        gateway: Gateway::new(config.gateway_id.clone(), log.epoch()),
        snapshot: ArcSwap::default(),
        log: Arc::new(log),
        clock: Clock::new(),
        waiters: Waiters::default(),
        decisions: Decisions::new(config.decisions_uncapped),
        metrics: Metrics::new(),
        wake: Notify::new(),
        hmac_key: OnceLock::new(),
        found: found.state,
        closing: AtomicBool::new(false),
        in_flight: AtomicI64::new(0),
        stranded: AtomicBool::new(false),
        finishing: AtomicBool::new(false),
        log_failing: AtomicBool::new(false),
        config,
    }))
}

fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// 128 random bits.
pub(crate) fn random_epoch() -> io::Result<Epoch> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Epoch(u128::from_be_bytes(bytes)))
}
