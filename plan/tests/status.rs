//! What moves a status, and what must not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use plimsoll_api::{AIBudgetStatus, ModelBackendStatus, ModelRouteStatus, Object};
use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_plan::{
    Applied, EventKind, Gateway, Instead, Link, Planner, Settings, Spent, Trouble, events, status,
};

const NOW: UnixMs = UnixMs(1_795_521_600_000);
const DAY: i64 = 86_400_000;

struct Scene {
    planner: Planner,
    applied: Applied,
    now: UnixMs,
    status: Option<AIBudgetStatus>,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self {
            planner: support::planner(Settings::default(), [budget(1, 5)]),
            applied: Applied::default(),
            now: NOW,
            status: None,
        };
        scene.planner.replan(NOW);
        scene.gateway("gw-1", true);
        scene
    }

    fn gateway(&mut self, name: &str, holds: bool) {
        let policy = self.planner.plan().policy.keys().filter(|_| !holds);
        let lacks = std::sync::Arc::new(policy.map(|key| (key.clone(), Instead::Before)).collect());
        let gateway = Gateway { ledger: Link::Up, xds: Link::Up, lacks, ..Gateway::default() };
        self.applied.gateways.insert(name.to_owned(), gateway);
    }

    fn spend(&mut self, dollars_in_cents: i64, exhausted: bool) {
        let (limit, window) = self.planner.plan().budgets.values().next().unwrap().limits[0].clone();
        let start = window.bounds(self.now).start;
        let settled = Amount(dollars_in_cents * 10_000_000);
        let spent = Spent { settled, exhausted, ..Spent::default() };
        self.applied.spend.insert(AccountKey { limit, start, key: String::new() }, spent);
    }

    /// Calls of the account that [`Scene::spend`] set have cost more than was reserved for them.
    fn overrun(&mut self, nanos: i64) {
        self.applied.spend.values_mut().for_each(|spent| spent.overrun = Amount(nanos));
    }

    /// The reasons of the events since the last look.
    fn look(&mut self) -> Vec<&'static str> {
        let name = ObjectName::new("finance", "all");
        let object = &self.planner.world().budgets[&name];
        let new =
            status::budget(&name, object, self.status.as_ref(), self.planner.plan(), &self.applied, self.now);
        let told = events(self.status.as_ref(), &new);
        self.status = Some(new);
        told.iter().map(|event| event.reason).collect()
    }

    fn condition(&self, kind: &str) -> String {
        let condition = self.find(kind);
        format!("{} {}", condition.status, condition.reason)
    }

    fn message(&self, kind: &str) -> &str {
        &self.find(kind).message
    }

    fn find(&self, kind: &str) -> &plimsoll_api::shared::Condition {
        let conditions = &self.status.as_ref().unwrap().conditions;
        conditions.iter().find(|condition| condition.type_ == kind).unwrap()
    }
}

fn budget(generation: i64, amount: i64) -> Object {
    support::objects(&format!(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\n\
         metadata: {{name: all, namespace: finance, generation: {generation}}}\n\
         spec:\n  limits: [{{name: day, amount: {amount}, window: {{period: Day}}}}]\n  \
         stages: [{{trigger: Used, percent: 80, action: Notify}}]\n"
    ))
    .remove(0)
}

#[test]
fn an_exhausted_budget_stays_ready() {
    let mut scene = Scene::new();
    scene.look();
    scene.spend(500, false);
    scene.look();
    assert_eq!(scene.condition("WithinBudget"), "False BudgetExceeded");
    assert_eq!(scene.condition("Ready"), "True InForce");
    assert_eq!(scene.condition("Stalled"), "False InForce");
    assert_eq!(scene.condition("Enforced"), "True Enforced");
}

