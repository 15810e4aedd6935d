//! A policy snapshot: the policy objects, compiled for look-up. Swapped whole; slices live apart.

use crate::policy::{PolicyKey, PolicyObject, PolicyVersion};

/// Everything in force at a gateway.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {}

impl Snapshot {
    /// This snapshot after a delta: what was not understood keeps its predecessor and is named with the
    /// reason. `whole`: objects that are not named are gone.
    #[must_use]
    pub fn apply(&self, whole: bool, objects: &[PolicyObject], removed: &[PolicyKey]) -> (Self, Vec<(PolicyKey, String)>) {
        todo!()
    }

    /// What is held, for Hello.
    pub fn versions(&self) -> impl Iterator<Item = (PolicyKey, PolicyVersion)> {
        std::iter::empty()
    }
}
