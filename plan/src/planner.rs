//! The planner: a world and its plan, kept up to date by compiling only what a change can reach.
//!
//! Changes mark keys; [`Planner::replan`] compiles the marked ones and says what differs. Order
//! matters: backends before routes, because a route holds only backends that are in force. An object
//! that turns bad keeps its predecessor in force: a typing error must not lift a budget. Nor must a
//! restart: what was in force before it is [`Planner::remember`]ed, and stays until its object is read
//! well again, or is known to be gone.

use crate::compile::{backend, budget, route};
use crate::plan::{BackendPlan, BudgetPlan, Plan};
use crate::settings::Settings;
use crate::world::World;
use plimsoll_api::backend::From as Scope;
use plimsoll_api::{AIBudget, Object, ObjectId};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::ledger::Terms;
use plimsoll_core::policy::{Body, Budget, Enforcement, Namespaces, PolicyKey, PolicyObject};
use plimsoll_core::window::{LATE_MS, WindowSpec};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Keeps a plan up to date.
#[derive(Debug)]
pub struct Planner {
    world: World,
    plan: Plan,
    windows: BTreeMap<String, Window>,
    /// Budgets that were in force before this process, and that it has not yet seen good; `None`: gone.
    remembered: BTreeMap<ObjectName, Option<Budget>>,
    /// Whether everything there is was told once.
    whole: bool,
    marked: Marked,
}

#[derive(Debug, Default)]
struct Marked {
    installation: bool,
    /// Everything that selects namespaces by their labels: looked for once, however many namespaces came.
    selectors: bool,
    budgets: BTreeSet<ObjectName>,
    routes: BTreeSet<ObjectName>,
    backends: BTreeSet<ObjectName>,
}

/// A window specification that limits in force use.
#[derive(Debug)]
struct Window {
    spec: WindowSpec,
    limits: usize,
    /// When the current window ends.
    end: UnixMs,
    /// From when on its body is another one.
    stale: UnixMs,
}

/// What a [`Planner::replan`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Policy objects that are new or other than before; `None`: gone.
    pub policy: BTreeMap<PolicyKey, Option<PolicyObject>>,
    /// Whether [`Plan::limits`] changed.
    pub limits: bool,
    /// Whether [`Plan::clusters`], or the value of a key that they use, changed.
    pub clusters: bool,
    /// Whether a window began: the statuses that show it are others now.
    pub windows: bool,
    /// Objects that were compiled again: their statuses may be others now.
    pub objects: BTreeSet<ObjectId>,
}

impl Planner {
    /// A planner for `world`, with everything still to be planned.
    #[must_use]
    pub fn new(world: World) -> Self {
        let mut planner = Self {
            world,
            plan: Plan::default(),
            windows: BTreeMap::new(),
            remembered: BTreeMap::new(),
            whole: false,
            marked: Marked::default(),
        };
        planner.mark_all();
        planner
    }

    /// `budgets` were in force before this process began. Each stays in force until its object is read
    /// well, or is gone; one that nobody tells of is gone only after [`Planner::whole`].
    pub fn remember(&mut self, budgets: BTreeMap<ObjectName, Budget>) {
        self.marked.budgets.extend(budgets.keys().cloned());
        self.remembered = budgets.into_iter().map(|(name, body)| (name, Some(body))).collect();
    }

    /// Everything there is has been told: what is remembered, and was not told, is gone.
    pub fn whole(&mut self) {
        self.marked.budgets.extend(self.remembered.keys().cloned());
        self.whole = true;
    }

    /// Budgets in force of which nobody has told in this process: their manifests may be what can't be
    /// read.
    pub fn untold(&self) -> impl Iterator<Item = &ObjectName> {
        let untold = |name: &ObjectName| !self.world.budgets.contains_key(name);
        self.remembered
            .iter()
            .filter(move |(name, body)| body.is_some() && untold(name))
            .map(|(name, _)| name)
    }

