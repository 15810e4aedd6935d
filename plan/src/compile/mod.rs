//! Objects into policy: one file a kind. Each says either what gateways should hold, or why not.

pub mod backend;
pub mod budget;
pub mod route;
pub mod url;

use crate::plan::Problem;
use crate::settings::Settings;
use plimsoll_api::Object;
use plimsoll_api::shared::LabelSelector;
use plimsoll_core::policy::Namespaces;
use std::collections::BTreeMap;

/// What is wrong with `object` by itself, whatever else there is: what `plimsoll validate` says beyond
/// the schema, and what keeps a changed file from replacing the last good state.
#[must_use]
pub fn check(object: &Object, settings: &Settings) -> Vec<plimsoll_api::Problem> {
    let none = BTreeMap::new();
    let problems = match object {
        Object::Budget(budget) => budget::compile(budget, &none, settings).err(),
        Object::Backend(backend) => backend::compile(backend, &none, settings).err(),
        Object::Route(_) | Object::Namespace(_) | Object::Secret(_) => None,
    };
    let id = object.id().to_string();
    let tell = |problem: Problem| plimsoll_api::Problem {
        object: id.clone(),
        field: problem.field,
        message: problem.message,
    };
    problems.unwrap_or_default().into_iter().map(tell).collect()
}

/// The namespaces that `selector` selects of those that exist.
fn selected(selector: &LabelSelector, namespaces: &BTreeMap<String, BTreeMap<String, String>>) -> Namespaces {
    if *selector == LabelSelector::default() {
        return Namespaces::All;
    }
    let those = namespaces.iter().filter(|(_, labels)| selector.selects(labels));
    Namespaces::Only(those.map(|(name, _)| name.clone()).collect())
}
