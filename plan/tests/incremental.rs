//! A plan that was kept up to date equals one made at once, whatever the order of changes; and how
//! long a change takes among 10,000 budgets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use plimsoll_api::{Object, ObjectId};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::policy::{Body, Enforcement, PolicyKey};
use plimsoll_plan::settings::Duration;
use plimsoll_plan::{Delta, Planner, Settings, World, plan};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One step in the life of a world.
#[derive(Clone, Debug)]
enum Step {
    Put(Value),
    Remove(&'static str, &'static str, &'static str),
    Set(Settings),
    Replan(i64),
}

const NAMESPACES: [&str; 3] = ["root", "a", "b"];
const NAMES: [&str; 3] = ["x", "y", "z"];

fn of(list: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(list)
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"matchLabels": {"team": "red"}})),
        Just(json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["red"]}]})),
    ]
}

fn manifest(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn budget() -> impl Strategy<Value = Value> {
    let zones = of(&["UTC", "Europe/Berlin"]);
    let periods = of(&["Minute", "Hour", "Day", "Total"]);
    let limit = (1..1000_i64, periods, zones, of(&["USD", "Tokens"]));
    let limits = prop::collection::vec(limit, 1..4);
    (of(&NAMESPACES), of(&NAMES), limits, prop::option::of(selector()), any::<bool>()).prop_map(
        |(namespace, name, limits, selector, observe)| {
            let limit = |(index, (amount, period, zone, unit)): (usize, &(i64, &str, &str, &str))| {
                json!({"name": format!("l{index}"), "amount": amount, "unit": unit,
                    "window": {"period": period, "timeZone": zone}})
            };
            let limits: Vec<Value> = limits.iter().enumerate().map(limit).collect();
            let mut spec = json!({"limits": limits});
            // Elsewhere it is wrong, and then the predecessor stays: a plan at once has none.
            if let (Some(selector), "root") = (selector, namespace) {
                spec["match"] = json!({"namespaceSelector": selector});
            }
            if observe {
                spec["enforcement"] = json!("Observe");
            }
            manifest("AIBudget", namespace, name, spec)
        },
    )
}

fn route() -> impl Strategy<Value = Value> {
    let backend = (prop::option::of(of(&NAMESPACES)), of(&NAMES), of(&["m", "n"]), 0..2_u32);
    let backends = prop::collection::vec(backend, 1..3);
    let metadata = (of(&NAMESPACES), of(&NAMES), prop::option::of(of(&["m", "x", "y"])), 0..3_u32);
    (metadata, backends).prop_map(|((namespace, name, model, age), backends)| {
        let entry = |(other, name, model, weight): &(Option<&str>, &str, &str, u32)| {
            let mut reference = json!({"name": name});
            if let Some(other) = other {
                reference["namespace"] = json!(other);
            }
            json!({"backendRef": reference, "model": model, "weight": weight})
        };
        let mut backends: Vec<Value> = backends.iter().map(entry).collect();
        backends[0]["weight"] = json!(1);
        let mut spec = json!({"tiers": [{"name": "only", "backends": backends}]});
        if let Some(model) = model {
            spec["model"] = json!(model);
        }
        let mut manifest = manifest("ModelRoute", namespace, name, spec);
        if age > 0 {
            manifest["metadata"]["creationTimestamp"] = json!(format!("2026-01-0{age}T00:00:00Z"));
        }
        manifest
    })
}

fn backend() -> impl Strategy<Value = Value> {
    let scope = prop_oneof![
        Just(json!({"from": "Same"})),
        Just(json!({"from": "All"})),
        selector().prop_map(|selector| json!({"from": "Selector", "selector": selector})),
    ];
    let models = prop::sample::subsequence(vec!["m", "n"], 1..=2);
    let names = (of(&NAMESPACES), of(&NAMES));
    (names, scope, models, prop::option::of(of(&["s", "t"])), 1..3_i64).prop_map(
        |((namespace, name), scope, models, secret, price)| {
            let model = |name: &&str| json!({"name": name, "price": {"inputPerMillion": price, "outputPerMillion": 2}});
            let mut provider = json!({"api": "OpenAI", "baseURL": "https://api.example.com/v1"});
            if let Some(secret) = secret {
                provider["apiKeySecretRef"] = json!({"name": secret, "key": "key"});
            }
            let models: Vec<Value> = models.iter().map(model).collect();
            let spec = json!({"provider": provider, "models": models, "allowedRoutes": {"namespaces": scope}});
            manifest("ModelBackend", namespace, name, spec)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let namespace = (of(&NAMESPACES), prop::option::of(of(&["red", "blue"]))).prop_map(|(name, team)| {
        let labels = team.map_or(json!({}), |team| json!({"team": team}));
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    });
    let secret =
        (of(&NAMESPACES), of(&["s", "t"]), of(&["key", "other"])).prop_map(|(namespace, name, key)| {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
            "stringData": {key: "v"}})
        });
    let settings = (any::<bool>(), any::<bool>(), 1..100_i64).prop_map(|(observe, more, minutes)| Settings {
        mode: if observe { Enforcement::Observe } else { Enforcement::Enforce },
        secret_namespaces: if more { ["a".to_owned()].into() } else { [].into() },
        ride_through: Duration { ms: minutes * 60_000 },
        ..settings()
    });
    let kinds = of(&["AIBudget", "ModelRoute", "ModelBackend"]);
    prop_oneof![
        4 => budget().prop_map(Step::Put),
        4 => route().prop_map(Step::Put),
        4 => backend().prop_map(Step::Put),
        2 => namespace.prop_map(Step::Put),
        2 => secret.prop_map(Step::Put),
        3 => (kinds, of(&NAMESPACES), of(&NAMES)).prop_map(|(kind, space, name)| Step::Remove(kind, space, name)),
        1 => of(&NAMESPACES).prop_map(|name| Step::Remove("Namespace", "", name)),
        1 => (of(&NAMESPACES), of(&["s", "t"])).prop_map(|(space, name)| Step::Remove("Secret", space, name)),
        1 => settings.prop_map(Step::Set),
        4 => (0..10_000_000_i64).prop_map(Step::Replan),
    ]
}

fn settings() -> Settings {
    Settings { root_namespace: "root".into(), ..Settings::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_plan_kept_up_to_date_equals_one_made_at_once(steps in prop::collection::vec(step(), 1..40)) {
        let mut planner = Planner::new(World::new(settings()));
        let mut now = UnixMs(1_790_000_000_000);
        let mut held = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Replan(1)]) {
            match step {
                Step::Put(manifest) => planner.put(support::object(&manifest)),
                Step::Remove(kind, namespace, name) => planner.remove(&ObjectId {
                    kind: kind.into(), namespace: namespace.into(), name: name.into(),
                }),
                Step::Set(settings) => planner.set(settings),
                Step::Replan(later) => {
                    now = now.plus(later);
                    let before = planner.plan().clone();
                    let Delta { policy, limits, clusters, windows: _, objects: _ } = planner.replan(now);
                    for (key, object) in policy {
                        match object {
                            Some(object) => drop(held.insert(key, object)),
                            None => drop(held.remove(&key)),
                        }
                    }
                    let at_once = plan(planner.world().clone(), now);
                    prop_assert_eq!(planner.plan(), &at_once);
                    prop_assert_eq!(&held, &at_once.policy, "the deltas add up to the plan");
                    prop_assert!(limits || before.limits == at_once.limits);
                    prop_assert!(clusters || before.clusters == at_once.clusters);
                    prop_assert!(planner.next() > now);
                }
            }
        }
    }
}

