//! `make demo` with trouble: recorded traffic over a real API server, while objects are changed and applied
//! again, and the operator and the API server are killed and started again.

#![allow(clippy::unwrap_used, missing_docs)]

use plimsoll_sim::harness::{build, profile_dir};
use serde_json::Value;
use std::process::Command;

#[test]
fn budgets_hold_while_objects_change_and_operator_and_api_server_are_killed() {
    build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let demo = profile_dir().unwrap().join("examples/demo");
    let output = Command::new(demo).arg("--trouble").arg("--dir").arg(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // Its own verdict: overspend 0, charged as billed, wrongly refused at most 0.1 %, every change in force.
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{said}");
    for deed in ["$ kubectl apply -f", "kill -9 of the operator", "kill -9 of the API server"] {
        assert_eq!(said.matches(deed).count(), 2, "{deed}: {said}");
    }
    let summary = std::fs::read(dir.path().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    let budget = |name: &str| {
        let found = summary["budgets"].as_array().unwrap().iter().find(|budget| budget["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {summary:#}")).clone()
    };
    for name in ["finance/all", "finance/search"] {
        let used = budget(name)["used_share"].as_f64().unwrap();
        assert!(used >= 0.99, "{name}: {used} of it was used");
        assert!(budget(name)["refused"].as_u64().unwrap() > 0, "{name} never refused");
    }
}
