//! Golden pairs: `golden/x.in.yaml` makes `golden/x.out.yaml`. Accept a change with
//! `UPDATE=1 cargo test -p plimsoll-plan --test golden`, then read the diff.
//!
//! The first document of an input says the time, the settings, what each gateway does with the plan
//! (holds, waits, rejects) and what is spent of each limit in its current window; the rest are manifests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::PolicyKey;
use plimsoll_plan::{
    Applied, Gateway, Instead, Link, Missing, Part, Plan, Planner, Settings, Spent, events, status,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scene {
    now: i64,
    #[serde(default)]
    settings: Settings,
    #[serde(default)]
    gateways: BTreeMap<String, Behaviour>,
    #[serde(default)]
    spend: BTreeMap<String, Spend>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Behaviour {
    Holds,
    Waits,
    Rejects,
}

/// In the account's smallest unit.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Spend {
    settled: i64,
    unaccounted: i64,
    exhausted: bool,
}

fn applied(scene: &Scene, plan: &Plan) -> Applied {
    let connected = Gateway { ledger: Link::Up, xds: Link::Up, ..Gateway::default() };
    let nothing = || {
        let missing = Missing { part: Part::Cluster, rejected: None };
        Gateway {
            lacks: Arc::new(plan.policy.keys().map(|key| (key.clone(), Instead::Nothing)).collect()),
            clusters: plan.clusters.keys().map(|name| (name.clone(), missing.clone())).collect(),
            ..connected.clone()
        }
    };
    let gateway = |behaviour: &Behaviour| match behaviour {
        Behaviour::Holds => connected.clone(),
        Behaviour::Waits => nothing(),
        Behaviour::Rejects => {
            let words = |key: &PolicyKey| (key.clone(), "unknown field `pacing`".to_owned());
            Gateway { rejected: plan.policy.keys().map(words).collect(), ..nothing() }
        }
    };
    let mut spend = BTreeMap::new();
    for (limit, window) in plan.budgets.values().flat_map(|budget| &budget.limits) {
        let spent =
            scene.spend.get(&format!("{} {}", limit.budget, limit.limit)).copied().unwrap_or_default();
        let start = window.bounds(UnixMs(scene.now)).start;
        let spent = Spent {
            settled: Amount(spent.settled),
            unaccounted: Amount(spent.unaccounted),
            counted_since: (spent.settled > 0).then_some(UnixMs(scene.now - 3_600_000)),
            exhausted: spent.exhausted,
            ..Spent::default()
        };
        spend.insert(AccountKey { limit: limit.clone(), start, key: String::new() }, spent);
    }
    let gateways =
        scene.gateways.iter().map(|(name, behaviour)| (name.clone(), gateway(behaviour))).collect();
    Applied { gateways, spend, trouble: None }
}

fn show(planner: &Planner, applied: &Applied, now: UnixMs) -> Value {
    let plan = planner.plan();
    let world = planner.world();
    let body = |body: &str| serde_json::from_str::<Value>(body).unwrap();
    let policy: Map<_, _> =
        plan.policy.iter().map(|(key, object)| (key.to_string(), body(&object.body))).collect();
    let limit = |(key, terms): (&plimsoll_core::account::LimitKey, &plimsoll_core::ledger::Terms)| {
        let key = AccountKey { limit: key.clone(), start: UnixMs(0), key: String::new() }.to_string();
        let text = format!("{} block at {} {:?}", terms.amount.0, terms.block_at.0, terms.enforcement);
        (key.trim_end_matches("|0|").to_owned(), json!(text))
    };
    let cluster = |cluster: &plimsoll_plan::EnvoyCluster| {
        let key = cluster.inject_key.as_ref().map(|key| format!("{} {}", key.secret, key.key));
        let scheme = if cluster.tls { "https" } else { "http" };
        json!({"to": format!("{scheme} {} {}", cluster.host, cluster.port), "injects": key})
    };
    let mut statuses = Map::new();
    let mut told = Map::new();
    let said = |name: &ObjectName, kind: &str| format!("{kind} {name}");
    for (name, object) in &world.budgets {
        let status = status::budget(name, object, None, plan, applied, now);
        let events: Vec<Value> = events(None, &status)
            .into_iter()
            .map(|event| json!(format!("{:?} {}: {}", event.kind, event.reason, event.message)))
            .collect();
        if !events.is_empty() {
            told.insert(said(name, "AIBudget"), json!(events));
        }
        statuses.insert(said(name, "AIBudget"), serde_json::to_value(status).unwrap());
    }
    for (name, object) in &world.routes {
        let status = status::route(name, object, None, plan, applied, now);
        statuses.insert(said(name, "ModelRoute"), serde_json::to_value(status).unwrap());
    }
    for (name, object) in &world.backends {
        let status = status::backend(name, object, None, plan, applied, now);
        statuses.insert(said(name, "ModelBackend"), serde_json::to_value(status).unwrap());
    }
    statuses.values_mut().for_each(shorten);
    json!({
        "policy": policy,
        "limits": plan.limits.iter().map(limit).collect::<Map<_, _>>(),
        "clusters": plan.clusters.values().map(|one| (one.name.clone(), cluster(one))).collect::<Map<_, _>>(),
        "statuses": statuses,
        "events": told,
    })
}

/// A condition in one line, `Ready=False Reason: message`.
fn shorten(status: &mut Value) {
    for condition in status["conditions"].as_array_mut().unwrap() {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        let line = format!("{}={} {}: {}", text("type"), text("status"), text("reason"), text("message"));
        *condition = json!(line.trim_end_matches(": "));
    }
}

#[test]
fn each_world_is_planned_as_its_golden_file_says() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.to_str().and_then(|name| name.strip_suffix(".in.yaml")) else { continue };
        seen += 1;
        let mut documents: Vec<Value> =
            serde_saphyr::from_multiple(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let scene: Scene = serde_json::from_value(documents.remove(0)).unwrap();
        let now = UnixMs(scene.now);
        let mut planner = support::planner(scene.settings.clone(), documents.iter().map(support::object));
        planner.replan(now);
        let text = serde_saphyr::to_string(&show(&planner, &applied(&scene, planner.plan()), now)).unwrap();
        let golden = format!("{name}.out.yaml");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&golden, &text).unwrap();
        }
        if std::fs::read_to_string(&golden).unwrap_or_default() != text {
            wrong.push(format!("{golden} should be:\n{text}"));
        }
    }
    assert!(seen >= 5);
    assert!(wrong.is_empty(), "{}\nUPDATE=1 accepts it", wrong.join("\n"));
}
