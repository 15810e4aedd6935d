//! Statuses that objects had before this process began. Pure.
//!
//! They say since when a condition holds and which stages were told: without them a restart would write
//! every status anew, and tell every stage again.

use crate::report::Report;
use plimsoll_api::{AIBudgetStatus, ModelBackendStatus, ModelRouteStatus, Object, ObjectId};
use plimsoll_core::ids::ObjectName;
use std::collections::BTreeMap;

/// Those that no report has taken over yet.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) budgets: BTreeMap<ObjectName, AIBudgetStatus>,
    pub(super) routes: BTreeMap<ObjectName, ModelRouteStatus>,
    pub(super) backends: BTreeMap<ObjectName, ModelBackendStatus>,
}

impl Earlier {
    /// Takes the status out of `object`, where statuses are not kept; one that `report` has a word on is
    /// ours already.
    pub(super) fn take(&mut self, object: &mut Object, report: &Report) {
        let id = object.id();
        let name = ObjectName::new(id.namespace, id.name);
        match object {
            Object::Budget(budget) => {
                let status = budget.status.take().filter(|_| !report.budgets.contains_key(&name));
                self.budgets.extend(status.map(|status| (name, status)));
            }
            Object::Route(route) => {
                let status = route.status.take().filter(|_| !report.routes.contains_key(&name));
                self.routes.extend(status.map(|status| (name, status)));
            }
            Object::Backend(backend) => {
                let status = backend.status.take().filter(|_| !report.backends.contains_key(&name));
                self.backends.extend(status.map(|status| (name, status)));
            }
            Object::Namespace(_) | Object::Secret(_) => {}
        }
    }

    /// The object `id` is gone, and its status with it.
    pub(super) fn forget(&mut self, id: &ObjectId) {
        let name = ObjectName::new(&*id.namespace, &*id.name);
        match id.kind.as_str() {
            "AIBudget" => drop(self.budgets.remove(&name)),
            "ModelRoute" => drop(self.routes.remove(&name)),
            "ModelBackend" => drop(self.backends.remove(&name)),
            _ => {}
        }
    }
}
