//! What was in force stays so while its object is bad or can't be read, over a restart too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use plimsoll_api::Object;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::{Body, Budget, Enforcement, Namespaces, PolicyKey};
use plimsoll_plan::{Applied, Gateway, Link, Plan, Planner, Settings, World, status};
use std::collections::BTreeMap;

const NOW: UnixMs = UnixMs(1_795_521_600_000);

fn name(name: &str) -> ObjectName {
    ObjectName::new("plimsoll-system", name)
}

/// `zone`: a place that does not exist makes it bad, though its schema is kept.
fn budget(name: &str, amount: i64, zone: &str) -> Object {
    with_match(name, amount, zone, "{features: [x]}")
}

fn with_match(name: &str, amount: i64, zone: &str, matches: &str) -> Object {
    support::objects(&format!(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\n\
         metadata: {{name: {name}, namespace: plimsoll-system, generation: 1}}\n\
         spec: {{match: {matches}, limits: [{{name: day, amount: {amount}, window: {{period: Day, timeZone: {zone}}}}}]}}\n"
    ))
    .remove(0)
}

fn team(name: &str) -> Object {
    let text =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{paid: \"yes\"}}}}\n");
    support::objects(&text).remove(0)
}

fn body(plan: &Plan, budget: &str) -> Option<Budget> {
    match plan.policy.get(&PolicyKey::Budget(name(budget)))?.decode().unwrap() {
        Body::Budget(body) => Some(body),
        other => panic!("{other:?}"),
    }
}

/// Amount and enforcement that the ledger keeps to.
fn terms(plan: &Plan, budget: &str) -> Option<(i64, Enforcement)> {
    let mut limits = plan.limits.iter().filter(|(key, _)| key.budget == name(budget));
    let found = limits.next().map(|(_, terms)| (terms.amount.0 / 1_000_000_000, terms.enforcement));
    assert!(limits.next().is_none());
    found
}

/// A planner that begins with what `before` had in force.
fn restarted(before: &Plan) -> Planner {
    let keys = before.policy.keys().filter_map(|key| match key {
        PolicyKey::Budget(name) => Some(name.name.clone()),
        _ => None,
    });
    let remembered = keys.map(|key| (name(&key), body(before, &key).unwrap())).collect();
    let mut planner = Planner::new(World::new(Settings::default()));
    planner.remember(remembered);
    planner
}

fn before(objects: impl IntoIterator<Item = Object>) -> Plan {
    let mut planner = support::planner(Settings::default(), objects);
    planner.replan(NOW);
    planner.into_plan()
}

#[test]
fn a_budget_that_turned_bad_follows_the_installations_mode_with_its_predecessor() {
    let mut planner = support::planner(Settings::default(), [budget("a", 5, "UTC")]);
    planner.replan(NOW);
    planner.put(budget("a", 7, "Europe/Nowhere"));
    planner.replan(NOW);
    assert_eq!(terms(planner.plan(), "a"), Some((5, Enforcement::Enforce)));
    planner.set(Settings { mode: Enforcement::Observe, ..Settings::default() });
    assert!(planner.replan(NOW).limits);
    assert_eq!(terms(planner.plan(), "a"), Some((5, Enforcement::Observe)));
    planner.set(Settings::default());
    assert!(planner.replan(NOW).limits);
    assert_eq!(terms(planner.plan(), "a"), Some((5, Enforcement::Enforce)));
    assert_eq!(planner.plan().budgets[&name("a")].problems.len(), 1, "it is still bad");
}

#[test]
fn a_budget_that_is_bad_at_the_start_keeps_the_version_that_was_in_force() {
    let old = before([budget("a", 5, "Europe/Berlin")]);
    let mut planner = restarted(&old);
    planner.put(budget("a", 7, "Europe/Nowhere"));
    planner.whole();
    let delta = planner.replan(NOW);
    assert_eq!(planner.plan().policy, old.policy, "gateways hold just this: nothing is sent or removed");
    assert!(delta.policy.values().all(Option::is_some), "{delta:?}");
    assert_eq!(terms(planner.plan(), "a"), Some((5, Enforcement::Enforce)));

    let gateway = Gateway { ledger: Link::Up, xds: Link::Up, ..Gateway::default() };
    let applied = Applied { gateways: [("gw".to_owned(), gateway)].into(), ..Applied::default() };
    let object = &planner.world().budgets[&name("a")];
    let status = status::budget(&name("a"), object, None, planner.plan(), &applied, NOW);
    let condition =
        |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind).unwrap().clone();
    let stalled = condition("Stalled");
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "InvalidTimeZone"));
    assert!(stalled.message.ends_with("The version before it stays in force."), "{}", stalled.message);
    assert_eq!(condition("Enforced").message, "every gateway enforces the version before; see Stalled");

    planner.put(budget("a", 7, "UTC"));
    planner.replan(NOW);
    assert_eq!(terms(planner.plan(), "a"), Some((7, Enforcement::Enforce)));
    assert!(planner.plan().budgets[&name("a")].problems.is_empty());
}

