//! What passes: routed, rewritten, metered, and settled however it ends.

use super::*;

#[test]
fn a_json_call_is_routed_rewritten_metered_and_settled_to_the_nano_dollar() {
    let world = enforcing(1_000_000);
    let answer = world.chat("json", HELLO);
    assert_eq!((answer.status, answer.body.as_str()), (200, JSON), "{}", world.log_text());
    let got = world.provider.got();
    assert_eq!(got[0].line, "POST /openai/v1/chat/completions HTTP/1.1");
    assert_eq!(got[0].header("host"), Some("api.provider.test"));
    let sent = got[0].json();
    assert_eq!(sent["model"], "small");
    assert_eq!(sent["max_tokens"].as_u64().or(sent["max_completion_tokens"].as_u64()), Some(1_000));
    assert!(!got[0].headers.iter().any(|(name, _)| name.starts_with("x-plimsoll-")), "{:?}", got[0].headers);
    let row = world.rows(1).remove(0);
    assert_eq!((row.charge, row.outcome), (charge(COST), Outcome::Completed));
    assert_eq!(Some(row.request_id.as_str()), answer.header("x-plimsoll-request-id"));
    assert_eq!(Some(row.request_id.as_str()), got[0].header("x-request-id"));
    assert_eq!(answer.header("x-plimsoll-budgets"), Some("finance/all"));
    assert_eq!(answer.header("x-plimsoll-backend"), Some("plimsoll-system/openai"));
    assert_eq!(world.ledger.settled(), COST);
}

#[test]
fn a_call_that_asks_for_more_than_it_may_have_is_lowered_and_told_so() {
    let world = enforcing(1_000_000);
    let asks = |most: u32| HELLO.replacen('{', &format!("{{\"max_completion_tokens\":{most},"), 1);
    for (body, told) in [(HELLO.to_owned(), None), (asks(999), None), (asks(1_001), Some("1000"))] {
        let answer = world.chat("json", &body);
        assert_eq!((answer.status, answer.header("x-plimsoll-max-tokens")), (200, told), "{body}");
    }
    assert_eq!(world.provider.got().pop().unwrap().json()["max_completion_tokens"], 1_000);
    let row = world.rows(3).pop().unwrap();
    wait_until("the decision", SOON, || {
        let decisions = world.ledger.decisions();
        let [decision] = &decisions[..] else { return Err(format!("{decisions:?}")) };
        assert_eq!((&decision.reason[..], &decision.request_id), ("max_tokens_lowered", &row.request_id));
        assert_eq!((decision.account.as_ref(), decision.accounts.len()), (None, 0));
        Ok(())
    })
    .unwrap();
    assert_eq!(world.metric("plimsoll_gateway_lowered_total"), "plimsoll_gateway_lowered_total 1");
}

#[test]
fn a_stream_is_never_held_and_its_usage_event_is_ours() {
    let world = enforcing(1_000_000);
    let answer = world.chat("sse", STREAM);
    assert_eq!(answer.body, format!("{}{DONE}", EVENT.repeat(5)));
    assert_eq!(world.provider.got()[0].json()["stream_options"]["include_usage"], true);
    let asked =
        STREAM.replace("\"stream\":true", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    assert_eq!(world.chat("sse", &asked).body, format!("{}{USAGE_EVENT}{DONE}", EVENT.repeat(5)));
    assert!(world.rows(2).iter().all(|row| row.charge == charge(COST)));

    // The first event is here while the provider still works.
    let mut stream = world.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-test: sse-slow\r\ncontent-length: {}\r\n\r\n{STREAM}",
        STREAM.len()
    );
    let begun = std::time::Instant::now();
    stream.write_all(head.as_bytes()).unwrap();
    let mut seen = String::new();
    while !seen.contains("data: ") {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "{seen}");
        seen += &String::from_utf8_lossy(&part[..count]);
    }
    assert!(begun.elapsed() < Duration::from_millis(2_000), "{:?}", begun.elapsed());
}

