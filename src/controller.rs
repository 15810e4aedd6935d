//! The loop: observe, plan, apply, report.
//!
//! One task owns the planner, so there is one order of things. Changes are gathered for at most
//! [`GATHER`], planned, and applied in the order in which they can't hurt: Envoy's clusters before the
//! policy that names them, the ledger's limits before the gateways'. Statuses come from what gateways
//! and ledger say they hold, never from what was meant.

mod applied;
mod clusters;
mod conditions;
mod earlier;
mod reporter;
mod touched;

use crate::config::{Config, ConfigError};
use crate::gateway::Discovery;
use crate::http::Health;
use crate::ledger::LedgerHandle;
use crate::metrics::Metrics;
use crate::report::{Report, Sink};
use crate::source::{Batch, Change, Fault, Places};
use clusters::Clusters;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::{Budget, PolicyKey, PolicyObject};
use plimsoll_plan::{EventKind, Planner, Settings, World};
use reporter::{Reporter, Scene};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(20);

/// After such a pause nothing more is expected.
const PAUSE: Duration = Duration::from_millis(2);

/// The least time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The longest sleep; the loop shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What the controller works with.
#[derive(Debug)]
pub struct Parts<K> {
    /// The ledger, serving.
    pub ledger: LedgerHandle,
    /// Envoy's configuration, served.
    pub discovery: Arc<Discovery>,
    /// The settings file and what it said.
    pub config: (PathBuf, Config),
    /// What budgets were in force before this process.
    pub remembered: BTreeMap<ObjectName, Budget>,
    /// Where objects stand.
    pub places: Places,
    /// Where reports go.
    pub sink: K,
    /// Where the latest report is read by HTTP.
    pub latest: watch::Sender<Arc<Report>>,
    /// Liveness and readiness.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Metrics,
    /// Makes versions of secrets tell nothing about them.
    pub salt: [u8; 16],
    /// Tells the source what the settings are.
    pub settings: watch::Sender<Settings>,
}

/// What it hears.
#[derive(Debug)]
pub struct Inputs {
    /// From the source of objects.
    pub batches: mpsc::Receiver<Batch>,
    /// From the settings file.
    pub configs: mpsc::Receiver<Result<Config, ConfigError>>,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody is let in.
    Waiting,
    /// Gateways go on with what they hold.
    Resumed,
    /// Everything there is was told, and is about to be planned for the first time.
    First,
    /// There is a plan.
    Planned,
}

/// The controller's state.
#[derive(Debug)]
struct Controller<K> {
    parts: Parts<K>,
    phase: Phase,
    planner: Planner,
    clusters: Clusters,
    source_faults: Vec<Fault>,
    config_fault: Option<Fault>,
    /// Changes of budgets that the store has not kept yet.
    unremembered: BTreeMap<PolicyKey, Option<PolicyObject>>,
    memory_fault: Option<Fault>,
    sink_faults: Vec<Fault>,
    reporter: Reporter,
    stale: bool,
    reported: Option<Instant>,
}

