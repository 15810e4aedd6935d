//! The ledger is slow, silent or away.

use super::*;

#[test]
fn a_paused_call_goes_on_when_answered_and_clients_that_leave_meanwhile_harm_nothing() {
    let world = enforcing(1_000_000);
    world.ledger.mute(true);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{HELLO}",
        HELLO.len()
    );
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut stream = world.connect();
        stream.write_all(head.as_bytes()).unwrap();
        waiting.push(stream);
    }
    wait_until("twenty pauses", SOON, || {
        let metric = world.metric("plimsoll_gateway_waiting");
        if metric.ends_with(" 20") { Ok(()) } else { Err(metric) }
    })
    .unwrap();
    // All but one leave; that one is told after 5 s that nobody answered.
    let mut last = waiting.pop().unwrap();
    drop(waiting);
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("ledger_unavailable"), "{answer}");
    wait_until("no pauses", SOON, || {
        let metric = world.metric("plimsoll_gateway_waiting");
        if metric.ends_with(" 0") { Ok(()) } else { Err(metric) }
    })
    .unwrap();
    assert!(world.provider.got().is_empty());
    world.ledger.mute(false);
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
}

#[test]
fn the_gateway_outlives_the_operator_and_nothing_is_lost() {
    let mut world = enforcing(1_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(1);
    world.ledger.stop();
    for _ in 0..50 {
        assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    }
    world.ledger.serve();
    assert_eq!(world.rows(51).len(), 51);
    assert_eq!(world.ledger.settled(), 51 * COST);
}

#[test]
fn a_gateway_without_an_operator_is_not_ready_and_serves_nothing() {
    let mut world = World::unstarted(policy(Enforcement::Enforce, &[budget(1_000_000)]), 1);
    world.ledger.stop();
    world.start();
    wait_until("an answer", SOON, || {
        let port = world.port;
        let asked = plimsoll_sim::harness::http::request(
            ("127.0.0.1", port),
            "POST",
            "/v1/chat/completions",
            &[],
            HELLO.as_bytes(),
        );
        match asked {
            Ok(page) if page.status == 503 && page.body.contains("not_ready") => Ok(()),
            Ok(page) => Err(format!("{} {}", page.status, page.body)),
            Err(error) => Err(error.to_string()),
        }
    })
    .unwrap();
    let ready = plimsoll_sim::harness::http::get(("127.0.0.1", world.metrics), "/ready").unwrap();
    assert_eq!(ready.status, 503, "{}", ready.body);
    world.ledger.serve();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
}

#[test]
fn a_steady_load_costs_the_ledger_few_messages() {
    let world = enforcing(1_000_000_000_000);
    // A gateway knows its rate after half a second, and slices are sized by it: steady is what comes then.
    let mut warm = 0;
    wait_until("calls without asking", SOON, || {
        let asks = world.ledger.heard("ask");
        for _ in 0..300 {
            assert_eq!(world.chat("json", HELLO).status, 200);
            warm += 1;
        }
        match world.ledger.heard("ask") - asks {
            0 => Ok(()),
            more => Err(format!("{more} asks for 300 calls")),
        }
    })
    .unwrap();
    let before = world.ledger.messages();
    for _ in 0..1_000 {
        assert_eq!(world.chat("json", HELLO).status, 200);
    }
    let messages = world.ledger.messages() - before;
    assert!(
        messages <= 50,
        "{messages} messages for 1,000 calls: {}",
        world.metric("plimsoll_gateway_ledger")
    );
    assert_eq!(world.rows(warm + 1_000).len(), warm + 1_000);
}
