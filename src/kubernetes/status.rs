//! Statuses on their way to the API server.
//!
//! [`Writer`] takes each report and never waits. A task of its own finds what changed, and writes it in
//! the order and at the rates of [`Queue`], by server-side apply, so that the status is ours and nothing
//! else is. Nothing is lost: what could not be written still differs from what is stored, and waits.

use super::apply::{Failure, Kind, Taken, apply};
use super::events::{self, Teller};
use super::faults::Faults;
use super::metrics::{Metrics, Requests};
use super::queue::{Job, Next, Queue, Wanted};
use super::stored::{Fingerprint, Stored};
use super::{at, next_pause};
use crate::report::{Report, Sink};
use crate::source::Fault;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Client;
use plimsoll_api::{AIBudget, ModelBackend, ModelRoute, ObjectId};
use plimsoll_core::ids::ObjectName;
use plimsoll_plan::{Event, object_id};
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Writes at the same time.
const FLIGHTS: usize = 8;

/// How long one may take.
const WITHIN: Duration = Duration::from_secs(10);

/// How long statuses rest that may not be written: somebody must act first.
const DENIED_FOR: Duration = Duration::from_secs(30);

/// The first and the longest pause while no write gets through.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// When it is said that no write gets through: a restart of the API server is no fault.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long stage changes are still written at the end.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// How long the tasks may take to end.
const END_WITHIN: Duration = Duration::from_secs(3);

/// Statuses that are taken apart before other tasks have their turn.
const AT_ONCE: usize = 256;

/// Statuses and Events go to an API server.
#[derive(Debug)]
pub struct Writer {
    newest: watch::Sender<Arc<Report>>,
    teller: Teller,
    faults: Faults,
    metrics: Metrics,
}

/// What writes. It ends by itself soon after its [`Writer`] is dropped.
#[derive(Debug)]
pub struct Tasks(JoinSet<()>);