/// Runs until `stop` is true or the source ends.
pub async fn run<K: Sink>(parts: Parts<K>, mut inputs: Inputs, mut stop: watch::Receiver<bool>) {
    let mut controller = Controller::new(parts);
    controller.resume().await;
    // Nothing is planned before the first batch: an empty world would let everything pass.
    let first = tokio::select! {
        first = controller.first(&mut inputs.batches) => first,
        () = stopped(&mut stop) => None,
    };
    let Some(first) = first else { return };
    controller.observe(first);
    controller.phase = Phase::First;
    controller.apply().await;
    controller.parts.health.set_planned();
    tracing::info!(
        budgets = controller.planner.world().budgets.len(),
        routes = controller.planner.world().routes.len(),
        backends = controller.planner.world().backends.len(),
        "the first plan is in force"
    );
    let parts = &controller.parts;
    let mut policy = parts.ledger.hub().changed();
    let mut spend = parts.ledger.spend().changed();
    let mut ledger = parts.ledger.state();
    let mut gateways = parts.discovery.gateways().changes();
    let mut sink_faults = parts.sink.faults();
    loop {
        controller.parts.health.beat();
        tokio::select! {
            () = stopped(&mut stop) => break,
            batch = inputs.batches.recv() => {
                let Some(batch) = batch else { break };
                controller.observe(batch);
                controller.gather(&mut inputs.batches).await;
                controller.apply().await;
            }
            Some(config) = inputs.configs.recv() => {
                controller.configure(config);
                controller.apply().await;
            }
            () = tokio::time::sleep_until(controller.wake()) => controller.apply().await,
            Ok(()) = policy.changed() => controller.stale = true,
            Ok(()) = spend.changed() => controller.stale = true,
            Ok(()) = ledger.changed() => controller.stale = true,
            Ok(()) = gateways.changed() => controller.stale = true,
            Ok(()) = sink_faults.changed() => {
                let faults = sink_faults.borrow_and_update().clone();
                tell_news(&faults, &controller.sink_faults);
                controller.sink_faults = faults;
                controller.stale = true;
            }
        }
        controller.tell();
    }
    // What happened in the last second should not wait for the next process.
    controller.reported = None;
    controller.tell();
}

