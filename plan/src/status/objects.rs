//! Statuses of routes and backends: accepted, resolved, programmed.

use super::rollout::{Rollout, both, envoy, policy};
use super::{Draft, Health, conditions, joined, was_ready};
use crate::applied::Applied;
use crate::compile::route::model;
use crate::plan::{BackendPlan, Plan, Problem, RoutePlan};
use plimsoll_api::shared::Condition;
use plimsoll_api::{ModelBackend, ModelBackendStatus, ModelRoute, ModelRouteStatus};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::PolicyKey;

/// How `route` stands; `old` is the status that it had.
#[must_use]
pub fn route(
    name: &ObjectName,
    route: &ModelRoute,
    old: Option<&ModelRouteStatus>,
    plan: &Plan,
    applied: &Applied,
    now: UnixMs,
) -> ModelRouteStatus {
    let absent = RoutePlan::default();
    let RoutePlan { problems, unresolved, waiting, serves: _ } = plan.routes.get(name).unwrap_or(&absent);
    let key = PolicyKey::Route(name.clone());
    let rollout = Rollout::of(applied, |gateway| policy(gateway, &key));
    let generation = route.metadata.generation;
    let old = old.map_or(&[][..], |old| &old.conditions);
    let mut drafts = references(problems, unresolved, waiting);
    drafts.push(programmed(plan.policy.contains_key(&key), &rollout, old, generation));
    drafts.splice(0..0, health(problems, unresolved, waiting, false, &rollout, old, generation).drafts());
    ModelRouteStatus {
        conditions: conditions(drafts, old, generation, now),
        observed_generation: generation,
        model: Some(model(route).to_owned()),
    }
}

/// How `backend` stands; `old` is the status that it had.
#[must_use]
pub fn backend(
    name: &ObjectName,
    backend: &ModelBackend,
    old: Option<&ModelBackendStatus>,
    plan: &Plan,
    applied: &Applied,
    now: UnixMs,
) -> ModelBackendStatus {
    let absent = BackendPlan::default();
    let this = plan.backends.get(name).unwrap_or(&absent);
    let BackendPlan { problems, unresolved, allowed, models: _, unpriced: _, clusters } = this;
    let key = PolicyKey::Backend(name.clone());
    let rollout = Rollout::of(applied, |gateway| both(envoy(gateway, clusters), policy(gateway, &key)));
    let generation = backend.metadata.generation;
    let old = old.map_or(&[][..], |old| &old.conditions);
    let mut drafts = references(problems, unresolved, &[]);
    drafts.push(programmed(plan.policy.contains_key(&key), &rollout, old, generation));
    let kept = allowed.is_some();
    // Of what is written, not of what is in force: it may be wrong in another way.
    let unpriced: Vec<&str> = backend
        .spec
        .models
        .iter()
        .filter(|model| model.price.is_none())
        .map(|model| model.name.as_str())
        .collect();
    drafts.push(match unpriced.first() {
        None => Draft::new("PriceKnown", true, "PriceKnown", "every model has a price"),
        Some(model) => {
            let others = match unpriced.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            let message = format!(
                "{model}{others} has no price; budgets with unpriced: Deny refuse its calls. Add spec.models[].price."
            );
            Draft::new("PriceKnown", false, "ModelUnpriced", message)
        }
    });
    drafts.splice(0..0, health(problems, unresolved, &[], kept, &rollout, old, generation).drafts());
    ModelBackendStatus {
        conditions: conditions(drafts, old, generation, now),
        observed_generation: generation,
    }
}

/// Accepted and ResolvedRefs.
fn references(problems: &[Problem], unresolved: &[Problem], waiting: &[Problem]) -> Vec<Draft> {
    let accepted = match problems.first() {
        None => Draft::new("Accepted", true, "Accepted", ""),
        Some(problem) => Draft::new("Accepted", false, problem.reason, joined(problems)),
    };
    let all: Vec<Problem> = unresolved.iter().chain(waiting).cloned().collect();
    let resolved = match all.first() {
        None => Draft::new("ResolvedRefs", true, "ResolvedRefs", ""),
        Some(problem) => Draft::new("ResolvedRefs", false, problem.reason, joined(&all)),
    };
    vec![accepted, resolved]
}

fn programmed(in_force: bool, rollout: &Rollout<'_>, old: &[Condition], generation: Option<i64>) -> Draft {
    if !in_force {
        return Draft::new(
            "Programmed",
            false,
            "NotInForce",
            "it can't be used; see Accepted and ResolvedRefs",
        );
    }
    if rollout.is_unheard()
        && let Some(draft) = Draft::again("Programmed", old, generation)
    {
        return draft;
    }
    match rollout.trouble() {
        Some((reason, message)) => Draft::new("Programmed", false, reason, message),
        None => Draft::new("Programmed", true, "Programmed", ""),
    }
}

fn health(
    problems: &[Problem],
    unresolved: &[Problem],
    waiting: &[Problem],
    kept: bool,
    rollout: &Rollout<'_>,
    old: &[Condition],
    generation: Option<i64>,
) -> Health {
    if let Some(problem) = problems.first().or(unresolved.first()) {
        let all: Vec<Problem> = problems.iter().chain(unresolved).cloned().collect();
        let kept = if kept && !problems.is_empty() { ". The version before it stays in force." } else { "" };
        return Health::Stalled(problem.reason, joined(&all) + kept);
    }
    if let Some(problem) = waiting.first() {
        return Health::Reconciling(problem.reason, joined(waiting));
    }
    rollout.health(was_ready(old, generation))
}