    /// The world as it is.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The plan as of the last [`Planner::replan`].
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan, for good.
    #[must_use]
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// `object` is there, new or changed.
    pub fn put(&mut self, object: Object) {
        let id = object.id();
        self.mark(&id);
        self.world.put(object);
        self.mark(&id);
    }

    /// The object `id` is gone.
    pub fn remove(&mut self, id: &ObjectId) {
        self.mark(id);
        self.world.remove(id);
        let name = ObjectName::new(&*id.namespace, &*id.name);
        if let ("AIBudget", Some(body)) = (id.kind.as_str(), self.remembered.get_mut(&name)) {
            *body = None;
        }
    }

    /// The Secrets of `namespace` can't be read, and why; `None`: they can.
    pub fn deny_secrets(&mut self, namespace: &str, why: Option<String>) {
        let users = self.world.backends.iter().filter(|(name, object)| {
            name.namespace == namespace && object.spec.provider.api_key_secret_ref.is_some()
        });
        let users: Vec<ObjectName> = users.map(|(name, _)| name.clone()).collect();
        users.into_iter().for_each(|name| self.mark_backend(name));
        match why {
            Some(why) => drop(self.world.secrets_denied.insert(namespace.to_owned(), why)),
            None => drop(self.world.secrets_denied.remove(namespace)),
        }
    }

    /// The installation's settings changed.
    pub fn set(&mut self, settings: Settings) {
        self.world.settings = settings;
        // How far ahead windows reach may be another one.
        self.windows.values_mut().for_each(|window| window.stale = UnixMs(i64::MIN));
        self.mark_all();
    }

    /// When [`Planner::replan`] must be called again although nothing changes: a window begins, or is sent.
    #[must_use]
    pub fn next(&self) -> UnixMs {
        self.windows.values().map(|window| window.stale.min(window.end)).min().unwrap_or(UnixMs::NEVER)
    }

    /// Brings the plan up to date.
    pub fn replan(&mut self, now: UnixMs) -> Delta {
        if std::mem::take(&mut self.marked.selectors) {
            self.mark_selectors();
        }
        let marked = std::mem::take(&mut self.marked);
        let mut delta = Delta::default();
        if marked.installation {
            let body = self.world.settings.installation();
            self.hold(PolicyKey::Installation, Some(&body), &mut delta);
        }
        for name in &marked.backends {
            self.replan_backend(name, &mut delta);
        }
        for name in &marked.routes {
            self.replan_route(name, &mut delta);
        }
        for name in &marked.budgets {
            self.replan_budget(name, &mut delta);
        }
        self.replan_windows(now, &mut delta);
        delta
    }

    fn mark_all(&mut self) {
        self.marked = Marked {
            installation: true,
            selectors: false,
            budgets: self.world.budgets.keys().chain(self.plan.budgets.keys()).cloned().collect(),
            routes: self.world.routes.keys().chain(self.plan.routes.keys()).cloned().collect(),
            backends: self.world.backends.keys().chain(self.plan.backends.keys()).cloned().collect(),
        };
    }

    /// Marks what the object `id`, as the world has it now, can reach.
    fn mark(&mut self, id: &ObjectId) {
        let name = ObjectName::new(&*id.namespace, &*id.name);
        match id.kind.as_str() {
            "AIBudget" => drop(self.marked.budgets.insert(name)),
            "ModelRoute" => self.mark_route(name),
            "ModelBackend" => self.mark_backend(name),
            "Namespace" => self.marked.selectors = true,
            "Secret" => {
                let uses = |backend: &plimsoll_api::ModelBackend| {
                    backend.spec.provider.api_key_secret_ref.as_ref().is_some_and(|key| key.name == name.name)
                };
                let here = |backend: &ObjectName| backend.namespace == name.namespace;
                let users =
                    self.world.backends.iter().filter(|(backend, object)| here(backend) && uses(object));
                let users: Vec<ObjectName> = users.map(|(backend, _)| backend.clone()).collect();
                users.into_iter().for_each(|backend| self.mark_backend(backend));
            }
            _ => {}
        }
    }