#[test]
fn bodies_in_chunks_and_of_900_kb_and_8_mb_pass_and_one_too_large_is_413() {
    let world = enforcing(1_000_000_000_000);
    let chunked = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let (first, second) = HELLO.split_at(30);
    let body = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    let answer = raw(world.connect(), chunked, body.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(JSON), "{answer}\n{}", world.log_text());
    for size in [900_000, 8_000_000] {
        let body = HELLO.replace("hello", &"x".repeat(size));
        let answer = world.post(&[], body.as_bytes());
        assert_eq!(answer.status, 200, "{size}: {}", answer.body);
        let sent = world.provider.got().pop().unwrap().json();
        assert_eq!(sent["messages"][0]["content"].as_str().unwrap().len(), size);
    }
    let large = "x".repeat(17 << 20);
    let answer = raw(
        world.connect(),
        &format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            large.len()
        ),
        b"{",
    );
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("request_too_large"), "{answer}");
    assert_eq!(world.rows(3).len(), 3);
}

#[test]
fn spoofed_headers_neither_route_nor_reach_the_provider() {
    let world = enforcing(1_000_000);
    let spoofed = [
        ("x-plimsoll-cluster", "elsewhere"),
        ("x-plimsoll-anything", "1"),
        ("x-plimsoll-feature", "invoices"),
        ("x-request-id", "mine"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("accept-encoding", "gzip"),
    ];
    assert_eq!(world.post(&spoofed, HELLO.as_bytes()).status, 200);
    let got = world.provider.got().remove(0);
    assert!(!got.headers.iter().any(|(name, _)| name.starts_with("x-plimsoll")), "{:?}", got.headers);
    assert_eq!(got.header("accept-encoding"), None);
    assert_ne!(got.header("x-request-id"), Some("mine"));
    assert_eq!(world.rows(1)[0].caller.feature, "invoices");
}

#[test]
fn every_end_of_a_call_is_settled_as_the_ledger_says() {
    let world = enforcing(1_000_000);
    let outcome = |test: &str, body: &str, count: usize| {
        let _ = world.chat(test, body);
        world.rows(count).into_iter().max_by_key(|row| row.sequence).unwrap()
    };
    let row = outcome("error", HELLO, 1);
    assert_eq!(
        (row.outcome, row.charge),
        (Outcome::ProviderError, Charge { usd: NanoUsd(0), tokens: 0, requests: 1 })
    );
    let row = outcome("no-usage", HELLO, 2);
    assert_eq!((row.outcome, row.charge), (Outcome::UsageMissing, row.reserve));
    // The provider took the request and closed: it may bill it.
    let row = outcome("close", HELLO, 3);
    assert_eq!((row.outcome, row.charge), (Outcome::Abandoned, row.reserve));
    let row = outcome("sse-cut", STREAM, 4);
    assert_eq!((row.outcome, row.charge), (Outcome::Abandoned, row.reserve));

    // The client leaves in the middle of a stream.
    let mut stream = world.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-test: sse-slow\r\ncontent-length: {}\r\n\r\n{STREAM}",
        STREAM.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut part = [0; 64];
    stream.read_exact(&mut part).unwrap();
    drop(stream);
    let row = world.rows(5).into_iter().max_by_key(|row| row.sequence).unwrap();
    assert_eq!((row.outcome, row.charge), (Outcome::Abandoned, row.reserve));
}

#[test]
fn a_provider_that_is_not_there_costs_nothing() {
    let mut world = World::unstarted(policy(Enforcement::Enforce, &[budget(1_000_000)]), 1);
    world.provider.port = plimsoll_sim::harness::free_port().unwrap();
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 503);
    let row = world.rows(1).remove(0);
    assert_eq!((row.outcome, row.charge.usd), (Outcome::ProviderError, NanoUsd(0)));
}

#[test]
fn a_slow_client_is_waited_for() {
    let world = enforcing(1_000_000);
    let mut stream = world.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        HELLO.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // Piece by piece: the next one when Envoy has read the one before.
    let mut sent = u64::try_from(head.len()).unwrap();
    for piece in HELLO.as_bytes().chunks(7) {
        stream.write_all(piece).unwrap();
        sent += u64::try_from(piece.len()).unwrap();
        wait_until("Envoy's reading", SOON, || {
            let read = world.stat("http.x.downstream_cx_rx_bytes_total");
            if read >= sent { Ok(()) } else { Err(format!("{read} of {sent}")) }
        })
        .unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(JSON), "{answer}");
    assert_eq!(world.rows(1).len(), 1);
}