#[test]
fn what_the_ledger_refused_stays_blocked_over_a_restart_until_there_is_more() {
    let mut scene = Scene::new();
    scene.spend(499, true);
    assert_eq!(scene.look(), ["StageReached", "Blocked"]);
    assert!(
        scene.message("WithinBudget").contains("4.99 of 5.00 USD used, and the rest is too little"),
        "{}",
        scene.message("WithinBudget")
    );
    // A new incarnation has refused nothing yet.
    scene.spend(499, false);
    assert!(scene.look().is_empty());
    assert_eq!(scene.condition("WithinBudget"), "False BudgetExceeded");

    let mut raised =
        Scene { planner: scene.planner, applied: scene.applied, status: scene.status, ..Scene::new() };
    raised.planner.put(budget(2, 6));
    raised.planner.replan(NOW);
    assert_eq!(raised.look(), ["Recovered"]);
    assert_eq!(raised.condition("WithinBudget"), "True WithinBudget");

    raised.spend(599, true);
    raised.look();
    raised.now = NOW.plus(DAY);
    raised.spend(1, false);
    raised.look();
    assert_eq!(raised.condition("WithinBudget"), "True WithinBudget");
}

#[test]
fn a_new_gateway_flips_enforced_alone_and_a_new_generation_waits_for_all() {
    let mut scene = Scene::new();
    scene.look();
    let before = scene.status.clone().unwrap();
    scene.gateway("gw-2", false);
    scene.now = NOW.plus(60_000);
    scene.look();
    assert_eq!(scene.condition("Enforced"), "False WaitingForGateways");
    let after = scene.status.clone().unwrap();
    let differing: Vec<_> = after.conditions.iter().filter(|now| !before.conditions.contains(now)).collect();
    assert_eq!(differing.len(), 1, "{differing:?}");
    assert_eq!((after.gateways.unwrap().enforcing, after.gateways.unwrap().total), (1, 2));

    scene.planner.put(budget(2, 6));
    scene.planner.replan(scene.now);
    scene.gateway("gw-1", false);
    scene.look();
    assert_eq!(scene.condition("Ready"), "False WaitingForGateways");
    assert_eq!(scene.condition("Reconciling"), "True WaitingForGateways");
    assert_eq!(scene.condition("Stalled"), "False WaitingForGateways");
    scene.gateway("gw-1", true);
    scene.gateway("gw-2", true);
    scene.look();
    assert_eq!(scene.condition("Ready"), "True InForce");
    assert_eq!(scene.status.as_ref().unwrap().observed_generation, Some(2));
}

#[test]
fn a_status_that_says_the_same_is_the_same_to_the_byte() {
    let mut scene = Scene::new();
    scene.look();
    let before = scene.status.clone();
    let text = serde_json::to_string(&before).unwrap();
    scene.now = NOW.plus(61_001);
    scene.look();
    assert_eq!(scene.status, before);
    let read: Option<AIBudgetStatus> = serde_json::from_str(&text).unwrap();
    assert_eq!(read, before, "a status survives being stored");
}

#[test]
fn a_stage_is_told_once_a_window_and_the_end_of_a_block_too() {
    let mut scene = Scene::new();
    assert!(scene.look().is_empty());
    scene.spend(399, false);
    assert!(scene.look().is_empty());
    scene.spend(400, false);
    assert_eq!(scene.look(), ["StageReached"]);
    scene.spend(450, false);
    assert!(scene.look().is_empty());
    scene.spend(499, true);
    assert_eq!(scene.look(), ["Blocked"]);
    assert!(scene.look().is_empty());
    scene.now = NOW.plus(DAY);
    assert_eq!(scene.look(), ["Recovered"]);
    scene.spend(500, false);
    assert_eq!(scene.look(), ["StageReached", "Blocked"]);
    scene.planner.put(budget(2, 10));
    scene.planner.replan(scene.now);
    assert_eq!(scene.look(), ["Recovered"], "more money was given");
}

#[test]
fn a_budget_that_observes_tells_what_it_would_block_and_blocks_nothing() {
    let mut scene = Scene::new();
    let mut settings = scene.planner.world().settings.clone();
    settings.mode = plimsoll_core::policy::Enforcement::Observe;
    scene.planner.set(settings);
    scene.planner.replan(scene.now);
    scene.spend(500, false);
    assert_eq!(scene.look(), ["StageReached", "StageReached"]);
}

