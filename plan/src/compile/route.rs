//! A `ModelRoute` into its policy body: only backends that exist, allow it and are in force.

use crate::plan::{BackendPlan, Problem, RoutePlan};
use crate::settings::Duration;
use plimsoll_api::ModelRouteSpec;
use plimsoll_api::route::{ModelRoute, RouteBackend};
use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::{Route, WeightedBackend};
use std::collections::BTreeMap;

/// The name that clients send for `route`.
#[must_use]
pub fn model(route: &ModelRoute) -> &str {
    route.spec.model.as_deref().or(route.metadata.name.as_deref()).unwrap_or_default()
}

/// Of two routes for one model the older serves; the name decides between equals.
#[must_use]
pub fn seniority(route: &ModelRoute) -> impl Ord + use<> {
    (route.metadata.creation_timestamp.as_ref().map(|time| time.0), route.metadata.name.clone())
}

/// What gateways should hold of `route`: nothing, where `elder` serves its model or no backend is left.
#[must_use]
pub fn compile(
    route: &ModelRoute,
    elder: Option<&ObjectName>,
    backends: &BTreeMap<ObjectName, BackendPlan>,
) -> (RoutePlan, Option<Route>) {
    let ModelRouteSpec { model: _, tiers, max_output_tokens, timeout } = &route.spec;
    let mut plan = RoutePlan::default();
    if let Some(elder) = elder {
        let message = format!(
            "model \"{}\" is served by the older ModelRoute {elder}; choose another spec.model",
            model(route)
        );
        plan.problems.push(Problem { reason: "Conflicted", field: "spec.model".to_owned(), message });
        return (plan, None);
    }
    let timeout_ms =
        timeout.as_deref().and_then(Duration::parse).and_then(|timeout| u64::try_from(timeout.ms).ok());
    // The schema wants exactly one.
    let Some(tier) = tiers.first() else { return (plan, None) };
    let own = route.metadata.namespace.as_deref().unwrap_or_default();
    let mut chosen = Vec::new();
    for (index, entry) in tier.backends.iter().enumerate() {
        let RouteBackend { backend_ref, model, weight } = entry;
        let field = format!("spec.tiers[0].backends[{index}]");
        let backend = ObjectName::new(backend_ref.namespace.as_deref().unwrap_or(own), &*backend_ref.name);
        match resolve(&backend, model, own, backends.get(&backend), &field) {
            Ok(()) => chosen.push(WeightedBackend { backend, model: model.clone(), weight: *weight }),
            Err(problem) if problem.reason == NOT_READY => plan.waiting.push(problem),
            Err(problem) => plan.unresolved.push(problem),
        }
    }
    plan.serves = chosen.iter().map(|entry| (entry.backend.clone(), entry.model.clone())).collect();
    let serves = chosen.iter().any(|entry| entry.weight > 0);
    let body = serves.then(|| Route {
        model: model(route).to_owned(),
        tier: tier.name.clone(),
        backends: chosen,
        max_output_tokens: max_output_tokens.map(u64::from),
        timeout_ms,
    });
    (plan, body)
}

const NOT_READY: &str = "BackendNotReady";

fn resolve(
    backend: &ObjectName,
    model: &str,
    own: &str,
    plan: Option<&BackendPlan>,
    field: &str,
) -> Result<(), Problem> {
    let wrong = |reason, field: String, message| Err(Problem { reason, field, message });
    let reference = format!("{field}.backendRef");
    let Some(plan) = plan else {
        let message =
            format!("{reference}: ModelBackend {backend} does not exist; create it, or name another");
        return wrong("BackendNotFound", reference, message);
    };
    let Some(allowed) = &plan.allowed else {
        let message = format!("{reference}: ModelBackend {backend} is not in force; see its conditions");
        return wrong(NOT_READY, reference, message);
    };
    if !allowed.contains(own) {
        let message = format!(
            "{reference}: ModelBackend {backend} does not allow routes of namespace {own}; extend its spec.allowedRoutes"
        );
        return wrong("RefNotPermitted", reference, message);
    }
    if !plan.models.iter().any(|known| known == model) {
        let models = plan.models.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let message = format!(
            "{field}.model: ModelBackend {backend} has no model \"{model}\"; add it to its spec.models, or use one of {models}"
        );
        return wrong("ModelNotFound", format!("{field}.model"), message);
    }
    Ok(())
}
