//! Which budgets' statuses can differ from the report before. Pure.
//!
//! Too many cost time, too few would leave a status wrong: where it isn't plain, it says all.

use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::PolicyKey;
use plimsoll_plan::{Applied, Delta, Spend};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Some budgets, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// These.
    Some(BTreeSet<ObjectName>),
    /// Every one.
    All,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Touched {
    pub(super) fn contains(&self, name: &ObjectName) -> bool {
        match self {
            Self::Some(names) => names.contains(name),
            Self::All => true,
        }
    }

    fn add(&mut self, name: &ObjectName) {
        match self {
            Self::Some(names) => drop(names.insert(name.clone())),
            Self::All => {}
        }
    }

    /// The plan changed.
    pub(super) fn planned(&mut self, delta: &Delta) {
        // A window that began changes every status that shows it; what is served decides about prices.
        let all = delta.windows || delta.policy.contains_key(&PolicyKey::Installation);
        if all || delta.objects.iter().any(|id| id.kind != "AIBudget") {
            *self = Self::All;
        }
        for id in &delta.objects {
            self.add(&ObjectName::new(&*id.namespace, &*id.name));
        }
    }

    /// What was applied changed from `before` to `after`.
    pub(super) fn applied(mut self, before: &Applied, after: &Applied) -> Self {
        if before.trouble != after.trouble || !before.gateways.keys().eq(after.gateways.keys()) {
            return Self::All;
        }
        for (old, new) in before.gateways.values().zip(after.gateways.values()) {
            if old.rejected != new.rejected {
                return Self::All;
            }
            // The hub's own map, as long as nothing is acknowledged.
            if Arc::ptr_eq(&old.held, &new.held) {
                continue;
            }
            for key in differing(&old.held, &new.held) {
                match key {
                    PolicyKey::Budget(name) => self.add(name),
                    // Which version of a window is held is no news; that one is held at all is.
                    PolicyKey::Window(_) if old.held.contains_key(key) == new.held.contains_key(key) => {}
                    PolicyKey::Window(_) => return Self::All,
                    PolicyKey::Installation | PolicyKey::Backend(_) | PolicyKey::Route(_) => {}
                }
            }
        }
        let (old, new): (&Spend, &Spend) = (&before.spend, &after.spend);
        for account in differing(old, new) {
            self.add(&account.limit.budget);
        }
        self
    }
}

/// Keys that one of the maps lacks, or that have another value there.
fn differing<'a, K: Ord, V: PartialEq>(
    old: &'a std::collections::BTreeMap<K, V>,
    new: &'a std::collections::BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value)).map(|(key, _)| key);
    changed.chain(old.keys().filter(|key| !new.contains_key(*key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::account::{AccountKey, Amount, LimitKey, Unit};
    use plimsoll_core::ids::UnixMs;
    use plimsoll_core::policy::PolicyVersion;
    use plimsoll_plan::{Gateway, Spent};

    fn budget(name: &str) -> ObjectName {
        ObjectName::new("finance", name)
    }

    fn applied(held: &[(PolicyKey, u64)], spent: &[(&str, i64)]) -> Applied {
        let mut applied = Applied::default();
        let held = held.iter().map(|(key, version)| (key.clone(), PolicyVersion(*version))).collect();
        applied.gateways.insert("gw".to_owned(), Gateway { held: Arc::new(held), ..Gateway::default() });
        for (name, nano) in spent {
            let limit = LimitKey::new(budget(name), "month".into(), Unit::Usd, "Month@UTC".into());
            let account = AccountKey { limit, start: UnixMs(0), key: String::new() };
            applied.spend.insert(account, Spent { settled: Amount(*nano), ..Spent::default() });
        }
        applied
    }

    fn some(names: &[&str]) -> Touched {
        Touched::Some(names.iter().map(|name| budget(name)).collect())
    }

    #[test]
    fn what_was_spent_or_acknowledged_touches_that_budget_alone() {
        let key = |name| PolicyKey::Budget(budget(name));
        let before = applied(&[(key("a"), 1), (key("b"), 1), (key("gone"), 1)], &[("c", 1), ("d", 1)]);
        let after = applied(&[(key("a"), 2), (key("b"), 1), (key("new"), 1)], &[("c", 2), ("d", 1)]);
        assert_eq!(Touched::default().applied(&before, &after), some(&["a", "c", "gone", "new"]));
        assert_eq!(Touched::default().applied(&before, &before), some(&[]));
    }

    #[test]
    fn a_gateway_that_comes_and_a_window_that_is_first_held_touch_all() {
        let window = PolicyKey::Window("Month@UTC".to_owned());
        let before = applied(&[], &[]);
        assert_eq!(Touched::default().applied(&Applied::default(), &before), Touched::All);
        assert_eq!(Touched::default().applied(&before, &applied(&[(window.clone(), 1)], &[])), Touched::All);
        let later = applied(&[(window.clone(), 2)], &[]);
        assert_eq!(Touched::default().applied(&applied(&[(window, 1)], &[]), &later), some(&[]));
    }
}
