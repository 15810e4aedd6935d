//! Lists of conditions that many statuses have, each held once. Pure.
//!
//! Nearly all of 10,000 budgets stand alike, and a list of six conditions has two kilobytes.

use plimsoll_api::shared::Condition;
use std::collections::VecDeque;
use std::sync::Arc;

/// Lists that are remembered. Objects that stand alike come one after the other, so few are enough.
const MOST: usize = 32;

/// The lists that were seen last.
#[derive(Debug, Default)]
pub(super) struct Conditions(VecDeque<Arc<Vec<Condition>>>);

impl Conditions {
    /// Puts an equal list that is held already in place of `list`.
    pub(super) fn share(&mut self, list: &mut Arc<Vec<Condition>>) {
        if let Some(held) = self.0.iter().find(|held| *held == list) {
            *list = Arc::clone(held);
            return;
        }
        self.0.push_front(Arc::clone(list));
        self.0.truncate(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(message: &str) -> Arc<Vec<Condition>> {
        let text = serde_json::json!([{"type": "Ready", "status": "True", "reason": "InForce", "message": message,
            "lastTransitionTime": "2026-11-24T12:00:00Z"}]);
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn equal_lists_are_one_and_others_are_left_alone() {
        let mut conditions = Conditions::default();
        let [mut a, mut b, mut other] = ["in force", "in force", "not in force"].map(list);
        for one in [&mut a, &mut b, &mut other] {
            conditions.share(one);
        }
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(other, list("not in force"));
        for n in 0..2 * MOST {
            conditions.share(&mut list(&n.to_string()));
        }
        assert_eq!(conditions.0.len(), MOST);
    }
}