#[test]
fn a_ledger_that_grants_nothing_is_named() {
    let mut scene = Scene::new();
    let message = "gateway gw-9 has not declared itself; start it, or retire it".to_owned();
    scene.applied.trouble = Some(Trouble { reason: "LedgerWentBack".into(), message });
    scene.look();
    assert_eq!(scene.condition("Enforced"), "False LedgerWentBack");
    assert_eq!(scene.condition("Ready"), "True InForce");
}

#[test]
fn a_warning_is_a_warning() {
    let mut scene = Scene::new();
    scene.spend(400, false);
    let name = ObjectName::new("finance", "all");
    let object = &scene.planner.world().budgets[&name];
    let new = status::budget(&name, object, None, scene.planner.plan(), &scene.applied, scene.now);
    let told = events(None, &new);
    assert_eq!(told[0].kind, EventKind::Warning);
    assert_eq!(told[0].message, "limit day: 80 percent of 5.00 used");
}

#[test]
fn a_call_that_cost_more_than_its_reserve_is_named_while_there_is_room_and_after() {
    let mut scene = Scene::new();
    scene.spend(100, false);
    scene.overrun(4_200_000);
    assert!(scene.look().is_empty());
    assert_eq!(scene.condition("WithinBudget"), "True Overrun");
    let named = "limit day: calls cost 0.0042 USD more than was reserved for them";
    assert_eq!(scene.message("WithinBudget"), format!("every limit has room; {named}"));
    scene.spend(500, false);
    scene.overrun(4_200_000);
    scene.look();
    assert_eq!(scene.condition("WithinBudget"), "False BudgetExceeded");
    assert!(scene.message("WithinBudget").ends_with(named));
    scene.spend(501, false);
    scene.overrun(4_200_000);
    scene.look();
    assert_eq!(scene.condition("WithinBudget"), "False Overrun");
    scene.now = NOW.plus(DAY);
    scene.look();
    assert_eq!(scene.condition("WithinBudget"), "True WithinBudget", "the next window has its own");
}

#[test]
fn the_conditions_that_are_written_are_those_that_are_called_ours() {
    let all = support::objects(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {name: all, namespace: finance}\n\
         spec: {limits: [{name: day, amount: 5}]}\n---\n\
         apiVersion: plimsoll.dev/v1alpha1\nkind: ModelRoute\nmetadata: {name: assistant, namespace: finance}\n\
         spec: {tiers: [{name: all, backends: [{backendRef: {name: openai}, model: gpt-5.2}]}]}\n---\n\
         apiVersion: plimsoll.dev/v1alpha1\nkind: ModelBackend\nmetadata: {name: openai, namespace: finance}\n\
         spec: {provider: {api: OpenAI, baseURL: https://api.openai.com/v1}, models: [{name: gpt-5.2}]}\n",
    );
    let planner = support::planner(Settings::default(), all);
    let (world, plan, applied) = (planner.world(), planner.plan(), Applied::default());
    let (budget, budget_object) = world.budgets.first_key_value().unwrap();
    let (route, route_object) = world.routes.first_key_value().unwrap();
    let (backend, backend_object) = world.backends.first_key_value().unwrap();
    let budget = status::budget(budget, budget_object, None, plan, &applied, NOW);
    let route = status::route(route, route_object, None, plan, &applied, NOW);
    let backend = status::backend(backend, backend_object, None, plan, &applied, NOW);
    let same = |written: &[plimsoll_api::shared::Condition], ours: &[&str]| {
        let mut written: Vec<&str> = written.iter().map(|condition| &*condition.type_).collect();
        let mut ours = ours.to_vec();
        written.sort_unstable();
        ours.sort_unstable();
        assert_eq!(written, ours);
    };
    same(&budget.conditions, &AIBudgetStatus::CONDITIONS);
    same(&route.conditions, &ModelRouteStatus::CONDITIONS);
    same(&backend.conditions, &ModelBackendStatus::CONDITIONS);
}
