//! Statuses: the plan and what was applied, in the words of conditions.
//!
//! Rules for every kind: `Ready` is what Argo CD, Flux and `kubectl wait` look at, so neither spent
//! money nor a new gateway moves it; what will come right by itself is `Reconciling`, what needs
//! somebody is `Stalled`; a time changes only when its condition's status does.

mod budget;
mod objects;
mod rollout;

pub use budget::budget;
pub use objects::{backend, route};

use crate::plan::Problem;
use k8s_openapi::jiff::Timestamp;
use plimsoll_api::shared::{Condition, Time};
use plimsoll_core::ids::UnixMs;
use std::sync::Arc;

/// A condition, before its time is known.
struct Draft {
    kind: &'static str,
    holds: bool,
    reason: String,
    message: String,
}

impl Draft {
    fn new(kind: &'static str, holds: bool, reason: &str, message: impl Into<String>) -> Self {
        // What metav1.Condition allows; a provider's or Envoy's words may be long.
        Self { kind, holds, reason: reason.to_owned(), message: cut(&message.into(), 1024) }
    }

    /// What was said of `generation` before, if it was good.
    fn again(kind: &'static str, old: &[Condition], generation: Option<i64>) -> Option<Self> {
        let good = |old: &&Condition| {
            old.type_ == kind && old.status == "True" && old.observed_generation == generation
        };
        old.iter().find(good).map(|old| Self::new(kind, true, &old.reason, old.message.clone()))
    }
}

/// How an object does as a whole.
enum Health {
    /// As it should be.
    Ready(String),
    /// It will come right by itself.
    Reconciling(&'static str, String),
    /// Somebody must change something.
    Stalled(&'static str, String),
}

impl Health {
    fn in_force() -> Self {
        Self::Ready("in force".to_owned())
    }

    fn drafts(self) -> [Draft; 3] {
        let (ready, reconciling, stalled, reason, message) = match self {
            Self::Ready(message) => (true, false, false, "InForce", message),
            Self::Reconciling(reason, message) => (false, true, false, reason, message),
            Self::Stalled(reason, message) => (false, false, true, reason, message),
        };
        let other = |kind, holds| Draft::new(kind, holds, reason, if holds { &*message } else { "" });
        [
            Draft::new("Ready", ready, reason, &*message),
            other("Reconciling", reconciling),
            other("Stalled", stalled),
        ]
    }
}

/// `drafts` with times: those of `old` where the status is the same.
fn conditions(
    drafts: Vec<Draft>,
    old: &[Condition],
    generation: Option<i64>,
    now: UnixMs,
) -> Arc<Vec<Condition>> {
    let condition = |Draft { kind, holds, reason, message }: Draft| {
        let status = if holds { "True" } else { "False" };
        let same = old.iter().find(|old| old.type_ == kind && old.status == status);
        Condition {
            last_transition_time: same.map_or_else(|| time(now), |old| old.last_transition_time.clone()),
            message,
            observed_generation: generation,
            reason,
            status: status.to_owned(),
            type_: kind.to_owned(),
        }
    };
    Arc::new(drafts.into_iter().map(condition).collect())
}

/// Whether this generation was in force before: then gateways that come later are no news about it.
fn was_ready(old: &[Condition], generation: Option<i64>) -> bool {
    let ready = old.iter().find(|condition| condition.type_ == "Ready");
    ready.is_some_and(|ready| ready.status == "True" && ready.observed_generation == generation)
}

/// An instant as the API writes it: whole seconds, so that it reads back equal.
fn time(at: UnixMs) -> Time {
    Time(Timestamp::from_second(at.0.div_euclid(1000)).unwrap_or_default())
}

/// The first `most` characters of `text`, marked where it is cut.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
}
