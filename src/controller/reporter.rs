//! Reports: how everything stands, made of the plan and of what was applied.
//!
//! Most of 10,000 budgets stand still, so what can't differ from the report before is taken from it. It asks
//! nobody and sends nothing: what has happened to budgets is returned, to be told.

use super::applied;
use super::conditions::Conditions;
use super::earlier::Earlier;
use super::touched::Touched;
use crate::report::{Report, Standing};
use crate::source::{Fault, Places};
use kube::api::ObjectMeta;
use plimsoll_api::{Object, ObjectId};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_plan::{Applied, Delta, Event, Planner, Problem, events, object_id, status};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names in one message.
const MOST_NAMES: usize = 10;

/// What a report is made of beside what was applied.
pub(super) struct Scene<'a> {
    pub(super) planner: &'a Planner,
    /// Where objects stand.
    pub(super) places: &'a Places,
    /// Where it is kept what was in force.
    pub(super) memory: &'a str,
}

/// The latest report, and what the next one needs.
#[derive(Debug)]
pub(super) struct Reporter {
    report: Arc<Report>,
    /// Statuses of before this process, of objects that no report had yet.
    earlier: Earlier,
    /// Condition lists, so that equal ones are held once.
    conditions: Conditions,
    /// What the report was made of.
    applied: Applied,
    /// Budgets that were planned anew since the report.
    touched: Touched,
    /// What is wrong with objects that can be read.
    problems: BTreeSet<Fault>,
}

impl Default for Reporter {
    fn default() -> Self {
        Self {
            report: Arc::default(),
            earlier: Earlier::default(),
            conditions: Conditions::default(),
            applied: Applied::default(),
            touched: Touched::All,
            problems: BTreeSet::new(),
        }
    }
}

impl Reporter {
    /// Takes the status out of `object`: it may be of before this process.
    pub(super) fn take_over(&mut self, object: &mut Object) {
        self.earlier.take(object, &self.report);
    }

    /// The object `id` is gone.
    pub(super) fn forget(&mut self, id: &ObjectId) {
        self.earlier.forget(id);
    }

    /// This was planned since the last report.
    pub(super) fn planned(&mut self, delta: &Delta) {
        self.touched.planned(delta);
    }

    /// The next report, with `faults` in it, and what happened to objects since the last.
    pub(super) fn make(
        &mut self,
        scene: &Scene<'_>,
        applied: Applied,
        faults: Vec<Fault>,
        now: UnixMs,
    ) -> (Arc<Report>, Vec<(ObjectId, Event)>) {
        let (world, plan) = (scene.planner.world(), scene.planner.plan());
        let touched = std::mem::take(&mut self.touched).applied(&self.applied, &applied);
        let mut told = Vec::new();
        let old = &self.report;
        let earlier = std::mem::take(&mut self.earlier);
        let mut report = Report { time: now, ..Report::default() };
        for (name, object) in &world.budgets {
            let before = same_object(&old.budgets, name, &object.metadata);
            if let (false, Some(before), Some(rows)) = (touched.contains(name), before, old.table.get(name)) {
                report.budgets.insert(name.clone(), before.clone());
                report.table.insert(name.clone(), Arc::clone(rows));
                continue;
            }
            let was = before.map(|before| &*before.status).or_else(|| earlier.budgets.get(name));
            let mut status = status::budget(name, object, was, plan, &applied, now);
            self.conditions.share(&mut status.conditions);
            told.extend(events(was, &status).into_iter().map(|event| (object_id("AIBudget", name), event)));
            let rows = applied::rows(name, object, &status, plan, &applied);
            // What is the same is held once, while the report before is still read.
            report.table.insert(name.clone(), same(old.table.get(name), rows));
            let uid = object.metadata.uid.as_deref();
            report.budgets.insert(name.clone(), Standing::new(uid, status, before));
        }
        for (name, object) in &world.routes {
            let before = same_object(&old.routes, name, &object.metadata);
            let was = before.map(|before| &*before.status).or_else(|| earlier.routes.get(name));
            let mut status = status::route(name, object, was, plan, &applied, now);
            self.conditions.share(&mut status.conditions);
            let uid = object.metadata.uid.as_deref();
            report.routes.insert(name.clone(), Standing::new(uid, status, before));
        }
        for (name, object) in &world.backends {
            let before = same_object(&old.backends, name, &object.metadata);
            let was = before.map(|before| &*before.status).or_else(|| earlier.backends.get(name));
            let status = status::backend(name, object, was, plan, &applied, now);
            let uid = object.metadata.uid.as_deref();
            report.backends.insert(name.clone(), Standing::new(uid, status, before));
        }
        report.ledger = applied::ledger(&applied);
        report.gateways = applied::gateways(&applied, plan);
        let problems = scene.problems();
        for fault in problems.difference(&self.problems) {
            tracing::warn!(place = fault.place, object = fault.object, "{}", fault.message);
        }
        report.faults = faults;
        report.faults.extend(problems.iter().cloned());
        self.problems = problems;
        self.applied = applied;
        self.report = Arc::new(report);
        (Arc::clone(&self.report), told)
    }
}

impl Scene<'_> {
    /// What is wrong although every object could be read: where it stands, and what is in force in its
    /// place.
    fn problems(&self) -> BTreeSet<Fault> {
        let plan = self.planner.plan();
        let fault = |kind: &str, name: &ObjectName, problem: &Problem, kept: bool| {
            let id = object_id(kind, name);
            let kept = if kept { ". The version before it stays in force." } else { "" };
            Fault {
                place: self.places.of(&id).unwrap_or_else(|| kind.to_owned()),
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
            let place = self.memory.to_owned();
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