#[test]
fn a_budget_that_turns_bad_keeps_its_predecessor_in_force() {
    let budget = |zone: &str| {
        let spec =
            json!({"limits": [{"name": "day", "amount": 5, "window": {"period": "Day", "timeZone": zone}}]});
        support::object(&manifest("AIBudget", "a", "x", spec))
    };
    let mut planner = support::planner(settings(), [budget("UTC")]);
    planner.replan(UnixMs(0));
    let before = planner.plan().clone();
    planner.put(budget("Nowhere"));
    let delta = planner.replan(UnixMs(1));
    assert!(delta.policy.is_empty() && !delta.limits);
    assert_eq!(planner.plan().policy, before.policy);
    assert_eq!(planner.plan().limits, before.limits);
    assert_eq!(planner.plan().budgets.values().next().unwrap().problems[0].reason, "InvalidTimeZone");
    planner.put(budget("Europe/Paris"));
    planner.replan(UnixMs(2));
    assert!(planner.plan().limits.keys().all(|limit| limit.window == "Day@Europe/Paris"));
    assert_eq!(planner.plan().limits.len(), 1);
}

#[test]
fn a_window_that_ended_is_sent_for_two_seconds_more_and_shown_no_longer() {
    let spec = json!({"limits": [{"name": "minute", "amount": 5, "window": {"period": "Minute"}}]});
    let mut planner = support::planner(settings(), [support::object(&manifest("AIBudget", "a", "x", spec))]);
    let starts = |planner: &Planner| -> Vec<i64> {
        let key = PolicyKey::Window("Minute@UTC".to_owned());
        let Body::Window(window) = planner.plan().policy[&key].decode().unwrap() else { panic!("a window") };
        window.bounds.iter().map(|bounds| bounds.start.0).collect()
    };
    planner.replan(UnixMs(30_000));
    assert_eq!((starts(&planner)[0], planner.next()), (0, UnixMs(60_000)));
    let delta = planner.replan(UnixMs(60_000));
    assert!(delta.windows, "statuses show the new one: {delta:?}");
    assert_eq!((&starts(&planner)[..2], planner.next()), (&[0, 60_000][..], UnixMs(62_000)));
    let delta = planner.replan(UnixMs(62_000));
    assert!(!delta.windows);
    assert_eq!((starts(&planner)[0], planner.next()), (60_000, UnixMs(120_000)));
    // Whoever starts within the two seconds sends it as well.
    planner.set(settings());
    planner.replan(UnixMs(121_999));
    assert_eq!(starts(&planner)[0], 60_000);
}