/// Logs those of `faults` that are not among `known`.
fn tell_news<'a>(faults: impl IntoIterator<Item = &'a Fault>, known: &[Fault]) {
    for fault in faults.into_iter().filter(|fault| !known.contains(fault)) {
        tracing::warn!(place = fault.place, object = fault.object, "{}", fault.message);
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that whoever could stop us is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl<K: Sink> Controller<K> {
    fn new(mut parts: Parts<K>) -> Self {
        let mut planner = Planner::new(World::new(parts.config.1.settings()));
        planner.remember(std::mem::take(&mut parts.remembered));
        Self {
            parts,
            phase: Phase::Waiting,
            planner,
            clusters: Clusters::default(),
            source_faults: vec![],
            config_fault: None,
            unremembered: BTreeMap::new(),
            memory_fault: None,
            sink_faults: Vec::new(),
            reporter: Reporter::default(),
            stale: true,
            reported: None,
        }
    }

    /// Gateways that were there before this process go on with what they hold, also when what there is can't be
    /// read for hours: the ledger grants by what is remembered.
    async fn resume(&mut self) {
        if self.planner.untold().next().is_none() {
            return;
        }
        let delta = self.planner.replan(self.parts.ledger.now());
        let (remembered, _) = split(delta.policy);
        tracing::info!(budgets = self.planner.plan().budgets.len(), "goes on with what is remembered");
        self.parts.ledger.resume(self.planner.plan().limits.clone(), remembered).await;
        self.phase = Phase::Resumed;
    }

    /// The first batch that can be planned; what is in the way of one is told meanwhile.
    async fn first(&mut self, batches: &mut mpsc::Receiver<Batch>) -> Option<Batch> {
        let mut told = Vec::new();
        loop {
            self.parts.health.beat();
            let wake = self.window_due().min(Instant::now() + HEARTBEAT);
            let batch = tokio::select! {
                batch = batches.recv() => batch?,
                // Windows end meanwhile.
                () = tokio::time::sleep_until(wake) => {
                    if self.phase == Phase::Resumed {
                        self.apply().await;
                    }
                    continue;
                }
            };
            let [Change::Waiting(faults)] = &*batch else { return Some(batch) };
            tell_news(faults, &told);
            told.clone_from(faults);
            self.parts.health.wait_for(faults.iter().map(ToString::to_string).collect());
            let report =
                Report { time: self.parts.ledger.now(), faults: faults.clone(), ..Report::default() };
            self.parts.latest.send_replace(Arc::new(report));
        }
    }

    fn observe(&mut self, batch: Batch) {
        for change in batch {
            match change {
                Change::Put(mut object) => {
                    tracing::debug!(object = %object.id(), "changed");
                    self.reporter.take_over(&mut object);
                    self.planner.put(object);
                }
                Change::Gone(id) => {
                    tracing::info!(object = %id, "gone");
                    self.reporter.forget(&id);
                    self.planner.remove(&id);
                }
                Change::Whole => {
                    tracing::debug!("everything was read");
                    self.planner.whole();
                }
                Change::SecretsDenied { namespace, why } => self.planner.deny_secrets(&namespace, why),
                // Said before the first batch alone, and heard there.
                Change::Waiting(faults) | Change::Faults(faults) => {
                    tell_news(&faults, &self.source_faults);
                    self.source_faults = faults;
                    self.stale = true;
                }
            }
        }
    }

    async fn gather(&mut self, batches: &mut mpsc::Receiver<Batch>) {
        let end = Instant::now() + GATHER;
        while Instant::now() < end {
            let Ok(Some(batch)) = tokio::time::timeout(PAUSE, batches.recv()).await else { return };
            self.observe(batch);
        }
    }

    fn configure(&mut self, config: Result<Config, ConfigError>) {
        self.stale = true;
        let place = self.parts.config.0.display().to_string();
        let mut next = match config {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(
                    place = error.place,
                    "{}; the last good settings stay in force",
                    error.message
                );
                let message = format!("{}; the last good settings stay in force", error.message);
                self.config_fault = Some(Fault { place: error.place, object: None, message });
                return;
            }
        };
        let current = &mut self.parts.config.1;
        let bound = current.needs_restart(&next);
        self.config_fault = (!bound.is_empty()).then(|| {
            let message = format!("{} changed, which needs a restart of the operator", bound.join(", "));
            tracing::warn!(place, "{message}");
            Fault { place: place.clone(), object: None, message }
        });
        next.bind_to(current);
        if *current == next {
            return;
        }
        tracing::info!(place, "settings changed");
        let other_roots = current.provider_ca_file != next.provider_ca_file;
        *current = next;
        self.planner.set(current.settings());
        self.parts.settings.send_replace(current.settings());
        if other_roots {
            // No object says so.
            self.publish_clusters(Instant::now());
        }
    }

    /// Plans and puts into force.
    async fn apply(&mut self) {
        let at = Instant::now();
        let delta = self.planner.replan(self.parts.ledger.now());
        // The first plan lets gateways in, whatever is in it.
        let first = self.phase == Phase::First;
        if first {
            self.phase = Phase::Planned;
        }
        if first || delta.clusters || self.clusters.due().is_some_and(|due| due <= at) {
            self.publish_clusters(at);
        }
        self.reporter.planned(&delta);
        self.remember(&delta.policy).await;
        if !delta.policy.is_empty() || delta.limits || first {
            let (changed, removed) = split(delta.policy);
            tracing::info!(
                changed = changed.len(),
                removed = removed.len(),
                limits = delta.limits,
                "policy changes"
            );
            self.parts.metrics.published.inc_by(u64::try_from(changed.len() + removed.len()).unwrap_or(0));
            if delta.limits || first {
                let limits = self.planner.plan().limits.clone();
                self.parts.ledger.publish(limits, changed, removed).await;
            } else {
                self.parts.ledger.hub().publish(changed, removed);
            }
        }
        if !delta.objects.is_empty() {
            self.parts.metrics.plans.inc();
            self.parts.metrics.apply_seconds.observe(at.elapsed().as_secs_f64());
        }
        self.stale |= delta.clusters || delta.limits || delta.windows || !delta.objects.is_empty();
    }

    /// Has the ledger's store keep what budgets are in force. Before gateways hear of it.
    async fn remember(&mut self, changed: &BTreeMap<PolicyKey, Option<PolicyObject>>) {
        let budgets = changed.iter().filter(|(key, _)| matches!(key, PolicyKey::Budget(_)));
        self.unremembered.extend(budgets.map(|(key, object)| (key.clone(), object.clone())));
        if self.unremembered.is_empty() {
            return;
        }
        let (changed, removed) = split(self.unremembered.clone());
        let kept = self.parts.ledger.remember(changed, removed).await;
        if kept.is_ok() {
            self.unremembered.clear();
        }
        let fault = kept.err().map(|error| {
            let message = format!(
                "what is in force can't be remembered: {error}. An operator that restarts while a manifest is bad \
                 would not know what was in force before it"
            );
            Fault { place: self.parts.ledger.place().to_owned(), object: None, message }
        });
        if let Some(fault) = fault.as_ref().filter(|fault| self.memory_fault.as_ref() != Some(*fault)) {
            tracing::warn!(place = fault.place, "{}", fault.message);
        }
        self.stale |= fault != self.memory_fault;
        self.memory_fault = fault;
    }

    fn publish_clusters(&mut self, now: Instant) {
        let Parts { config: (_, config), salt, discovery, .. } = &self.parts;
        let (wanted, world) = (&self.planner.plan().clusters, self.planner.world());
        let snapshot = self.clusters.update(wanted, world, &config.provider_ca_file, salt, now);
        discovery.publish(snapshot.clone());
    }

    /// When something is due although nothing is heard.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let mut wake = self.window_due().min(now + HEARTBEAT);
        if let Some(due) = self.clusters.due() {
            wake = wake.min(due);
        }
        if self.stale {
            wake = wake.min(self.reported.map_or(now, |at| at + REPORT_EVERY));
        }
        wake
    }

    /// When windows must be looked at.
    fn window_due(&self) -> Instant {
        let due = self.planner.next().since(self.parts.ledger.now()).clamp(0, 60_000);
        Instant::now() + Duration::from_millis(due.unsigned_abs())
    }

    /// Reports, if there is news and the last report is old enough.
    fn tell(&mut self) {
        let now = Instant::now();
        let early = self.reported.is_some_and(|at| now < at + REPORT_EVERY);
        if !self.stale || early {
            return;
        }
        self.stale = false;
        self.reported = Some(now);
        let report = self.report(self.parts.ledger.now());
        self.parts.metrics.observe(&report);
        self.parts.metrics.report_seconds.observe(now.elapsed().as_secs_f64());
        self.parts.sink.put(&report);
        self.parts.latest.send_replace(report);
    }

    fn report(&mut self, now: UnixMs) -> Arc<Report> {
        let Parts { ledger, discovery, places, sink, .. } = &mut self.parts;
        let plan = self.planner.plan();
        let applied = applied::applied(ledger, discovery, plan, self.clusters.snapshot(), now);
        let faults = self.config_fault.iter().chain(&self.memory_fault).chain(&self.source_faults);
        let faults = faults.chain(&self.sink_faults).cloned().collect();
        let scene = Scene { planner: &self.planner, places, memory: ledger.place() };
        let (report, events) = self.reporter.make(&scene, applied, faults, now);
        for (id, event) in events {
            sink.tell(&id, &event);
            match event.kind {
                EventKind::Normal => tracing::info!(object = %id, reason = event.reason, "{}", event.message),
                EventKind::Warning => {
                    tracing::warn!(object = %id, reason = event.reason, "{}", event.message)
                }
            }
        }
        report
    }
}

/// Changed objects, and the keys of those that are gone.
fn split(policy: BTreeMap<PolicyKey, Option<PolicyObject>>) -> (Vec<PolicyObject>, Vec<PolicyKey>) {
    let (mut changed, mut removed) = (Vec::new(), Vec::new());
    for (key, object) in policy {
        match object {
            Some(object) => changed.push(object),
            None => removed.push(key),
        }
    }
    (changed, removed)
}
