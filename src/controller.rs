//! The loop: observe, plan, apply, report.
//!
//! One task owns the planner, so there is one order of things. Changes are gathered for at most
//! [`GATHER`], planned, and applied in the order in which they can't hurt: Envoy's clusters before the
//! policy that names them, the ledger's limits before the gateways'. Statuses come from what gateways
//! and ledger say they hold, never from what was meant.

mod applied;
mod conditions;
pub mod memory;
mod stored;
mod touched;

use crate::config::{Config, ConfigError};
use crate::gateway::{Discovery, ResourceKey, Snapshot, cluster, secret};
use crate::http::Health;
use crate::ledger::LedgerHandle;
use crate::metrics::Metrics;
use crate::report::{Report, Sink, Standing};
use crate::source::{Batch, Change, Fault, Places};
use conditions::Conditions;
use kube::api::ObjectMeta;
use memory::Memory;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::{Budget, PolicyKey, PolicyObject};
use plimsoll_plan::{
    Applied, EnvoyCluster, EventKind, Planner, Problem, Settings, World, events, object_id, status,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stored::Stored;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use touched::Touched;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(20);

/// After such a pause nothing more is expected.
const PAUSE: Duration = Duration::from_millis(2);

/// The least time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How long a cluster outlives the policy that named it: gateways hear of both on different streams.
const LINGER: Duration = Duration::from_secs(30);

/// Names in one message.
const MOST_NAMES: usize = 10;

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
    /// What was in force before this process, and where that is kept.
    pub memory: (Memory, BTreeMap<ObjectName, Budget>),
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

/// The controller's state.
#[derive(Debug)]
struct Controller<K> {
    parts: Parts<K>,
    planner: Planner,
    /// What gateways should have by xDS.
    snapshot: Snapshot,
    /// Clusters that no policy names any more, and until when they stay.
    lingering: BTreeMap<String, (EnvoyCluster, Instant)>,
    clusters: BTreeMap<String, EnvoyCluster>,
    source_faults: Vec<Fault>,
    config_fault: Option<Fault>,
    memory_fault: Option<Fault>,
    sink_faults: Vec<Fault>,
    /// Of the last report: what is wrong with objects that can be read.
    problems: BTreeSet<Fault>,
    report: Arc<Report>,
    /// Statuses of before this process, of objects that no report had yet.
    stored: Stored,
    /// Condition lists, so that equal ones are held once.
    conditions: Conditions,
    /// What the report was made of.
    applied: Applied,
    /// Budgets that were planned anew since the report.
    touched: Touched,
    stale: bool,
    reported: Option<Instant>,
}

/// Runs until `stop` is true or the source ends.
pub async fn run<K: Sink>(mut parts: Parts<K>, mut inputs: Inputs, mut stop: watch::Receiver<bool>) {
    // Nothing is planned before the first batch: an empty world would let everything pass.
    let first = tokio::select! {
        first = first(&mut parts, &mut inputs.batches) => first,
        () = stopped(&mut stop) => None,
    };
    let Some(first) = first else { return };
    let mut controller = Controller::new(parts);
    controller.observe(first);
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

/// The first batch that can be planned; what is in the way of one is told meanwhile.
async fn first<K: Sink>(parts: &mut Parts<K>, batches: &mut mpsc::Receiver<Batch>) -> Option<Batch> {
    let mut told = Vec::new();
    loop {
        let batch = batches.recv().await?;
        let [Change::Waiting(faults)] = &*batch else { return Some(batch) };
        tell_news(faults, &told);
        told.clone_from(faults);
        parts.health.wait_for(faults.iter().map(ToString::to_string).collect());
        let report = Report { time: parts.ledger.now(), faults: faults.clone(), ..Report::default() };
        parts.latest.send_replace(Arc::new(report));
    }
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
        planner.remember(std::mem::take(&mut parts.memory.1));
        Self {
            parts,
            planner,
            snapshot: Snapshot::default(),
            lingering: BTreeMap::new(),
            clusters: BTreeMap::new(),
            source_faults: vec![],
            config_fault: None,
            memory_fault: None,
            sink_faults: Vec::new(),
            problems: BTreeSet::new(),
            report: Arc::default(),
            stored: Stored::default(),
            conditions: Conditions::default(),
            applied: Applied::default(),
            touched: Touched::All,
            stale: true,
            reported: None,
        }
    }

    fn observe(&mut self, batch: Batch) {
        for change in batch {
            match change {
                Change::Put(mut object) => {
                    tracing::debug!(object = %object.id(), "changed");
                    self.stored.take(&mut object, &self.report);
                    self.planner.put(object);
                }
                Change::Gone(id) => {
                    tracing::info!(object = %id, "gone");
                    self.stored.forget(&id);
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
        let buried = self.lingering.len();
        self.lingering.retain(|_, (_, until)| *until > at);
        if delta.clusters || buried != self.lingering.len() {
            self.publish_clusters(at);
        }
        self.touched.planned(&delta);
        self.remember(&delta.policy);
        // The first plan lets gateways in, whatever is in it.
        let first = !self.parts.ledger.is_open();
        if !delta.policy.is_empty() || delta.limits || first {
            let (mut changed, mut removed) = (Vec::new(), Vec::new());
            for (key, object) in delta.policy {
                match object {
                    Some(object) => changed.push(object),
                    None => removed.push(key),
                }
            }
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

    fn remember(&mut self, changed: &BTreeMap<PolicyKey, Option<PolicyObject>>) {
        let memory = &mut self.parts.memory.0;
        let noted = memory.note(changed, &self.planner.plan().policy);
        let fault = noted.err().map(|error| {
            let message = format!(
                "can't be written: {error}. Free space there: an operator that restarts while a manifest is bad \
                 would not know what was in force before it"
            );
            Fault { place: memory.path().display().to_string(), object: None, message }
        });
        if let Some(fault) = fault.as_ref().filter(|fault| self.memory_fault.as_ref() != Some(*fault)) {
            tracing::warn!(place = fault.place, "{}", fault.message);
        }
        self.stale |= fault != self.memory_fault;
        self.memory_fault = fault;
    }

    fn publish_clusters(&mut self, now: Instant) {
        let plan = self.planner.plan();
        let gone = self.clusters.iter().filter(|(name, _)| !plan.clusters.contains_key(*name));
        for (name, cluster) in gone {
            self.lingering.insert(name.clone(), (cluster.clone(), now + LINGER));
        }
        self.lingering.retain(|name, _| !plan.clusters.contains_key(name));
        self.clusters = plan.clusters.clone();
        let mut snapshot = Snapshot::default();
        let ca_file = &self.parts.config.1.provider_ca_file;
        for cluster in plan.clusters.values().chain(self.lingering.values().map(|(cluster, _)| cluster)) {
            snapshot.insert(ResourceKey::cluster(&cluster.name), &cluster::cluster(cluster, ca_file), b"");
            let Some(reference) = &cluster.inject_key else { continue };
            let World { secrets, secrets_denied, .. } = self.planner.world();
            let name = secret::name(reference);
            let resource = ResourceKey::secret(&name);
            match secrets.get(&reference.secret) {
                Some(keys) => {
                    if let Some(key) = keys.get(&reference.key) {
                        let content = secret::secret(&name, key.expose());
                        snapshot.insert(resource, &content, &self.parts.salt);
                    }
                }
                None if secrets_denied.contains_key(&reference.secret.namespace) => snapshot.leave(resource),
                None => {}
            }
        }
        self.snapshot = snapshot.clone();
        self.parts.discovery.publish(snapshot);
    }

    /// When something is due although nothing is heard.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + HEARTBEAT;
        let window = self.planner.next().since(self.parts.ledger.now()).max(0);
        if let Ok(window) = u64::try_from(window) {
            wake = wake.min(now + Duration::from_millis(window.min(60_000)));
        }
        if let Some(until) = self.lingering.values().map(|(_, until)| *until).min() {
            wake = wake.min(until);
        }
        if self.stale {
            wake = wake.min(self.reported.map_or(now, |at| at + REPORT_EVERY));
        }
        wake
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
        let report = self.make_report(self.parts.ledger.now());
        self.parts.metrics.observe(&report);
        self.parts.metrics.report_seconds.observe(now.elapsed().as_secs_f64());
        let report = Arc::new(report);
        self.parts.sink.put(&report);
        self.parts.latest.send_replace(Arc::clone(&report));
        self.report = report;
    }

    /// Only what can differ from the report before is made anew: most of 10,000 budgets stand still.
    fn make_report(&mut self, now: UnixMs) -> Report {
        let (world, plan) = (self.planner.world(), self.planner.plan());
        let applied = applied::applied(&self.parts.ledger, &self.parts.discovery, plan, &self.snapshot, now);
        let touched = std::mem::take(&mut self.touched).applied(&self.applied, &applied);
        let old = &self.report;
        let stored = std::mem::take(&mut self.stored);
        let mut report = Report { time: now, ..Report::default() };
        for (name, object) in &world.budgets {
            let before = same_object(&old.budgets, name, &object.metadata);
            if let (false, Some(before), Some(rows)) = (touched.contains(name), before, old.table.get(name)) {
                report.budgets.insert(name.clone(), before.clone());
                report.table.insert(name.clone(), Arc::clone(rows));
                continue;
            }
            let was = before.map(|before| &*before.status).or_else(|| stored.budgets.get(name));
            let mut status = status::budget(name, object, was, plan, &applied, now);
            self.conditions.share(&mut status.conditions);
            for event in events(was, &status) {
                let id = object_id("AIBudget", name);
                self.parts.sink.tell(&id, &event);
                match event.kind {
                    EventKind::Normal => {
                        tracing::info!(budget = %name, reason = event.reason, "{}", event.message);
                    }
                    EventKind::Warning => {
                        tracing::warn!(budget = %name, reason = event.reason, "{}", event.message);
                    }
                }
            }
            let rows = applied::rows(name, object, &status, plan, &applied);
            // What is the same is held once, while the report before is still read.
            report.table.insert(name.clone(), same(old.table.get(name), rows));
            let uid = object.metadata.uid.as_deref();
            report.budgets.insert(name.clone(), Standing::new(uid, status, before));
        }
        for (name, object) in &world.routes {
            let before = same_object(&old.routes, name, &object.metadata);
            let was = before.map(|before| &*before.status).or_else(|| stored.routes.get(name));
            let mut status = status::route(name, object, was, plan, &applied, now);
            self.conditions.share(&mut status.conditions);
            let uid = object.metadata.uid.as_deref();
            report.routes.insert(name.clone(), Standing::new(uid, status, before));
        }
        for (name, object) in &world.backends {
            let before = same_object(&old.backends, name, &object.metadata);
            let was = before.map(|before| &*before.status).or_else(|| stored.backends.get(name));
            let status = status::backend(name, object, was, plan, &applied, now);
            let uid = object.metadata.uid.as_deref();
            report.backends.insert(name.clone(), Standing::new(uid, status, before));
        }
        report.ledger = applied::ledger(&applied);
        report.gateways = applied::gateways(&applied, plan);
        let problems = self.problems();
        for fault in problems.difference(&self.problems) {
            tracing::warn!(place = fault.place, object = fault.object, "{}", fault.message);
        }
        let faults = self.config_fault.iter().chain(&self.memory_fault).chain(&self.source_faults);
        report.faults = faults.chain(&self.sink_faults).chain(&problems).cloned().collect();
        self.problems = problems;
        self.applied = applied;
        report
    }

    /// What is wrong although every object could be read: where it stands, and what is in force in its
    /// place.
    fn problems(&self) -> BTreeSet<Fault> {
        let plan = self.planner.plan();
        let fault = |kind: &str, name: &ObjectName, problem: &Problem, kept: bool| {
            let id = object_id(kind, name);
            let kept = if kept { ". The version before it stays in force." } else { "" };
            Fault {
                place: self.parts.places.of(&id).unwrap_or_else(|| kind.to_owned()),
                object: Some(id.to_string()),
                message: format!("{}{kept}", problem.message),
            }
        };
        let budgets = plan.budgets.iter().flat_map(|(name, budget)| {
            budget.problems.iter().map(|problem| fault("AIBudget", name, problem, !budget.limits.is_empty()))
        });
        let backends = plan.backends.iter().flat_map(|(name, backend)| {
            backend
                .problems
                .iter()
                .map(|problem| fault("ModelBackend", name, problem, backend.allowed.is_some()))
        });
        let mut faults: BTreeSet<Fault> = budgets.chain(backends).collect();
        let untold: Vec<String> = self.planner.untold().map(ToString::to_string).collect();
        if !untold.is_empty() {
            let more = match untold.len().saturating_sub(MOST_NAMES) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let names = untold[..untold.len().min(MOST_NAMES)].join(", ");
            let message = format!(
                "in force before the operator started, and not found in what can be read: {names}{more}. They \
                 stay in force until everything can be read; mend what is named here"
            );
            let place = self.parts.memory.0.path().display().to_string();
            faults.insert(Fault { place, object: None, message });
        }
        faults
    }
}

/// How `name` stood, unless another object has the name by now: what its predecessor was says nothing of it.
fn same_object<'a, S>(
    standings: &'a BTreeMap<ObjectName, Standing<S>>,
    name: &ObjectName,
    metadata: &ObjectMeta,
) -> Option<&'a Standing<S>> {
    standings.get(name).filter(|standing| standing.uid.as_deref() == metadata.uid.as_deref())
}

/// `before` if it is equal to `now`.
fn same<T: PartialEq>(before: Option<&Arc<T>>, now: T) -> Arc<T> {
    before.filter(|before| ***before == now).map_or_else(|| Arc::new(now), Arc::clone)
}
