//! What each of some seventy wrong manifests is told, word for word: read `wrong_manifests.yaml` as a page of
//! the manual. `tests/kubernetes_schema.rs` compares what an API server tells of the same ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use plimsoll_api::Object;
use plimsoll_core::ids::UnixMs;
use plimsoll_plan::{Planner, Settings, World, check};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrong {
    manifest: String,
    /// What an API server says; absent: it accepts it, and the condition has this reason.
    server: Option<String>,
    condition: Option<String>,
    offline: String,
}

fn told(manifest: &str) -> Vec<String> {
    let value: serde_json::Value = serde_saphyr::from_str(manifest).unwrap();
    match plimsoll_api::validate(&value) {
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
        Ok(object) => check(&object, &Settings::default()).iter().map(ToString::to_string).collect(),
    }
}

/// Why the plan keeps the object out of force.
fn reason(manifest: &str) -> Option<&'static str> {
    let object = plimsoll_api::validate(&serde_saphyr::from_str(manifest).unwrap()).ok()?;
    let is_budget = matches!(object, Object::Budget(_));
    let mut planner = Planner::new(World::new(Settings::default()));
    planner.put(object);
    planner.replan(UnixMs(0));
    let plan = planner.plan();
    let problems = match is_budget {
        true => plan.budgets.values().next().map(|budget| &budget.problems),
        false => plan.backends.values().next().map(|backend| &backend.problems),
    };
    problems?.first().map(|problem| problem.reason)
}

#[test]
fn each_wrong_manifest_is_told_what_is_wrong_and_what_to_do() {
    let entries: Vec<Wrong> =
        serde_saphyr::from_str(include_str!("../../tests/wrong_manifests.yaml")).unwrap();
    assert!(entries.len() >= 50);
    let mut wrong = String::new();
    for Wrong { manifest, server, condition, offline } in &entries {
        let told = told(manifest).join("\n");
        if told != offline.trim() {
            wrong += &format!("---\n{manifest}\nis told:\n{told}\ninstead of:\n{offline}\n");
        }
        assert_ne!(server.is_some(), condition.is_some(), "{manifest}");
        if let Some(condition) = condition {
            assert!(
                reason(manifest).is_none_or(|reason| reason == condition),
                "{manifest}: {:?}",
                reason(manifest)
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
