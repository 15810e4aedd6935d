//! The matching index says what asking every budget says.

use crate::fixture::{budget, name};
use plimsoll_core::budget::{BudgetEntry, Traits};
use plimsoll_core::policy::{Budget, Namespaces, Pattern, PolicyKey, PolicyObject};
use plimsoll_core::snapshot::Snapshot;
use proptest::prelude::*;

/// Few values, so that many meet; `(none)` and prefixes of each other among them.
const VALUES: [&str; 6] = ["a", "ab", "abc", "b", "(none)", ""];
const NAMESPACES: [&str; 3] = ["finance", "sales", "plimsoll-system"];

fn pattern() -> impl Strategy<Value = Pattern> {
    (0..VALUES.len(), any::<bool>()).prop_map(|(value, prefix)| {
        let value = VALUES[value].to_owned();
        if prefix { Pattern::Prefix(value) } else { Pattern::Literal(value) }
    })
}

fn patterns() -> impl Strategy<Value = Option<Vec<Pattern>>> {
    proptest::option::of(proptest::collection::vec(pattern(), 1..4))
}

fn budgets() -> impl Strategy<Value = Budget> {
    let namespaces = prop_oneof![
        Just(Namespaces::All),
        proptest::sample::subsequence(NAMESPACES.to_vec(), 1..=3)
            .prop_map(|names| Namespaces::Only(names.into_iter().map(str::to_owned).collect())),
    ];
    (namespaces, patterns(), patterns(), patterns(), patterns()).prop_map(
        |(namespaces, features, users, routes, models)| Budget {
            features,
            users,
            routes,
            models,
            ..budget(namespaces)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_index_finds_what_asking_every_budget_finds(
        budgets in proptest::collection::vec(budgets(), 0..40),
        gone in proptest::collection::vec(any::<bool>(), 40),
        changed in proptest::collection::vec(proptest::option::weighted(0.3, budgets()), 40),
        call in (0..NAMESPACES.len(), 0..VALUES.len(), 0..VALUES.len(), 0..VALUES.len(), 0..VALUES.len()),
    ) {
        let key = |i: usize| PolicyKey::Budget(name(&format!("finance/b{i}")));
        let objects: Vec<_> = budgets.iter().enumerate().map(|(i, b)| PolicyObject::encode(key(i), b)).collect();
        let (snapshot, _) = Snapshot::default().apply(true, &objects, &[]);
        // Change some and remove some, as deltas do.
        let mut now: Vec<Option<Budget>> = budgets.into_iter().map(Some).collect();
        let mut edits = Vec::new();
        let mut removed = Vec::new();
        for (i, slot) in now.iter_mut().enumerate() {
            if let Some(budget) = &changed[i] {
                edits.push(PolicyObject::encode(key(i), budget));
                *slot = Some(budget.clone());
            }
            if gone[i] {
                removed.push(key(i));
                *slot = None;
            }
        }
        let (snapshot, rejected) = snapshot.apply(false, &edits, &removed);
        prop_assert!(rejected.is_empty());
        let traits = Traits {
            namespace: NAMESPACES[call.0],
            feature: VALUES[call.1],
            user: VALUES[call.2],
            route: VALUES[call.3],
            model: VALUES[call.4],
        };
        let mut found = Vec::new();
        snapshot.matching(&traits, |budget| found.push(budget.name.to_string()));
        found.sort();
        let entries = now.into_iter().enumerate().filter_map(|(i, budget)| {
            Some(BudgetEntry::new(name(&format!("finance/b{i}")), budget?))
        });
        let mut naive: Vec<String> =
            entries.filter(|entry| entry.matches(&traits)).map(|entry| entry.name.to_string()).collect();
        naive.sort();
        prop_assert_eq!(found, naive);
    }
}

#[test]
fn a_budget_over_many_namespaces_and_many_users_is_still_found() {
    let namespaces = Namespaces::Only((0..300).map(|i| format!("team-{i}")).collect());
    let users = Some((0..64).map(|i| Pattern::Literal(format!("user-{i}"))).collect());
    let object = PolicyObject::encode(
        PolicyKey::Budget(name("plimsoll-system/wide")),
        &Budget { users, ..budget(namespaces) },
    );
    let (snapshot, _) = Snapshot::default().apply(true, &[object], &[]);
    let count = |namespace, user| {
        let mut count = 0;
        let traits = Traits { namespace, feature: "(none)", user, route: "", model: "m" };
        snapshot.matching(&traits, |_| count += 1);
        count
    };
    assert_eq!(
        (count("team-7", "user-63"), count("team-300", "user-63"), count("team-7", "user-64")),
        (1, 0, 0)
    );
}
