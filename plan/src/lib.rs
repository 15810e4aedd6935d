//! Objects, what was spent and the time, made into what should be so: policy, limits, clusters,
//! statuses, events. Pure: no I/O, no clock, no Kubernetes client.
//!
//! [`Planner`] holds the [`World`] and its [`Plan`], and compiles again only what a change can reach;
//! [`plan()`] does it all at once, and a property test says that both agree. A status is made of the plan
//! and of what was [`Applied`], never of hope.

pub mod applied;
pub mod compile;
pub mod event;
pub mod plan;
mod planner;
pub mod settings;
pub mod status;
pub mod world;

pub use applied::{Applied, GIVEN_UP_AFTER_MS, Gateway, Instead, Link, Missing, Part, Spend, Spent, Trouble};
pub use compile::check;
pub use event::{Event, EventKind, events};
pub use plan::{BackendPlan, BudgetPlan, EnvoyCluster, Plan, Problem, RoutePlan, SecretRef};
pub use planner::{Delta, Planner, object_id};
pub use settings::Settings;
pub use world::{SecretText, World};

use plimsoll_core::ids::UnixMs;

/// Everything that `world` asks for at `now`.
#[must_use]
pub fn plan(world: World, now: UnixMs) -> Plan {
    let mut planner = Planner::new(world);
    planner.replan(now);
    planner.into_plan()
}
