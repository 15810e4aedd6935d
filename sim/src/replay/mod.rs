//! Sends recorded calls to gateways or providers and keeps every answer.
//!
//! Open loop: each call leaves when the trace says, and its latency counts from that instant, so that a
//! server that falls behind can't hide it. Closed loop: a number of clients, each with one call at a
//! time. What is counted stands in `report`; the connections in `client`.

mod client;
mod report;

pub use client::{Answer, End, Prompt, Said, Target, TargetError};
pub use report::{Percentiles, Report};

use crate::trace::Call;
use client::Pool;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

/// When calls leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As recorded, `speed` times as fast; at most `concurrency` at once.
    Open {
        /// 2 halves every pause.
        speed: f64,
        /// Calls at once; those due beyond it wait, and their latency counts the wait.
        concurrency: usize,
    },
    /// This many clients, each sending its next call when its last was answered.
    Closed {
        /// Clients.
        clients: usize,
    },
}

/// Which `max_tokens` a call carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxTokens {
    /// None, as most clients do.
    None,
    /// What the trace says came out.
    Recorded,
    /// This.
    Fixed(u64),
}

/// What to send, where, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The calls, by time.
    pub calls: Arc<Vec<Call>>,
    /// Where they go, in turn.
    pub targets: Vec<Target>,
    /// When they leave.
    pub pace: Pace,
    /// Start again when the trace ends.
    pub repeat: bool,
    /// Stop sending after this many calls.
    pub limit: Option<u64>,
    /// Stop sending after this long.
    pub duration: Option<Duration>,
    /// Give a call up after this long.
    pub timeout: Duration,
    /// Headers that every call carries.
    pub headers: Vec<(String, String)>,
    /// The bodies' bound.
    pub max_tokens: MaxTokens,
    /// Ask for usage in streams.
    pub include_usage: bool,
    /// Abandon every so-manieth call after the first bytes of its answer.
    pub abandon_every: Option<u64>,
}

/// Why a plan would send nothing.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Senseless {
    /// An empty trace.
    #[error("the trace holds no calls; below its header it needs a line for each")]
    NoCalls,
    /// Nowhere to go.
    #[error("there is no target; name at least one")]
    NoTargets,
    /// A bound that lets nothing through.
    #[error("{0} is 0, so that nothing would be sent; give 1 or more")]
    Zero(&'static str),
    /// No speed at which time passes.
    #[error("speed {0} is none; give a number above 0, say 1 for the recorded pace")]
    Speed(f64),
}

impl Plan {
    /// Whether the plan can send anything.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(&self) -> Result<(), Senseless> {
        let zero = match self.pace {
            Pace::Open { speed, .. } if !speed.is_finite() || speed <= 0.0 => {
                return Err(Senseless::Speed(speed));
            }
            Pace::Open { concurrency: 0, .. } => Some("concurrency"),
            Pace::Closed { clients: 0 } => Some("clients"),
            Pace::Open { .. } | Pace::Closed { .. } if self.limit == Some(0) => Some("limit"),
            Pace::Open { .. } | Pace::Closed { .. } if self.duration == Some(Duration::ZERO) => {
                Some("duration")
            }
            Pace::Open { .. } | Pace::Closed { .. } => None,
        };
        match zero {
            Some(what) => Err(Senseless::Zero(what)),
            None if self.calls.is_empty() => Err(Senseless::NoCalls),
            None if self.targets.is_empty() => Err(Senseless::NoTargets),
            None => Ok(()),
        }
    }

    /// Closed loop, 16 clients, one pass over `calls`.
    #[must_use]
    pub fn new(calls: Arc<Vec<Call>>, targets: Vec<Target>) -> Self {
        Self {
            calls,
            targets,
            pace: Pace::Closed { clients: 16 },
            repeat: false,
            limit: None,
            duration: None,
            timeout: Duration::from_secs(120),
            headers: Vec::new(),
            max_tokens: MaxTokens::None,
            include_usage: false,
            abandon_every: None,
        }
    }

    /// The call with this number, or none when the plan is at its end.
    fn call(&self, number: u64) -> Option<(&Call, Duration)> {
        if self.limit.is_some_and(|limit| number >= limit) || self.calls.is_empty() {
            return None;
        }
        let length = u64::try_from(self.calls.len()).unwrap_or(u64::MAX);
        let (round, at) = (number / length, usize::try_from(number % length).unwrap_or(0));
        if round > 0 && !self.repeat {
            return None;
        }
        let call = &self.calls[at];
        let span = self.calls.last().map_or(Duration::ZERO, |last| last.at);
        Some((call, span * u32::try_from(round).unwrap_or(u32::MAX) + call.at))
    }
}

/// A way to end a replay early: calls in flight are still awaited.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Sends nothing more.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    async fn wait(&self) {
        let mut watch = self.0.subscribe();
        // The sender lives as long as `self`.
        let _set = watch.wait_for(|stop| *stop).await;
    }
}

