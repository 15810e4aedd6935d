//! The examples are valid and plan without a problem.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use plimsoll_core::ids::UnixMs;
use plimsoll_plan::{Settings, check};
use std::path::Path;

#[test]
fn every_example_is_valid_and_in_force() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            objects.extend(support::objects(&std::fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(objects.len() >= 10, "only {} examples", objects.len());
    for object in &objects {
        assert_eq!(check(object, &Settings::default()), []);
    }
    let mut planner = support::planner(Settings::default(), objects);
    planner.replan(UnixMs(1_790_000_000_000));
    let plan = planner.plan();
    let problems =
        plan.backends.values().flat_map(|backend| backend.problems.iter().chain(&backend.unresolved));
    let problems = problems.chain(
        plan.routes
            .values()
            .flat_map(|route| route.problems.iter().chain(&route.unresolved).chain(&route.waiting)),
    );
    assert_eq!(problems.chain(plan.budgets.values().flat_map(|budget| &budget.problems)).count(), 0);
    assert_eq!(plan.backends.values().map(|backend| backend.unpriced.len()).sum::<usize>(), 0);
    assert_eq!(plan.budgets.len(), 5);
    assert_eq!(plan.routes.len(), 1);
}
