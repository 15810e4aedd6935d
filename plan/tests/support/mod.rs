//! Manifests into worlds, for the tests of this crate.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use plimsoll_api::Object;
use plimsoll_plan::{Planner, Settings, World};
use serde_json::Value;

/// The objects in a text of several documents; a wrong one panics with what it is told.
pub fn objects(text: &str) -> Vec<Object> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.iter().map(object).collect()
}

/// The object that `manifest` is.
pub fn object(manifest: &Value) -> Object {
    plimsoll_api::validate(manifest).unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })
}

/// A planner for a world of these objects.
pub fn planner(settings: Settings, objects: impl IntoIterator<Item = Object>) -> Planner {
    let mut planner = Planner::new(World::new(settings));
    objects.into_iter().for_each(|object| planner.put(object));
    planner
}
