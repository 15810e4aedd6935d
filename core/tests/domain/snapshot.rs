//! Snapshots: deltas, what is rejected, what a name resolves to.

use crate::fixture::{
    backend, budget, december, installation, key, model, name, objects, only, route, snapshot, with,
};
use plimsoll_core::policy::{
    Backend, Enforcement, Installation, Namespaces, PolicyKey, PolicyObject, PolicyVersion,
};
use plimsoll_core::snapshot::{Resolved, Snapshot};
use std::time::Instant;

fn resolve(snapshot: &Snapshot, namespace: &str, model: &str) -> Option<String> {
    snapshot.resolve(namespace, model).map(|resolved| match resolved {
        Resolved::Route(route) => format!("route {}", route.name),
        Resolved::Model(backend, model) => format!("{} on {}", model.name, backend.name),
    })
}

#[test]
fn what_is_not_understood_is_named_and_its_predecessor_stays() {
    let before = snapshot();
    let body =
        r#"{"namespaces":"all","limits":[],"enforcement":"Enforce","unpriced":"Deny","pacing":"Even"}"#
            .to_owned();
    let newer = PolicyObject { key: key("budget/finance/invoices"), version: PolicyVersion::of(&body), body };
    let (after, rejected) = before.apply(false, &[newer], &[]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, key("budget/finance/invoices"));
    assert!(rejected[0].1.contains("pacing"), "{}", rejected[0].1);
    assert!(after.budget(&name("finance/invoices")).is_some());
    let held = |snapshot: &Snapshot| {
        let mut held: Vec<_> = snapshot.versions().collect();
        held.sort();
        held
    };
    assert_eq!(held(&after), held(&before));
}

#[test]
fn damaged_and_misplaced_bodies_are_rejected() {
    let mut damaged = PolicyObject::encode(key("budget/finance/x"), &budget(only("finance")));
    damaged.version = PolicyVersion(7);
    let empty = PolicyObject::encode(key("route/finance/x"), &route("x", &[("finance/b", "m", 0)]));
    let mut limitless = budget(only("finance"));
    limitless.limits.clear();
    let limitless = PolicyObject::encode(key("budget/finance/y"), &limitless);
    let zone = PolicyObject::encode(
        PolicyKey::Window("Month@Mars/Olympus".to_owned()),
        &plimsoll_core::policy::WindowBounds { bounds: vec![] },
    );
    let (_, rejected) = Snapshot::default().apply(true, &[damaged, empty, limitless, zone], &[]);
    assert_eq!(rejected.len(), 4, "{rejected:?}");
}

#[test]
fn a_whole_delta_replaces_and_a_part_does_not() {
    let (smaller, _) = snapshot().apply(true, &objects()[..2], &[]);
    assert_eq!(smaller.versions().count(), 2);
    assert!(resolve(&smaller, "finance", "assistant").is_none());
    let (same, _) = snapshot().apply(false, &[], &[]);
    assert_eq!(same.versions().count(), objects().len());
    let (unready, _) = snapshot().apply(false, &[], &[PolicyKey::Installation]);
    assert!(unready.installation().is_none());
}

#[test]
fn a_name_resolves_at_home_then_in_the_root_namespace() {
    let object = |at: &str, body: &Backend| PolicyObject::encode(key(at), body);
    let snapshot = with(&[
        PolicyObject::encode(
            key("route/plimsoll-system/assistant"),
            &route("assistant", &[("plimsoll-system/openai", "gpt-5.2", 1)]),
        ),
        PolicyObject::encode(
            key("route/sales/gpt"),
            &route("gpt-5.2", &[("plimsoll-system/openai", "gpt-5.2", 1)]),
        ),
        object("backend/sales/own", &backend(vec![model("gpt-5.2"), model("mine")])),
        object(
            "backend/plimsoll-system/closed",
            &Backend { allowed: only("sales"), ..backend(vec![model("for-sales")]) },
        ),
    ]);
    let resolve = |namespace, model| resolve(&snapshot, namespace, model).unwrap_or_default();
    assert_eq!(resolve("finance", "assistant"), "route finance/assistant");
    assert_eq!(resolve("sales", "assistant"), "route plimsoll-system/assistant");
    // A route claims a name before any backend; a backend at home before the root's.
    assert_eq!(resolve("sales", "gpt-5.2"), "route sales/gpt");
    assert_eq!(resolve("sales", "mine"), "mine on sales/own");
    assert_eq!(resolve("finance", "mine"), "");
    assert_eq!(resolve("finance", "gpt-5.2"), "gpt-5.2 on plimsoll-system/openai");
    assert_eq!(resolve("sales", "for-sales"), "for-sales on plimsoll-system/closed");
    assert_eq!(resolve("finance", "for-sales"), "");
}