impl Writer {
    /// Writes with `client` what `stored` does not have yet; `requests` are what the client counts.
    #[must_use]
    pub fn start(client: Client, stored: Arc<Stored>, requests: Requests) -> (Self, Tasks) {
        let (newest, reports) = watch::channel(Arc::default());
        let (faults, metrics) = (Faults::new(), Metrics { requests, ..Metrics::default() });
        let (teller, told) = Teller::new(Arc::clone(&stored), metrics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(events::run(client.clone(), told, faults.clone(), metrics.clone()));
        let task = Task {
            client,
            stored,
            queue: Queue::default(),
            report: Arc::default(),
            away: None,
            refused: BTreeMap::new(),
            measured: None,
            faults: faults.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn(task.run(reports));
        (Self { newest, teller, faults, metrics }, Tasks(tasks))
    }
}

impl Sink for Writer {
    fn put(&mut self, report: &Arc<Report>) {
        self.newest.send_replace(Arc::clone(report));
    }

    fn tell(&mut self, object: &ObjectId, event: &Event) {
        self.teller.tell(object, event);
    }

    fn faults(&self) -> watch::Receiver<Vec<Fault>> {
        self.faults.listen()
    }

    fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

impl Tasks {
    /// Waits until what is pending and urgent is written, for a short time.
    pub async fn end(mut self) {
        let ended = async { while self.0.join_next().await.is_some() {} };
        if timeout(END_WITHIN, ended).await.is_err() {
            tracing::warn!("not every status and Event could be written before the end");
        }
    }
}

type Landed = (Job, Result<Taken, Failure>);
/// Tasks of their own: what was given out is sent then, however long a report takes to compare.
type Flights = JoinSet<Landed>;

/// No write gets through.
#[derive(Debug)]
struct Away {
    since: Instant,
    pause: Duration,
    until: Instant,
}

/// Statuses of one kind that are refused.
#[derive(Debug, Default)]
struct Refusals {
    /// Namespaces in which no status may be written.
    namespaces: BTreeSet<String>,
    /// Objects whose status is no good.
    objects: BTreeSet<Arc<ObjectId>>,
    /// How many of these since one was taken: if nothing but refusals comes, it is the kind.
    in_a_row: usize,
}

struct Task {
    client: Client,
    stored: Arc<Stored>,
    queue: Queue,
    /// What the queue was told.
    report: Arc<Report>,
    away: Option<Away>,
    /// By kind, what is refused there.
    refused: BTreeMap<String, Refusals>,
    measured: Option<Instant>,
    faults: Faults,
    metrics: Metrics,
}

impl Task {
    async fn run(mut self, mut reports: watch::Receiver<Arc<Report>>) {
        let stored = Arc::clone(&self.stored);
        let mut flights = Flights::new();
        loop {
            let wake = self.depart(&mut flights);
            self.measure();
            tokio::select! {
                changed = reports.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let report = Arc::clone(&reports.borrow_and_update());
                    self.want_all(report).await;
                }
                () = stored.changed() => self.see(),
                Some(Ok((job, outcome))) = flights.join_next() => self.land(&job, outcome),
                () = at(wake) => {}
            }
        }
        self.flush(flights).await;
    }

    /// Stage changes are news that should not wait for the next process.
    async fn flush(mut self, mut flights: Flights) {
        self.queue.keep_stages();
        let end = Instant::now() + FLUSH_WITHIN;
        loop {
            let wake = self.depart(&mut flights).filter(|wake| *wake < end);
            if flights.is_empty() && wake.is_none() {
                return;
            }
            tokio::select! {
                Some(Ok((job, outcome))) = flights.join_next() => self.land(&job, outcome),
                () = at(wake) => {}
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    /// Begins what may be written now. When there may be more to do although nothing is heard.
    fn depart(&mut self, flights: &mut Flights) -> Option<Instant> {
        let now = Instant::now();
        // One is enough to find out whether anything gets through.
        let most = if self.away.is_some() { 1 } else { FLIGHTS };
        if let Some(away) = self.away.as_ref().filter(|away| now < away.until) {
            return Some(away.until);
        }
        while flights.len() < most {
            match self.queue.next(now.into_std()) {
                Next::Write(job) => drop(flights.spawn(self.write(job))),
                Next::Wait(until) => return Some(Instant::from_std(until)),
                Next::Nothing => return None,
            }
        }
        None
    }

    fn write(&self, job: Job) -> BoxFuture<'static, Landed> {
        match job.id.kind.as_str() {
            "AIBudget" => self.write_as::<AIBudget>(job),
            "ModelRoute" => self.write_as::<ModelRoute>(job),
            _ => self.write_as::<ModelBackend>(job),
        }
    }

    fn write_as<K: Kind>(&self, job: Job) -> BoxFuture<'static, Landed> {
        let name = ObjectName::new(&*job.id.namespace, &*job.id.name);
        let client = self.client.clone();
        // What is wanted stands in the report that the queue was told.
        let standing = K::standings(&self.report).get(&name).map(|standing| Arc::clone(&standing.status));
        let entry = self.stored.get(&job.id).filter(|entry| entry.uid == job.uid);
        Box::pin(async move {
            let Some((status, entry)) = standing.zip(entry) else { return (job, Err(Failure::Gone)) };
            let writing = AssertUnwindSafe(apply::<K>(&client, &job.id, &entry, &status)).catch_unwind();
            let outcome = match timeout(WITHIN, writing).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(Failure::Refused("a defect in the operator; see its log".to_owned())),
                Err(_) => Err(Failure::Away(format!(
                    "the API server does not answer within {} s",
                    WITHIN.as_secs()
                ))),
            };
            (job, outcome)
        })
    }

    fn land(&mut self, job: &Job, outcome: Result<Taken, Failure>) {
        let now = Instant::now();
        if !matches!(outcome, Err(Failure::Away(_))) {
            self.away = None;
            self.faults.set("statuses", None);
        }
        let kind = &job.id.kind;
        if let Err(failure) = &outcome {
            self.metrics.failures.get_or_create(&failure.why()).inc();
            tracing::debug!(object = %job.id, ?failure, "a status is not written");
        }
        match outcome {
            Ok(Taken { from, version, status }) => {
                self.metrics.writes.inc();
                self.accepted(&job.id);
                let there = self.stored.wrote(&job.id, &job.uid, [&from, &version], status);
                self.queue.written(job, status, there, now.into_std());
            }
            // A watch has it: it is the status that there is not.
            Err(Failure::Gone) if self.stored.get(&job.id).is_some_and(|entry| entry.uid == job.uid) => {
                self.refused(job, "its definition has no status subresource", now);
            }
            Err(Failure::Gone) => {
                self.forgive(kind, |refusals| {
                    refusals.objects.remove(&job.id);
                });
                self.queue.gone(job, now.into_std());
            }
            // Watches will have told in a moment what stands there now.
            Err(Failure::Conflict) => self.queue.late(job, now.into_std()),
            Err(Failure::Denied(rule)) => {
                self.refuse(kind, format!("statuses of {kind}s can't be written: {rule}"), |refusals| {
                    refusals.namespaces.insert(job.id.namespace.clone());
                });
                self.queue.failed(job, now.into_std());
                let here = (kind.clone(), Some(job.id.namespace.clone()));
                self.queue.bar(here, (now + DENIED_FOR).into_std());
            }
            Err(Failure::Refused(words)) => self.refused(job, &words, now),
            Err(Failure::Away(why)) => {
                self.queue.failed(job, now.into_std());
                self.pause(&why, now);
            }
        }
    }

    /// The status of one object is no good.
    fn refused(&mut self, job: &Job, words: &str, now: Instant) {
        let kind = &job.id.kind;
        let message = format!(
            "the status of {} is refused: {words}; if the definitions are of another version: \
             plimsoll crds | kubectl apply --server-side -f -",
            job.id
        );
        self.refuse(kind, message, |refusals| {
            refusals.objects.insert(Arc::clone(&job.id));
            refusals.in_a_row += 1;
        });
        self.queue.refused(job, now.into_std());
        if self.refused.get(kind).is_some_and(|refusals| refusals.in_a_row % FLIGHTS == 0) {
            self.queue.bar((kind.clone(), None), (now + DENIED_FOR).into_std());
        }
    }

    /// Notes what is refused; the first of a kind is told.
    fn refuse(&mut self, kind: &str, message: String, note: impl FnOnce(&mut Refusals)) {
        if !self.refused.contains_key(kind) {
            self.faults.set(kind, Some(message));
        }
        note(self.refused.entry(kind.to_owned()).or_default());
    }

    fn accepted(&mut self, id: &ObjectId) {
        self.forgive(&id.kind, |refusals| {
            refusals.in_a_row = 0;
            refusals.namespaces.remove(&id.namespace);
            refusals.objects.remove(id);
        });
    }

    /// What of a kind was refused and is not any more.
    fn forgive(&mut self, kind: &str, forgive: impl FnOnce(&mut Refusals)) {
        let Some(refusals) = self.refused.get_mut(kind) else { return };
        forgive(refusals);
        if refusals.namespaces.is_empty() && refusals.objects.is_empty() {
            self.refused.remove(kind);
            self.faults.set(kind, None);
        }
    }

    fn pause(&mut self, why: &str, now: Instant) {
        let away = self.away.get_or_insert(Away { since: now, pause: Duration::ZERO, until: now });
        // One that began before the pause says nothing new.
        if now >= away.until {
            away.pause = next_pause(away.pause, PAUSES);
            away.until = now + away.pause;
        }
        if now >= away.since + PATIENCE {
            let message =
                format!("statuses can't be written: {why}. Calls are metered and budgets enforced as before");
            self.faults.set("statuses", Some(message));
        }
    }

    /// Tells the queue what `report` changes.
    async fn want_all(&mut self, report: Arc<Report>) {
        let before = std::mem::replace(&mut self.report, Arc::clone(&report));
        self.want::<AIBudget>(&before, &report).await;
        self.want::<ModelRoute>(&before, &report).await;
        self.want::<ModelBackend>(&before, &report).await;
    }

    async fn want<K: Kind>(&mut self, before: &Report, report: &Report) {
        let (before, standings) = (K::standings(before), K::standings(report));
        let changed = standings.iter().filter(|(name, standing)| {
            // The report shares what is the same with the one before.
            before.get(name).is_none_or(|before| !before.is(standing))
        });
        for (count, (name, standing)) in changed.enumerate() {
            if count % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let status = Fingerprint::of(&*standing.status);
            let wanted = standing.uid.clone().map(|uid| Wanted { uid, status });
            self.queue.want(&id::<K>(name), wanted, std::time::Instant::now());
        }
        for name in before.keys().filter(|name| !standings.contains_key(*name)) {
            self.queue.want(&id::<K>(name), None, std::time::Instant::now());
        }
    }

    /// Tells the queue what the API server has.
    fn see(&mut self) {
        let now = std::time::Instant::now();
        for (id, entry) in self.stored.changes() {
            self.queue.see(&id, entry, now);
        }
    }

    fn measure(&mut self) {
        let now = Instant::now();
        self.metrics.pending.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
        if self.measured.is_some_and(|at| now < at + Duration::from_secs(1)) {
            return;
        }
        self.measured = Some(now);
        let oldest = self.queue.oldest(now.into_std()).as_secs();
        self.metrics.oldest.set(i64::try_from(oldest).unwrap_or(i64::MAX));
        // Nobody is left for whom it matters.
        let over: Vec<String> = self.refused.keys().filter(|kind| !self.queue.has(kind)).cloned().collect();
        for kind in over {
            self.forgive(&kind, |refusals| *refusals = Refusals::default());
        }
    }
}

fn id<K: Kind>(name: &ObjectName) -> Arc<ObjectId> {
    Arc::new(object_id(&K::kind(&()), name))
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task(…)")
    }
}
