//! A policy snapshot: the policy objects, compiled for look-up. Swapped whole; slices live apart.
//!
//! Applying a delta copies the snapshot and touches what changed, nothing else: objects stand behind
//! `Arc`s in sharded maps. Content that this build does not understand is rejected by key with its
//! reason, and the predecessor stays in force.

use crate::account::LimitKey;
use crate::budget::{BudgetEntry, BudgetIndex, Traits};
use crate::ids::{ObjectName, UnixMs};
use crate::policy::{
    Backend, Body, Bounds, Budget, Enforcement, Installation, Model, PolicyKey, PolicyObject, PolicyVersion,
    Route, WeightedBackend,
};
use crate::postings::{Postings, hash};
use crate::price::PriceVersion;
use crate::window::WindowSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything in force at a gateway.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    objects: Postings<Held>,
    installation: Option<Arc<Installation>>,
    windows: BTreeMap<String, Arc<Window>>,
    budgets: BudgetIndex,
    /// How many budgets enforce.
    enforcing: usize,
    /// Under (namespace, model).
    routes: Postings<RouteEntry>,
    /// Under (namespace, name) and under (namespace, "", model) for each of their models.
    backends: Postings<BackendEntry>,
}

/// One object as it is held.
#[derive(Debug)]
struct Held {
    key: PolicyKey,
    version: PolicyVersion,
    compiled: Compiled,
}

#[derive(Debug)]
enum Compiled {
    Installation(Arc<Installation>),
    Window(Arc<Window>),
    Backend(Arc<BackendEntry>),
    Route(Arc<RouteEntry>),
    /// With the keys that it stands under in the index.
    Budget(Arc<BudgetEntry>, Vec<u64>),
}

#[derive(Debug)]
struct Window {
    spec: WindowSpec,
    bounds: Vec<Bounds>,
}

/// A backend in force.
#[derive(Debug)]
pub struct BackendEntry {
    /// Its name.
    pub name: ObjectName,
    /// What it says.
    pub body: Backend,
    /// The price version of each model, in its order.
    versions: Vec<PriceVersion>,
}

impl BackendEntry {
    /// Its model of this name.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.body.models.iter().find(|model| model.name == name)
    }

    /// The price version of its model of this name; 0 where it has none.
    #[must_use]
    pub fn price_version(&self, name: &str) -> PriceVersion {
        let mut models = self.body.models.iter().zip(&self.versions);
        models.find(|(model, _)| model.name == name).map(|(_, version)| *version).unwrap_or_default()
    }
}

/// A route in force.
#[derive(Debug)]
pub struct RouteEntry {
    /// Its name.
    pub name: ObjectName,
    /// What it says.
    pub body: Route,
}

/// What answers under a name.
#[derive(Clone, Copy, Debug)]
pub enum Resolved<'s> {
    /// A route.
    Route(&'s Arc<RouteEntry>),
    /// A backend's model under its own name.
    Model(&'s Arc<BackendEntry>, &'s Model),
}

impl Snapshot {
    /// This snapshot after a delta: what was not understood keeps its predecessor and is named with the
    /// reason. `whole`: objects that are not named are gone.
    #[must_use]
    pub fn apply(
        &self,
        whole: bool,
        objects: &[PolicyObject],
        removed: &[PolicyKey],
    ) -> (Self, Vec<(PolicyKey, String)>) {
        let mut next = self.clone();
        let mut rejected = Vec::new();
        if whole {
            let named: BTreeSet<&PolicyKey> = objects.iter().map(|object| &object.key).collect();
            for held in self.objects.iter().filter(|held| !named.contains(&held.key)) {
                next.remove(&held.key);
            }
        }
        for object in objects {
            if next.held(&object.key).is_some_and(|held| held.version == object.version) {
                continue;
            }
            match compile(object) {
                Ok(compiled) => next.put(Held { key: object.key.clone(), version: object.version, compiled }),
                Err(reason) => rejected.push((object.key.clone(), reason)),
            }
        }
        for key in removed {
            next.remove(key);
        }
        (next, rejected)
    }

    /// What is held, for Hello.
    pub fn versions(&self) -> impl Iterator<Item = (PolicyKey, PolicyVersion)> {
        self.objects.iter().map(|held| (held.key.clone(), held.version))
    }

    /// The installation's settings. Absent: the gateway is not ready, no call is served.
    #[must_use]
    pub fn installation(&self) -> Option<&Installation> {
        self.installation.as_deref()
    }