    /// A route, and those of its namespace that want the same model.
    fn mark_route(&mut self, name: ObjectName) {
        if let Some(this) = self.world.routes.get(&name) {
            let rivals = self
                .routes_of(&name.namespace)
                .filter(|(_, other)| route::model(other) == route::model(this));
            let rivals: Vec<ObjectName> = rivals.map(|(rival, _)| rival.clone()).collect();
            self.marked.routes.extend(rivals);
        }
        self.marked.routes.insert(name);
    }

    /// A backend, and the routes that name it.
    fn mark_backend(&mut self, name: ObjectName) {
        for (route, object) in &self.world.routes {
            let references =
                object.spec.tiers.iter().flat_map(|tier| &tier.backends).map(|entry| &entry.backend_ref);
            let mut namespaces = references
                .filter(|reference| reference.name == name.name)
                .map(|reference| &reference.namespace);
            if namespaces.any(|namespace| namespace.as_ref().unwrap_or(&route.namespace) == &name.namespace) {
                self.marked.routes.insert(route.clone());
            }
        }
        self.marked.backends.insert(name);
    }

    /// Everything that selects namespaces by their labels.
    fn mark_selectors(&mut self) {
        let budgets = self.world.budgets.iter().filter(|(_, budget)| selects_namespaces(budget));
        self.marked.budgets.extend(budgets.map(|(name, _)| name.clone()));
        let backends = self.world.backends.iter();
        let backends =
            backends.filter(|(_, backend)| backend.spec.allowed_routes.namespaces.from == Scope::Selector);
        let backends: Vec<ObjectName> = backends.map(|(name, _)| name.clone()).collect();
        backends.into_iter().for_each(|name| self.mark_backend(name));
    }

