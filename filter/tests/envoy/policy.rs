//! What the policy says is what happens: observed, changed, not understood.

use super::*;

#[test]
fn observe_changes_nothing_but_asks_for_usage() {
    let mut observed: (PolicyKey, Budget) = budget(1);
    observed.1.enforcement = Enforcement::Observe;
    let world = World::new(policy(Enforcement::Observe, &[observed]));
    let answer = world.post(
        &[("x-test", "json"), ("x-plimsoll-feature", "f")],
        HELLO.replace("assistant", "small").as_bytes(),
    );
    assert_eq!((answer.status, answer.body.as_str()), (200, JSON));
    assert!(!answer.headers.iter().any(|(name, _)| name.starts_with("x-plimsoll")), "{:?}", answer.headers);
    let got = world.provider.got().remove(0);
    assert_eq!(got.body, HELLO.replace("assistant", "small").as_bytes());
    let answer = world.chat("sse", &STREAM.replace("assistant", "small"));
    assert_eq!(answer.body, format!("{}{DONE}", EVENT.repeat(5)));
    // What nobody knows goes to the default backend as it came.
    let answer = world.chat("json", r#"{"model":"unknown-model","x":1}"#);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(world.provider.got().pop().unwrap().body, br#"{"model":"unknown-model","x":1}"#);
    let rows = world.rows(2);
    assert!(rows.iter().all(|row| row.accounts.is_empty() && row.observed.len() == 1), "{rows:?}");
}

#[test]
fn a_body_that_is_too_large_to_read_passes_as_it_came_where_nothing_enforces() {
    let world = World::new(policy(Enforcement::Observe, &[]));
    let body: Vec<u8> = (0..=255_u8).cycle().take(17 << 20).collect();
    let sent = || world.provider.got().pop().map_or_else(Vec::new, |got| got.body);
    let answer = world.post(&[], &body);
    assert_eq!((answer.status, answer.body.as_str()), (200, JSON), "{}", world.log_text());
    assert!(sent() == body, "what came with its length passed as it was");

    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut chunks = Vec::new();
    for part in body.chunks(1 << 20) {
        write!(chunks, "{:x}\r\n", part.len()).unwrap();
        chunks.extend_from_slice(part);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    let answer = raw(world.connect(), head, &chunks);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(JSON), "{answer}\n{}", world.log_text());
    assert_eq!(world.provider.got().len(), 2);
    assert!(sent() == body, "what came in chunks passed as it was");
    assert!(world.metric("plimsoll_gateway_passed").ends_with(" 2"));
}

#[test]
fn a_changed_policy_is_in_force_once_acknowledged_and_what_is_not_understood_is_named() {
    let world = enforcing(1_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    // The budget shrinks under what is spent; another object has a field that no build knows.
    let mut changed = policy(Enforcement::Enforce, &[budget(10)]);
    let mut unknown =
        changed.iter().find(|object| matches!(object.key, PolicyKey::Route(_))).unwrap().clone();
    unknown.body = unknown.body.replacen('{', "{\"shadow\":true,", 1);
    unknown.version = PolicyVersion::of(&unknown.body);
    changed.retain(|object| object.key != unknown.key);
    changed.push(unknown.clone());
    let before = world.ledger.acks().len();
    world.ledger.set_policy(changed);
    wait_until("the acknowledgement", SOON, || {
        if world.ledger.acks().len() > before { Ok(()) } else { Err(String::new()) }
    })
    .unwrap();
    let ack = world.ledger.acks().pop().unwrap();
    assert_eq!(ack.rejected.len(), 1);
    assert_eq!(ack.rejected[0].0, unknown.key);
    assert!(ack.rejected[0].1.contains("shadow"), "{:?}", ack.rejected);
    // The route's predecessor answers on, and the budget is used up: nothing is granted any more, what is held
    // is recalled.
    wait_until("the block", SOON, || {
        let answer = world.chat("json", HELLO);
        if answer.status == 429 { Ok(()) } else { Err(format!("{} {}", answer.status, answer.body)) }
    })
    .unwrap();
}

#[test]
fn calls_that_no_budget_matches_are_counted_and_others_are_not() {
    let mut observed: (PolicyKey, Budget) = budget(1);
    observed.1.enforcement = Enforcement::Observe;
    observed.1.features = Some(vec![Pattern::Literal("watched".to_owned())]);
    let mut enforced: (PolicyKey, Budget) = budget(1_000_000);
    enforced.0 = PolicyKey::Budget(ObjectName::new("finance", "kept"));
    enforced.1.features = Some(vec![Pattern::Literal("kept".to_owned())]);
    let world = World::new(policy(Enforcement::Enforce, &[observed, enforced]));
    for (feature, unbudgeted) in [("watched", 0), ("kept", 0), ("neither", 1), ("watched", 1), ("neither", 2)]
    {
        let answer = world.post(&[("x-plimsoll-feature", feature)], HELLO.as_bytes());
        assert_eq!(answer.status, 200, "{feature}: {}", answer.body);
        let metric = world.metric("plimsoll_gateway_unbudgeted_total");
        assert_eq!(metric, format!("plimsoll_gateway_unbudgeted_total {unbudgeted}"), "after {feature}");
    }
    assert_eq!(world.metric("plimsoll_gateway_sent_total"), "plimsoll_gateway_sent_total 5");
}

#[test]
fn a_row_names_every_limit_that_it_is_charged_to_and_every_budget_that_observes_it() {
    let (enforcing, mut body): (PolicyKey, Budget) = budget(1_000_000);
    let requests = Limit { name: "calls".into(), unit: Unit::Requests, ..body.limits[0].clone() };
    body.limits.push(requests);
    let watching = |name: &str| {
        let mut observed: (PolicyKey, Budget) = budget(1);
        observed.0 = PolicyKey::Budget(ObjectName::new("finance", name));
        observed.1.enforcement = Enforcement::Observe;
        observed
    };
    let world = World::new(policy(
        Enforcement::Enforce,
        &[(enforcing, body), watching("seen-a"), watching("seen-b")],
    ));
    let answer = world.chat("json", HELLO);
    assert_eq!((answer.status, answer.header("x-plimsoll-budgets")), (200, Some("finance/all")));
    let row = world.rows(1).remove(0);
    let limits: Vec<_> =
        row.accounts.iter().map(|account| (account.limit.limit.as_str(), account.limit.unit)).collect();
    assert_eq!(limits, [("total", Unit::Usd), ("calls", Unit::Requests)]);
    let observed: Vec<_> = row.observed.iter().map(ToString::to_string).collect();
    assert_eq!(observed, ["finance/seen-a", "finance/seen-b"]);
    assert_eq!((row.charge, row.outcome), (charge(COST), Outcome::Completed));
    // Each in its unit: the money and one request where it is enforced, the money where it is observed.
    assert_eq!(world.ledger.settled(), (COST + 1) + 2 * COST);
}

#[test]
fn a_policy_that_changes_between_decision_and_admission_fails_no_call() {
    let world = enforcing(1_000_000_000);
    // The same budget, with its limit in one window and then in the other: whoever decides by one policy may
    // come to slices of the other. A second one enforces and observes in turn.
    let of = |window: &str, second: Enforcement| {
        let mut changed: (PolicyKey, Budget) = budget(1_000_000_000);
        changed.1.limits[0].window = window.to_owned();
        let mut other = changed.clone();
        other.0 = PolicyKey::Budget(ObjectName::new("finance", "second"));
        other.1.enforcement = second;
        let mut objects = policy(Enforcement::Enforce, &[changed, other]);
        let spec: WindowSpec = window.parse().unwrap();
        let bounds = WindowBounds { bounds: vec![spec.bounds(now())] };
        objects.retain(|object| !matches!(object.key, PolicyKey::Window(_)));
        objects.push(PolicyObject::encode(PolicyKey::Window(window.to_owned()), &bounds));
        objects
    };
    let over = std::sync::atomic::AtomicBool::new(false);
    let calls = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut calls = 0;
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        let answer = world.chat("json", HELLO);
                        assert_eq!(answer.status, 200, "after {calls}: {}", answer.body);
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        for i in 0..40 {
            let acks = world.ledger.acks().len();
            let second = [Enforcement::Enforce, Enforcement::Observe, Enforcement::Observe][i % 3];
            world.ledger.set_policy(of(["Year@UTC", "Total@UTC"][i % 2], second));
            wait_until("the acknowledgement", SOON, || {
                if world.ledger.acks().len() > acks { Ok(()) } else { Err(world.log_text()) }
            })
            .unwrap();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join().unwrap()).sum::<usize>()
    });
    let rows = world.rows(calls);
    assert_eq!(rows.len(), calls);
    // Whoever came before the second budget is charged to the first one; everybody else to both, each once, those
    // too that waited for a limit that went.
    let charged = |row: &plimsoll_core::protocol::UsageRow, budget: &str| {
        row.accounts.iter().any(|account| account.limit.budget.name == budget)
            || row.observed.iter().any(|observed| observed.name == budget)
    };
    assert!(rows.iter().all(|row| charged(row, "all")), "{rows:?}");
    let both = rows.iter().filter(|row| charged(row, "second")).count();
    let first = rows.iter().position(|row| charged(row, "second")).unwrap();
    assert!(rows.len() - both <= first + 3, "{both} of {} after {first}", rows.len());
    assert_eq!(world.ledger.settled(), COST * i64::try_from(calls + both).unwrap());
}