    /// The budget of this name.
    #[must_use]
    pub fn budget(&self, name: &ObjectName) -> Option<&Budget> {
        match &self.held(&PolicyKey::Budget(name.clone()))?.compiled {
            Compiled::Budget(budget, _) => Some(&budget.body),
            Compiled::Installation(_) | Compiled::Window(_) | Compiled::Backend(_) | Compiled::Route(_) => {
                None
            }
        }
    }

    /// The backend of this name.
    #[must_use]
    pub fn backend(&self, name: &ObjectName) -> Option<&Arc<BackendEntry>> {
        let found = self.backends.get(hash(&[&name.namespace, &name.name]));
        found.iter().find(|backend| backend.name == *name)
    }

    /// The budgets that match a call, each once.
    pub fn matching<'s>(&'s self, call: &Traits<'_>, found: impl FnMut(&'s Arc<BudgetEntry>)) {
        self.budgets.matching(call, found);
    }

    /// Whether a call may be refused at all: some budget enforces, and the installation does not observe.
    #[must_use]
    pub fn enforces(&self) -> bool {
        self.enforcing > 0 && self.mode() == Enforcement::Enforce
    }

    /// The limits of all enforcing budgets: what slices are held for. None while the installation observes.
    pub fn enforced_limits(&self) -> impl Iterator<Item = &LimitKey> {
        let enforce = self.mode() == Enforcement::Enforce;
        let budgets = self.objects.iter().filter_map(move |held| match &held.compiled {
            Compiled::Budget(budget, _) if enforce && budget.body.enforcement == Enforcement::Enforce => {
                Some(budget)
            }
            _ => None,
        });
        budgets.flat_map(|budget| &budget.limits)
    }

    /// The bounds of every window specification, in order of their text.
    pub fn windows(&self) -> impl Iterator<Item = (&str, &[Bounds])> {
        self.windows.iter().map(|(spec, window)| (spec.as_str(), window.bounds.as_slice()))
    }

    /// When the window of `spec` that began at `start` ends, for people, in its zone. `None` where it never
    /// does, or is not known.
    #[must_use]
    pub fn resets(&self, spec: &str, start: UnixMs) -> Option<String> {
        let window = self.windows.get(spec)?;
        let bounds = window.bounds.iter().find(|bounds| bounds.start == start)?;
        (bounds.end < UnixMs::NEVER).then(|| window.spec.show(bounds.end))
    }

    /// What answers under `model` to callers of `namespace`: a route of theirs, a route of the root
    /// namespace, a backend of theirs, a backend of the root namespace that allows them.
    #[must_use]
    pub fn resolve(&self, namespace: &str, model: &str) -> Option<Resolved<'_>> {
        let root = self.installation.as_deref()?.root_namespace.as_str();
        let namespaces = [namespace, root];
        let route = |namespace: &&str| {
            let found = self.routes.get(hash(&[namespace, model]));
            let found =
                found.iter().filter(|route| route.name.namespace == **namespace && route.body.model == model);
            found.min_by(|a, b| a.name.cmp(&b.name))
        };
        if let Some(route) = namespaces.iter().find_map(route) {
            return Some(Resolved::Route(route));
        }
        let backend = |of: &&str| {
            let found = self.backends.get(hash(&[of, "", model])).iter();
            let found = found.filter(|backend| backend.name.namespace == **of);
            let found = found.filter(|backend| *of == namespace || backend.body.allowed.contains(namespace));
            found
                .filter_map(|backend| Some((backend, backend.model(model)?)))
                .min_by(|a, b| a.0.name.cmp(&b.0.name))
        };
        namespaces.iter().find_map(backend).map(|(backend, model)| Resolved::Model(backend, model))
    }

    /// The backend of `route` that `draw` falls on, by weight, among those that this snapshot knows.
    #[must_use]
    pub fn draw(&self, route: &RouteEntry, draw: u64) -> Option<(&Arc<BackendEntry>, &Model)> {
        let choice = |weighted: &WeightedBackend| {
            let backend = self.backend(&weighted.backend)?;
            Some((u64::from(weighted.weight), backend, backend.model(&weighted.model)?))
        };
        let total: u64 = route.body.backends.iter().filter_map(choice).map(|(weight, ..)| weight).sum();
        let mut left = draw.checked_rem(total)?;
        for (weight, backend, model) in route.body.backends.iter().filter_map(choice) {
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return Some((backend, model)),
            }
        }
        None
    }

    fn mode(&self) -> Enforcement {
        self.installation.as_ref().map_or(Enforcement::Enforce, |installation| installation.mode)
    }

    fn held(&self, key: &PolicyKey) -> Option<&Arc<Held>> {
        self.objects.get(hash_of(key)).iter().find(|held| held.key == *key)
    }

    fn put(&mut self, mut held: Held) {
        self.remove(&held.key);
        if let Compiled::Budget(budget, keys) = &mut held.compiled {
            *keys = self.budgets.insert(budget);
        }
        let held = Arc::new(held);
        self.objects.insert(hash_of(&held.key), &held);
        match &held.compiled {
            Compiled::Installation(installation) => self.installation = Some(installation.clone()),
            Compiled::Window(window) => {
                self.windows.insert(window.spec.to_string(), window.clone());
            }
            Compiled::Backend(backend) => {
                for key in backend_keys(backend) {
                    self.backends.insert(key, backend);
                }
            }
            Compiled::Route(route) => {
                self.routes.insert(hash(&[&route.name.namespace, &route.body.model]), route)
            }
            Compiled::Budget(budget, _) => {
                self.enforcing += usize::from(budget.body.enforcement == Enforcement::Enforce);
            }
        }
    }

    fn remove(&mut self, key: &PolicyKey) {
        let Some(held) = self.held(key).cloned() else { return };
        self.objects.remove(hash_of(key), &held);
        match &held.compiled {
            Compiled::Installation(_) => self.installation = None,
            Compiled::Window(window) => {
                self.windows.remove(&window.spec.to_string());
            }
            Compiled::Backend(backend) => {
                for key in backend_keys(backend) {
                    self.backends.remove(key, backend);
                }
            }
            Compiled::Route(route) => {
                self.routes.remove(hash(&[&route.name.namespace, &route.body.model]), route)
            }
            Compiled::Budget(budget, keys) => {
                self.enforcing -= usize::from(budget.body.enforcement == Enforcement::Enforce);
                self.budgets.remove(budget, keys);
            }
        }
    }
}

