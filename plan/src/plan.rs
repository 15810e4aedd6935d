//! The plan: what should be so, object by object, and what stands in the way.

use plimsoll_core::account::LimitKey;
use plimsoll_core::ids::ObjectName;
use plimsoll_core::ledger::Terms;
use plimsoll_core::policy::{Namespaces, PolicyKey, PolicyObject};
use plimsoll_core::window::WindowSpec;
use std::collections::BTreeMap;
use std::fmt;

/// What the world asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What gateways should hold.
    pub policy: BTreeMap<PolicyKey, PolicyObject>,
    /// What the ledger should keep to.
    pub limits: BTreeMap<LimitKey, Terms>,
    /// What Envoy should know, by the cluster's name.
    pub clusters: BTreeMap<String, EnvoyCluster>,
    /// Every budget.
    pub budgets: BTreeMap<ObjectName, BudgetPlan>,
    /// Every route.
    pub routes: BTreeMap<ObjectName, RoutePlan>,
    /// Every backend.
    pub backends: BTreeMap<ObjectName, BackendPlan>,
}

/// Why something is not as its author wants it: reason and message of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// The field, `spec.limits[0].amount`; empty where it is the whole object.
    pub field: String,
    /// Subject, what is wrong, what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A budget's part of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetPlan {
    /// What is wrong with it. Where a version before it was in force, that one stays.
    pub problems: Vec<Problem>,
    /// Its limits that are in force, in its order, each with its window.
    pub limits: Vec<(LimitKey, WindowSpec)>,
}

/// A route's part of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutePlan {
    /// Why it is not accepted.
    pub problems: Vec<Problem>,
    /// Backends that it can't use until somebody changes something.
    pub unresolved: Vec<Problem>,
    /// Backends that it will use as soon as they are in force.
    pub waiting: Vec<Problem>,
    /// What it serves: backend and model.
    pub serves: Vec<(ObjectName, String)>,
}

/// A backend's part of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendPlan {
    /// Why it is not accepted. Where a version before it was in force, that one stays.
    pub problems: Vec<Problem>,
    /// Why its key can't be had.
    pub unresolved: Vec<Problem>,
    /// Who may use it; absent: it is not in force.
    pub allowed: Option<Namespaces>,
    /// All models by name.
    pub models: Vec<String>,
    /// Those without a price.
    pub unpriced: Vec<String>,
    /// The clusters that it has in Envoy.
    pub clusters: Vec<String>,
}

/// One key of one Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretRef {
    /// The Secret.
    pub secret: ObjectName,
    /// The key in it.
    pub key: String,
}

/// A cluster that Envoy should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvoyCluster {
    /// The name that policy refers to.
    pub name: String,
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// TLS, verified against `host`.
    pub tls: bool,
    /// What takes the place of the caller's credential; absent: the caller's own passes.
    pub inject_key: Option<SecretRef>,
}
