//! Which budgets' statuses can differ from the report before. Pure.
//!
//! Too many cost time, too few would leave a status wrong: where it isn't plain, it says all.

use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::PolicyKey;
use plimsoll_plan::{Applied, Delta, Instead, Link, Spend};
use std::collections::{BTreeMap, BTreeSet};
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

    /// A gateway says something else about `key`.
    fn told(&mut self, key: &PolicyKey) {
        match key {
            PolicyKey::Budget(name) => self.add(name),
            PolicyKey::Installation | PolicyKey::Window(_) | PolicyKey::Backend(_) | PolicyKey::Route(_) => {}
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
            for key in differing(&old.rejected, &new.rejected) {
                self.told(key);
            }
            if old.ledger != new.ledger {
                let is_unheard = |link| matches!(link, Link::Never | Link::Expected);
                if is_unheard(old.ledger) || is_unheard(new.ledger) {
                    return Self::All;
                }
                // Why it lags is another reason now.
                if old.lacks.iter().chain(new.lacks.iter()).any(is_window_missing) {
                    return Self::All;
                }
                old.lacks.keys().chain(new.lacks.keys()).for_each(|key| self.told(key));
            }
            // The hub's own map, as long as nothing changes in it.
            if Arc::ptr_eq(&old.lacks, &new.lacks) {
                continue;
            }
            for key in differing(&old.lacks, &new.lacks) {
                let missing =
                    |lacks: &BTreeMap<PolicyKey, Instead>| lacks.get(key) == Some(&Instead::Nothing);
                // Which version of a window is held is no news; that one is held at all is.
                if matches!(key, PolicyKey::Window(_)) && missing(&old.lacks) != missing(&new.lacks) {
                    return Self::All;
                }
                self.told(key);
            }
        }
        let (old, new): (&Spend, &Spend) = (&before.spend, &after.spend);
        for account in differing(old, new) {
            self.add(&account.limit.budget);
        }
        self
    }
}

fn is_window_missing((key, instead): (&PolicyKey, &Instead)) -> bool {
    matches!(key, PolicyKey::Window(_)) && *instead == Instead::Nothing
}

/// Keys that one of the maps lacks, or that have another value there.
fn differing<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value)).map(|(key, _)| key);
    changed.chain(old.keys().filter(|key| !new.contains_key(*key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::account::{AccountKey, Amount, LimitKey, Unit};
    use plimsoll_core::ids::UnixMs;
    use plimsoll_plan::{Gateway, Spent};

    const UP: Link = Link::Up;
    const DOWN: Link = Link::Down { since: UnixMs(5) };

    fn budget(name: &str) -> ObjectName {
        ObjectName::new("finance", name)
    }

    fn key(name: &str) -> PolicyKey {
        PolicyKey::Budget(budget(name))
    }

    fn applied(ledger: Link, lacks: &[(PolicyKey, Instead)], spent: &[(&str, i64)]) -> Applied {
        let mut applied = Applied::default();
        let lacks = Arc::new(lacks.iter().cloned().collect());
        applied.gateways.insert("gw".to_owned(), Gateway { ledger, lacks, ..Gateway::default() });
        for (name, nano) in spent {
            let limit = LimitKey::new(budget(name), "month".into(), Unit::Usd, "Month@UTC".into());
            let account = AccountKey { limit, start: UnixMs(0), key: String::new() };
            applied.spend.insert(account, Spent { settled: Amount(*nano), ..Spent::default() });
        }
        applied
    }

    fn touched(before: &Applied, after: &Applied) -> Touched {
        Touched::default().applied(before, after)
    }

    fn some(names: &[&str]) -> Touched {
        Touched::Some(names.iter().map(|name| budget(name)).collect())
    }

    #[test]
    fn what_was_spent_or_acknowledged_touches_that_budget_alone() {
        use Instead::{Before, Nothing};
        let before = applied(
            UP,
            &[(key("a"), Before), (key("b"), Before), (key("e"), Nothing)],
            &[("c", 1), ("d", 1)],
        );
        let after = applied(
            UP,
            &[(key("b"), Before), (key("e"), Before), (key("new"), Nothing)],
            &[("c", 2), ("d", 1)],
        );
        assert_eq!(touched(&before, &after), some(&["a", "c", "e", "new"]));
        assert_eq!(touched(&before, &before), some(&[]));
        let mut rejected = before.clone();
        let words = BTreeMap::from([(key("b"), "unknown field".to_owned())]);
        rejected.gateways.values_mut().for_each(|gateway| gateway.rejected.clone_from(&words));
        assert_eq!(touched(&before, &rejected), some(&["b"]));
    }

    #[test]
    fn a_gateway_that_comes_and_a_window_that_is_first_held_touch_all() {
        let window = PolicyKey::Window("Month@UTC".to_owned());
        let nothing = applied(UP, &[(window.clone(), Instead::Nothing)], &[]);
        let before = applied(UP, &[(window, Instead::Before)], &[]);
        let current = applied(UP, &[], &[]);
        assert_eq!(touched(&Applied::default(), &current), Touched::All);
        assert_eq!(touched(&nothing, &before), Touched::All);
        assert_eq!(touched(&nothing, &current), Touched::All);
        assert_eq!(touched(&before, &current), some(&[]));
    }

    #[test]
    fn a_stream_that_ends_touches_what_its_gateway_lacks_and_one_that_was_never_heard_all() {
        let lacks = [(key("a"), Instead::Before)];
        assert_eq!(touched(&applied(UP, &lacks, &[]), &applied(DOWN, &lacks, &[])), some(&["a"]));
        assert_eq!(touched(&applied(DOWN, &lacks, &[]), &applied(UP, &[], &[])), some(&["a"]));
        assert_eq!(
            touched(&applied(UP, &[], &[]), &applied(DOWN, &[], &[])),
            some(&[]),
            "what it holds it holds"
        );
        assert_eq!(touched(&applied(Link::Expected, &[], &[]), &applied(UP, &[], &[])), Touched::All);
        let window = [(PolicyKey::Window("Month@UTC".to_owned()), Instead::Nothing)];
        assert_eq!(touched(&applied(UP, &window, &[]), &applied(DOWN, &window, &[])), Touched::All);
    }
}