fn backend_keys(backend: &BackendEntry) -> Vec<u64> {
    let ObjectName { namespace, name } = &backend.name;
    let models = backend.body.models.iter().map(|model| hash(&[namespace, "", &model.name]));
    std::iter::once(hash(&[namespace, name])).chain(models).collect()
}

fn hash_of(key: &PolicyKey) -> u64 {
    match key {
        PolicyKey::Installation => hash(&["installation"]),
        PolicyKey::Window(spec) => hash(&["window", spec]),
        PolicyKey::Backend(name) => hash(&["backend", &name.namespace, &name.name]),
        PolicyKey::Route(name) => hash(&["route", &name.namespace, &name.name]),
        PolicyKey::Budget(name) => hash(&["budget", &name.namespace, &name.name]),
    }
}

/// The object, decoded and checked.
fn compile(object: &PolicyObject) -> Result<Compiled, String> {
    if PolicyVersion::of(&object.body) != object.version {
        return Err("the body does not have its version's hash; it was damaged on its way".to_owned());
    }
    let body = object.decode().map_err(|error| error.to_string())?;
    Ok(match (&object.key, body) {
        (PolicyKey::Installation, Body::Installation(installation)) => {
            Compiled::Installation(Arc::new(installation))
        }
        (PolicyKey::Window(text), Body::Window(window)) => {
            let spec: WindowSpec =
                text.parse().map_err(|error: crate::window::WindowError| error.to_string())?;
            if spec.to_string() != *text {
                return Err(format!("the window is written {spec} here"));
            }
            Compiled::Window(Arc::new(Window { spec, bounds: window.bounds }))
        }
        (PolicyKey::Backend(name), Body::Backend(body)) => {
            let versions = body.models.iter().map(Model::price_version).collect();
            Compiled::Backend(Arc::new(BackendEntry { name: name.clone(), body, versions }))
        }
        (PolicyKey::Route(name), Body::Route(body)) => {
            if body.backends.iter().all(|backend| backend.weight == 0) {
                return Err("no backend of the route has a weight above 0".to_owned());
            }
            Compiled::Route(Arc::new(RouteEntry { name: name.clone(), body }))
        }
        (PolicyKey::Budget(name), Body::Budget(body)) => {
            if body.limits.is_empty() {
                return Err("the budget has no limits".to_owned());
            }
            Compiled::Budget(Arc::new(BudgetEntry::new(name.clone(), body)), Vec::new())
        }
        _ => return Err("the body is of another kind than its key".to_owned()),
    })
}