#[test]
fn a_budget_that_is_bad_and_was_never_good_is_in_force_nowhere() {
    let mut planner = support::planner(Settings::default(), [budget("a", 7, "Europe/Nowhere")]);
    planner.whole();
    planner.replan(NOW);
    assert_eq!((terms(planner.plan(), "a"), body(planner.plan(), "a")), (None, None));
}

#[test]
fn what_nobody_tells_of_stays_until_everything_was_told() {
    let old = before([budget("a", 5, "UTC"), budget("b", 6, "UTC")]);
    let mut planner = restarted(&old);
    planner.put(budget("b", 8, "UTC"));
    planner.replan(NOW);
    assert_eq!(terms(planner.plan(), "a"), Some((5, Enforcement::Enforce)), "its file can't be read");
    assert_eq!(terms(planner.plan(), "b"), Some((8, Enforcement::Enforce)), "others are not held up");
    assert_eq!(planner.untold().collect::<Vec<_>>(), [&name("a")]);
    planner.whole();
    let delta = planner.replan(NOW);
    assert_eq!(delta.policy.get(&PolicyKey::Budget(name("a"))), Some(&None));
    assert_eq!(terms(planner.plan(), "a"), None);
    assert_eq!(planner.untold().count(), 0);
}

#[test]
fn what_was_deleted_while_nobody_looked_is_gone_at_once_and_forgotten() {
    let old = before([budget("a", 5, "UTC"), budget("b", 6, "UTC")]);
    let mut planner = restarted(&old);
    planner.put(budget("b", 6, "UTC"));
    planner.whole();
    let delta = planner.replan(NOW);
    assert_eq!(terms(planner.plan(), "a"), None);
    let gone = delta.policy.get(&PolicyKey::Budget(name("a")));
    assert_eq!(gone, Some(&None), "or it would be remembered at the next start");
}

#[test]
fn what_is_known_to_be_gone_does_not_wait_for_the_rest() {
    let old = before([budget("a", 5, "UTC")]);
    for bad in [true, false] {
        let mut planner = restarted(&old);
        let object = budget("a", 5, if bad { "Europe/Nowhere" } else { "UTC" });
        let id = object.id();
        planner.put(object);
        planner.replan(NOW);
        planner.remove(&id);
        let delta = planner.replan(NOW);
        assert_eq!(terms(planner.plan(), "a"), None);
        assert_eq!(delta.policy.get(&PolicyKey::Budget(name("a"))), Some(&None));
    }
}

#[test]
fn namespaces_that_are_not_told_yet_keep_their_budget() {
    let all = || with_match("a", 5, "UTC", "{namespaceSelector: {matchLabels: {paid: \"yes\"}}}");
    let old = before([team("finance"), team("sales"), all()]);
    let mut planner = restarted(&old);
    planner.put(all());
    planner.put(team("sales"));
    planner.replan(NOW);
    let namespaces = |planner: &Planner| body(planner.plan(), "a").unwrap().namespaces;
    let of = |names: &[&str]| Namespaces::Only(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(namespaces(&planner), of(&["finance", "sales"]));
    planner.whole();
    planner.replan(NOW);
    assert_eq!(namespaces(&planner), of(&["sales"]));
}

#[test]
fn nothing_remembered_changes_nothing() {
    let objects = || [budget("a", 5, "UTC"), budget("b", 6, "Europe/Berlin")];
    let mut planner = restarted(&before([]));
    objects().into_iter().for_each(|object| planner.put(object));
    planner.whole();
    planner.replan(NOW);
    assert_eq!(planner.plan(), &before(objects()));
    assert_eq!(BTreeMap::from_iter(planner.untold().map(|name| (name, ()))), BTreeMap::new());
}

#[test]
fn a_key_that_may_not_be_read_takes_no_backend_away_and_one_that_is_gone_does() {
    let objects = || {
        support::objects(
            "apiVersion: plimsoll.dev/v1alpha1\nkind: ModelBackend\n\
             metadata: {name: openai, namespace: plimsoll-system, generation: 1}\n\
             spec:\n  provider: {api: OpenAI, baseURL: \"https://api.openai.com/v1\", \
             apiKeySecretRef: {name: openai, key: k}}\n  models: [{name: m, contextTokens: 1000, maxOutputTokens: 100}]\n",
        )
    };
    let key = PolicyKey::Backend(name("openai"));
    let mut planner = support::planner(Settings::default(), objects());
    planner.deny_secrets("plimsoll-system", Some("grant list on secrets".to_owned()));
    planner.replan(NOW);
    let plan = planner.plan();
    assert!(plan.policy.contains_key(&key) && plan.clusters.len() == 2);
    assert_eq!(plan.backends[&name("openai")].unresolved[0].reason, "SecretForbidden");

    planner.deny_secrets("plimsoll-system", None);
    planner.replan(NOW);
    let plan = planner.plan();
    assert!(!plan.policy.contains_key(&key) && plan.clusters.is_empty());
    assert_eq!(plan.backends[&name("openai")].unresolved[0].reason, "SecretNotFound");
}