/// What is under way, for a line of progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Calls that left.
    pub sent: AtomicU64,
    /// Calls that were answered with 2xx.
    pub served: AtomicU64,
    /// Calls that were answered otherwise, or not at all.
    pub failed: AtomicU64,
}

struct Shared {
    plan: Plan,
    prompt: Prompt,
    pools: Vec<Pool>,
    progress: Arc<Progress>,
    answers: mpsc::Sender<Answer>,
}

/// Replays `plan`. Every answer goes to `keep` in the order of arrival, on the caller's task.
pub async fn replay(
    plan: Plan,
    stop: Stop,
    progress: Arc<Progress>,
    mut keep: impl FnMut(&Answer),
) -> Report {
    let started = Instant::now();
    // Bounded: a slow `keep` slows the replay instead of filling memory.
    let (answers, mut arriving) = mpsc::channel(1024);
    let shared = Arc::new(Shared {
        prompt: Prompt::default(),
        pools: plan.targets.iter().cloned().map(Pool::new).collect(),
        progress,
        answers,
        plan,
    });
    let sending = tokio::spawn(send(shared, stop, started));
    let mut report = Report::default();
    while let Some(answer) = arriving.recv().await {
        report.add(&answer);
        keep(&answer);
    }
    // A panic in a sender was printed; what arrived is reported.
    let _sent = sending.await;
    report.finish(started.elapsed())
}

async fn send(shared: Arc<Shared>, stop: Stop, started: Instant) {
    let end = shared.plan.duration.map(|duration| started + duration);
    match shared.plan.pace {
        Pace::Closed { clients } => {
            let next = Arc::new(AtomicU64::new(0));
            let clients: Vec<_> = (0..clients)
                .map(|_| {
                    let (shared, stop, next) = (shared.clone(), stop.clone(), next.clone());
                    tokio::spawn(async move {
                        while !stop.is_set() && end.is_none_or(|end| Instant::now() < end) {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if shared.plan.call(number).is_none() {
                                break;
                            }
                            one(shared.clone(), number, Instant::now(), started).await;
                        }
                    })
                })
                .collect();
            for client in clients {
                let _ended = client.await;
            }
        }
        Pace::Open { speed, concurrency } => {
            let places = Arc::new(Semaphore::new(concurrency));
            let mut number = 0;
            while let Some((_, at)) = shared.plan.call(number) {
                let due = started + faster(at, speed);
                if end.is_some_and(|end| due >= end) {
                    break;
                }
                let place = async {
                    tokio::time::sleep_until(due).await;
                    places.clone().acquire_owned().await
                };
                let place = tokio::select! {
                    place = place => place,
                    () = stop.wait() => break,
                };
                let Ok(place) = place else { break };
                let shared = shared.clone();
                tokio::spawn(async move {
                    one(shared, number, due, started).await;
                    drop(place);
                });
                number += 1;
            }
            // Every place free again: every call answered.
            let all = u32::try_from(concurrency).unwrap_or(u32::MAX);
            let _idle = places.acquire_many(all).await;
        }
    }
}

fn faster(at: Duration, speed: f64) -> Duration {
    at.div_f64(speed.max(0.001))
}

async fn one(shared: Arc<Shared>, number: u64, due: Instant, started: Instant) {
    let Some((call, _)) = shared.plan.call(number) else { return };
    let turn = usize::try_from(number).unwrap_or(0) % shared.pools.len().max(1);
    let Some(pool) = shared.pools.get(turn) else { return };
    shared.progress.sent.fetch_add(1, Ordering::Relaxed);
    let abandon = shared.plan.abandon_every.is_some_and(|every| every > 0 && number % every == every - 1);
    let sending = client::send(pool, &shared.plan, &shared.prompt, call, abandon);
    let said = match tokio::time::timeout_at(Instant::now() + shared.plan.timeout, sending).await {
        Ok(said) => said,
        Err(_) => Said::ended(End::TimedOut),
    };
    let ok = said.end == End::Completed && (200..300).contains(&said.status);
    let counter = if ok { &shared.progress.served } else { &shared.progress.failed };
    counter.fetch_add(1, Ordering::Relaxed);
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let answer = Answer {
        number,
        due_ms: u64::try_from((due - started).as_millis()).unwrap_or(u64::MAX),
        target: pool.target().url.clone(),
        feature: call.feature.clone(),
        user: call.user.clone(),
        model: call.model.clone(),
        stream: call.stream,
        latency_us: micros(due.elapsed()),
        first_byte_us: said.first_byte.map(|at| micros(at.saturating_duration_since(due))),
        said,
    };
    // The receiver outlives all senders.
    let _kept = shared.answers.send(answer).await;
}