#[test]
fn weights_are_kept_and_unknown_backends_take_none() {
    let weighted = route(
        "w",
        &[
            ("plimsoll-system/openai", "gpt-5.2", 3),
            ("gone/away", "m", 5),
            ("plimsoll-system/openai", "gpt-free", 1),
        ],
    );
    let snapshot = with(&[PolicyObject::encode(key("route/finance/w"), &weighted)]);
    let Some(Resolved::Route(route)) = snapshot.resolve("finance", "w") else { panic!("no route") };
    let drawn: Vec<&str> =
        (0..8).filter_map(|draw| Some(snapshot.draw(route, draw)?.1.name.as_str())).collect();
    assert_eq!(
        drawn,
        ["gpt-5.2", "gpt-5.2", "gpt-5.2", "gpt-free", "gpt-5.2", "gpt-5.2", "gpt-5.2", "gpt-free"]
    );
    let (without, _) = snapshot.apply(false, &[], &[key("backend/plimsoll-system/openai")]);
    let Some(Resolved::Route(route)) = without.resolve("finance", "w") else { panic!("no route") };
    assert!(without.draw(route, 0).is_none());
}

#[test]
fn only_what_enforces_is_leased() {
    let observing =
        plimsoll_core::policy::Budget { enforcement: Enforcement::Observe, ..budget(Namespaces::All) };
    let snapshot = with(&[PolicyObject::encode(key("budget/plimsoll-system/look"), &observing)]);
    let limits: Vec<String> = snapshot.enforced_limits().map(|limit| limit.budget.to_string()).collect();
    assert_eq!(limits, ["finance/invoices"]);
    assert!(snapshot.enforces());
    let observe = Installation { mode: Enforcement::Observe, ..installation() };
    let (snapshot, _) =
        snapshot.apply(false, &[PolicyObject::encode(PolicyKey::Installation, &observe)], &[]);
    assert_eq!(snapshot.enforced_limits().count(), 0);
    assert!(!snapshot.enforces());
    assert_eq!(snapshot.windows().collect::<Vec<_>>(), [("Month@Europe/Berlin", [december()].as_slice())]);
    assert_eq!(
        snapshot.resets("Month@Europe/Berlin", december().start).as_deref(),
        Some("2027-01-01T00:00+01:00")
    );
}

#[test]
fn one_change_among_ten_thousand_costs_one_change() {
    let object = |i: u32, contact: &str| {
        let body = plimsoll_core::policy::Budget {
            features: Some(vec![plimsoll_core::policy::Pattern::Literal(format!("feature-{i}"))]),
            contact: Some(contact.to_owned()),
            ..budget(only(&format!("team-{}", i % 100)))
        };
        PolicyObject::encode(key(&format!("budget/team-{}/b{i}", i % 100)), &body)
    };
    let all: Vec<PolicyObject> = (0..10_000).map(|i| object(i, "#a")).collect();
    let from = Instant::now();
    let (mut snapshot, _) = with(&[]).apply(false, &all, &[]);
    println!("apply 10,000 budgets: {:?}", from.elapsed());
    let rounds = 200;
    let from = Instant::now();
    for i in 0..rounds {
        snapshot = snapshot.apply(false, &[object(i, "#b")], &[]).0;
    }
    let each = from.elapsed() / rounds;
    println!("apply one change among 10,000 budgets: {each:?}");
    assert!(each.as_millis() < 5, "one change took {each:?}");
    assert_eq!(snapshot.versions().count(), 10_005);
}