/// Run with `--nocapture` to see the figures. The bound is wide, for a loaded machine: what it
/// guards against is a change that plans all budgets again.
#[test]
fn one_changed_budget_among_ten_thousand_is_planned_in_milliseconds() {
    let budget = |number: usize, amount: usize| {
        let (namespace, name) = (format!("team-{}", number % 100), format!("b{number}"));
        let spec = json!({"match": {"features": [name]}, "limits": [{"name": "month", "amount": amount}]});
        support::object(&manifest("AIBudget", &namespace, &name, spec))
    };
    let started = std::time::Instant::now();
    let objects: Vec<Object> = (0..10_000).map(|number| budget(number, 5)).collect();
    println!("10,000 budgets checked in {:?}", started.elapsed());
    let mut planner = support::planner(Settings::default(), objects);
    let started = std::time::Instant::now();
    planner.replan(UnixMs(1_790_000_000_000));
    let all = started.elapsed();
    let mut times = Vec::new();
    for number in 0..101 {
        let object = budget(number * 7, 6);
        let started = std::time::Instant::now();
        planner.put(object);
        let delta = planner.replan(UnixMs(1_790_000_000_001));
        times.push(started.elapsed());
        assert_eq!(delta.policy.len(), 1);
    }
    times.sort();
    println!(
        "10,000 budgets planned in {all:?}; one of them again in {:?} (median), {:?} (worst of 101)",
        times[50], times[100]
    );
    assert!(times[50] < std::time::Duration::from_millis(5), "{:?}", times[50]);
}