    fn routes_of<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a plimsoll_api::ModelRoute)> {
        let first = ObjectName::new(namespace, "");
        let routes =
            self.world.routes.range(first..).take_while(move |(name, _)| name.namespace == namespace);
        routes.map(|(name, route)| (name, &**route))
    }

    /// The policy under `key` is `body` from now on.
    fn hold(&mut self, key: PolicyKey, body: Option<&impl Serialize>, delta: &mut Delta) {
        match body.map(|body| PolicyObject::encode(key.clone(), body)) {
            Some(object) => {
                if self.plan.policy.get(&key) != Some(&object) {
                    delta.policy.insert(key.clone(), Some(object.clone()));
                    self.plan.policy.insert(key, object);
                }
            }
            None => {
                if self.plan.policy.remove(&key).is_some() {
                    delta.policy.insert(key, None);
                }
            }
        }
    }

    fn replan_backend(&mut self, name: &ObjectName, delta: &mut Delta) {
        delta.objects.insert(object_id("ModelBackend", name));
        let key = PolicyKey::Backend(name.clone());
        let World { settings, backends, namespaces, .. } = &self.world;
        let Some(object) = backends.get(name) else {
            self.plan.backends.remove(name);
            self.hold(key, None::<&()>, delta);
            return self.set_clusters(name, vec![], delta);
        };
        let (unresolved, in_force) = match backend::key(object, &self.world) {
            backend::Key::Known => (vec![], true),
            backend::Key::Unknown(problem) => (vec![problem], true),
            backend::Key::Missing(problem) => (vec![problem], false),
        };
        match backend::compile(object, namespaces, settings) {
            Ok((body, clusters)) => {
                let mut plan = BackendPlan { unresolved, ..BackendPlan::default() };
                plan.models = body.models.iter().map(|model| model.name.clone()).collect();
                plan.unpriced = body
                    .models
                    .iter()
                    .filter(|model| model.rates.is_none())
                    .map(|model| model.name.clone())
                    .collect();
                if in_force {
                    plan.allowed = Some(body.allowed.clone());
                    plan.clusters = clusters.iter().map(|cluster| cluster.name.clone()).collect();
                }
                self.plan.backends.insert(name.clone(), plan);
                self.hold(key, in_force.then_some(&body), delta);
                self.set_clusters(name, if in_force { clusters.to_vec() } else { vec![] }, delta);
            }
            Err(problems) => {
                let plan = self.plan.backends.entry(name.clone()).or_default();
                plan.problems = problems;
                plan.unresolved = unresolved;
            }
        }
    }

    fn set_clusters(
        &mut self,
        name: &ObjectName,
        clusters: Vec<crate::plan::EnvoyCluster>,
        delta: &mut Delta,
    ) {
        // A key's value may be another one although the cluster is the same.
        delta.clusters |= clusters.iter().any(|cluster| cluster.inject_key.is_some());
        let names = [format!("backend/{name}"), format!("backend/{name}/passthrough")];
        for old in names.iter().filter(|old| !clusters.iter().any(|cluster| cluster.name == **old)) {
            delta.clusters |= self.plan.clusters.remove(old).is_some();
        }
        for cluster in clusters {
            let before = self.plan.clusters.insert(cluster.name.clone(), cluster.clone());
            delta.clusters |= before.as_ref() != Some(&cluster);
        }
    }

    fn replan_route(&mut self, name: &ObjectName, delta: &mut Delta) {
        delta.objects.insert(object_id("ModelRoute", name));
        let key = PolicyKey::Route(name.clone());
        let Some(object) = self.world.routes.get(name) else {
            self.plan.routes.remove(name);
            return self.hold(key, None::<&()>, delta);
        };
        let rivals =
            self.routes_of(&name.namespace).filter(|(_, other)| route::model(other) == route::model(object));
        let eldest = rivals.min_by_key(|(_, other)| route::seniority(other)).map(|(eldest, _)| eldest);
        let (plan, body) =
            route::compile(object, eldest.filter(|eldest| *eldest != name), &self.plan.backends);
        self.plan.routes.insert(name.clone(), plan);
        self.hold(key, body.as_ref(), delta);
    }

    fn replan_budget(&mut self, name: &ObjectName, delta: &mut Delta) {
        delta.objects.insert(object_id("AIBudget", name));
        let key = PolicyKey::Budget(name.clone());
        let World { settings, budgets, namespaces, .. } = &self.world;
        let Some(object) = budgets.get(name) else {
            if let Some(Some(body)) = self.remembered.get(name).filter(|_| !self.whole).cloned() {
                return self.enforce(name, &body, windows(&body), delta);
            }
            self.limit(name, vec![], delta);
            self.plan.budgets.remove(name);
            // Whoever keeps the memory has it.
            if self.remembered.remove(name).is_some() {
                delta.policy.insert(key.clone(), None);
            }
            return self.hold(key, None::<&()>, delta);
        };
        match budget::compile(object, namespaces, settings) {
            Ok((mut body, windows)) => {
                if !self.whole
                    && let Some(Some(before)) = self.remembered.get(name)
                    && selects_namespaces(object)
                {
                    // Namespaces that can't be read yet keep their budget.
                    body.namespaces = union(body.namespaces, &before.namespaces);
                }
                self.enforce(name, &body, windows, delta);
            }
            Err(problems) => {
                let known = self.plan.policy.get(&key).and_then(|object| match object.decode() {
                    Ok(Body::Budget(body)) => Some(body),
                    Ok(_) | Err(_) => None,
                });
                if let Some(body) = known.or_else(|| self.remembered.get(name).cloned().flatten()) {
                    // The mode may be another one.
                    self.enforce(name, &body, windows(&body), delta);
                }
                self.plan.budgets.entry(name.clone()).or_default().problems = problems;
            }
        }
        if self.whole {
            self.remembered.remove(name);
        }
    }

    /// The budget `name` is `body` from now on, as far as the installation's mode lets it.
    fn enforce(&mut self, name: &ObjectName, body: &Budget, windows: Vec<WindowSpec>, delta: &mut Delta) {
        let enforcement = match self.world.settings.mode {
            Enforcement::Observe => Enforcement::Observe,
            Enforcement::Enforce => body.enforcement,
        };
        let terms = body.limits.iter().zip(windows).map(|(limit, window)| {
            let terms = Terms { amount: limit.amount, block_at: limit.block_at, enforcement };
            (limit.key(name), window, terms)
        });
        self.limit(name, terms.collect(), delta);
        self.hold(PolicyKey::Budget(name.clone()), Some(body), delta);
    }

    /// The limits of budget `name` are these from now on.
    fn limit(
        &mut self,
        name: &ObjectName,
        limits: Vec<(plimsoll_core::account::LimitKey, WindowSpec, Terms)>,
        delta: &mut Delta,
    ) {
        let before = self.plan.budgets.remove(name).unwrap_or_default();
        let mut plan = BudgetPlan::default();
        for (key, spec, terms) in limits {
            let first = UnixMs(i64::MIN);
            let fresh = || Window { spec: spec.clone(), limits: 0, end: first, stale: first };
            self.windows.entry(key.window.clone()).or_insert_with(fresh).limits += 1;
            let old = self.plan.limits.insert(key.clone(), terms);
            delta.limits |= old != Some(terms);
            plan.limits.push((key, spec));
        }
        for (key, _) in before.limits {
            if let Some(window) = self.windows.get_mut(&key.window) {
                window.limits -= 1;
            }
            if !plan.limits.iter().any(|(now, _)| *now == key) {
                delta.limits |= self.plan.limits.remove(&key).is_some();
            }
        }
        self.plan.budgets.insert(name.clone(), plan);
    }

    fn replan_windows(&mut self, now: UnixMs, delta: &mut Delta) {
        let ride_through = self.world.settings.ride_through.ms;
        let mut due = Vec::new();
        for (spec, window) in &mut self.windows {
            if window.limits == 0 {
                due.push((spec.clone(), None));
                continue;
            }
            if now >= window.end {
                window.end = window.spec.bounds(now).end;
                delta.windows = true;
            }
            if now >= window.stale {
                let ahead = window.spec.ahead(now.plus(-LATE_MS), ride_through.saturating_add(LATE_MS));
                let first = ahead.bounds.first().map_or(UnixMs::NEVER, |bounds| bounds.end);
                let last = ahead.bounds.last().map_or(UnixMs::NEVER, |bounds| bounds.end);
                let kept = if first == UnixMs::NEVER { first } else { first.plus(LATE_MS) };
                let sent = if last == UnixMs::NEVER { last } else { last.plus(-ride_through) };
                window.stale = kept.min(sent).max(now.plus(1));
                due.push((spec.clone(), Some(ahead)));
            }
        }
        self.windows.retain(|_, window| window.limits > 0);
        for (spec, body) in due {
            self.hold(PolicyKey::Window(spec), body.as_ref(), delta);
        }
    }
}

/// The windows of `body`'s limits, which were made from such specifications.
fn windows(body: &Budget) -> Vec<WindowSpec> {
    body.limits.iter().filter_map(|limit| limit.window.parse().ok()).collect()
}

fn selects_namespaces(budget: &AIBudget) -> bool {
    budget.spec.match_.as_ref().is_some_and(|matches| matches.namespace_selector.is_some())
}

fn union(one: Namespaces, other: &Namespaces) -> Namespaces {
    match (one, other) {
        (Namespaces::Only(one), Namespaces::Only(other)) => Namespaces::Only(&one | other),
        (Namespaces::All, _) | (_, Namespaces::All) => Namespaces::All,
    }
}

/// Names the object of `kind` with this name.
#[must_use]
pub fn object_id(kind: &str, name: &ObjectName) -> ObjectId {
    ObjectId { kind: kind.to_owned(), namespace: name.namespace.clone(), name: name.name.clone() }
}
