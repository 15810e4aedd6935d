//! The filter in a real Envoy: what passes, what is counted, what is refused, and what survives.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use plimsoll_core::account::Charge;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Budget, Enforcement, PolicyKey, PolicyVersion};
use plimsoll_core::protocol::Outcome;
use plimsoll_sim::harness::wait_until;
use std::io::{Read, Write};
use std::time::Duration;
use world::provider::{DONE, EVENT, JSON, USAGE_EVENT};
use world::{SOON, World, budget, policy, raw};

const HELLO: &str = r#"{"model":"assistant","messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str = r#"{"model":"assistant","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
/// 11 input tokens at 1, 7 output tokens at 4.
const COST: i64 = 11 + 7 * 4;

fn enforcing(amount: i64) -> World {
    World::new(policy(Enforcement::Enforce, &[budget(amount)]))
}

fn charge(nanos: i64) -> Charge {
    Charge { usd: NanoUsd(nanos), tokens: 18, requests: 1 }
}

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
fn wrong_requests_are_refused_in_the_clients_dialect() {
    let world = enforcing(1_000_000);
    let refused: &[(&[u8], u16, &str)] = &[
        (br#"{"model":"assistant","model":"large","messages":[]}"#, 400, "stands twice"),
        (b"{\"model\":\"assistant\xff\"}", 400, "not UTF-8"),
        (b"", 400, "no body"),
        (b"[]", 400, "not a JSON object"),
        (br#"{"model":"nobody","messages":[]}"#, 404, "model_not_found"),
    ];
    for (body, status, says) in refused {
        let answer = world.post(&[], body);
        let shown = String::from_utf8_lossy(body);
        assert_eq!(answer.status, *status, "{shown}: {}", answer.body);
        assert!(answer.body.contains(says) && answer.body.contains(r#""error""#), "{shown}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    assert!(world.provider.got().is_empty(), "nothing was sent");
    let metric = world.metric("plimsoll_gateway_refused");
    assert!(metric.contains("kind=\"invalid_request\"} 4"), "{metric}");
}

#[test]
fn a_budget_that_is_used_up_blocks_and_says_so() {
    // One call reserves its bytes and 1,000 output tokens at 4: about 4,100. It costs 39.
    let world = enforcing(4_300);
    let mut answers: Vec<_> = (0..20).map(|_| world.chat("json", HELLO)).collect();
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((1..20).contains(&passed), "{passed} of 20 passed: {}", answers[0].body);
    let last = answers.pop().unwrap();
    assert_eq!(last.status, 429, "{}", last.body);
    assert!(last.body.contains("budget_exceeded") && last.body.contains("#ai-platform"), "{}", last.body);
    assert_eq!(last.header("x-should-retry"), Some("false"));
    assert_eq!(last.header("x-plimsoll-budget"), Some("finance/all"));
    let rows = world.rows(passed);
    assert_eq!((rows.len(), world.ledger.settled()), (passed, COST * i64::try_from(passed).unwrap()));
    assert_eq!(world.provider.got().len(), passed);
    let refused = 20 - passed;
    wait_until("the decisions", SOON, || {
        let decisions = world.ledger.decisions();
        if decisions.len() == refused { Ok(()) } else { Err(format!("{} of {refused}", decisions.len())) }
    })
    .unwrap();
    let decision = world.ledger.decisions().pop().unwrap();
    assert_eq!((decision.reason.as_str(), decision.stage.as_str()), ("budget_exceeded", "Block"));
    assert_eq!(decision.accounts.len(), 1);
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
    for piece in HELLO.as_bytes().chunks(7) {
        stream.write_all(piece).unwrap();
        stream.flush().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(JSON), "{answer}");
    assert_eq!(world.rows(1).len(), 1);
}

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
fn a_gateway_killed_in_flight_settles_at_the_reserve_and_goes_on_in_its_epoch() {
    let mut world = enforcing(1_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    let mut stream = world.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-test: hang\r\ncontent-length: {}\r\n\r\n{HELLO}",
        HELLO.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    wait_until("the call at the provider", SOON, || {
        if world.provider.got().len() == 2 { Ok(()) } else { Err(String::new()) }
    })
    .unwrap();
    world.envoy.as_mut().unwrap().process.kill();
    world.envoy = None;
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    let mut rows = world.rows(3);
    rows.sort_by_key(|row| row.sequence);
    assert_eq!((rows[1].outcome, rows[1].charge), (Outcome::Replayed, rows[1].reserve));
    assert_eq!(world.ledger.epochs(), 1);
    assert_eq!(world.ledger.settled(), 2 * COST + rows[1].reserve.usd.0);
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
fn two_listeners_share_one_client() {
    let mut world = World::unstarted(policy(Enforcement::Enforce, &[budget(1_000_000)]), 3);
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(1);
    assert_eq!(world.ledger.epochs(), 1);
}

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
fn an_epoch_ends_though_observed_calls_never_stop() {
    let mut observed: (PolicyKey, Budget) = budget(1);
    observed.1.enforcement = Enforcement::Observe;
    let mut world = World::new(policy(Enforcement::Enforce, &[observed]));
    let port = world.port;
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each takes 2.5 s and begins 0.8 s after another: some are always in flight.
        for i in 0..3 {
            let over = &over;
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(800 * i));
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let headers = [("content-type", "application/json"), ("x-test", "sse-slow")];
                    let path = "/v1/chat/completions";
                    let answer = plimsoll_sim::harness::http::request(
                        ("127.0.0.1", port),
                        "POST",
                        path,
                        &headers,
                        STREAM.as_bytes(),
                    );
                    assert_eq!(answer.map(|answer| answer.status).ok(), Some(200));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        world.ledger.stop();
        world.ledger.supersede("gateway-1");
        world.ledger.serve();
        let begun = wait_until("a new epoch", SOON, || {
            let text = world.log_text();
            if text.contains(" begins") && world.ledger.epochs() == 3 { Ok(()) } else { Err(text) }
        });
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        begun.unwrap();
    });
    world.wait_ready();
    let before = world.ledger.rows().len();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(before + 1);
}

#[test]
fn a_gateway_that_ends_cleanly_returns_what_it_holds_and_closes_its_epoch() {
    let mut world = enforcing(1_000_000_000);
    for _ in 0..3 {
        assert_eq!(world.chat("json", HELLO).status, 200);
    }
    let envoy = world.envoy.as_mut().unwrap();
    envoy.process.terminate(SOON).unwrap();
    world.envoy = None;
    assert_eq!(world.ledger.rows().len(), 3, "{}", world.log_text());
    assert_eq!(world.ledger.outstanding(), (0, 0), "{}", world.log_text());
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(4);
    assert_eq!((world.ledger.settled(), world.ledger.epochs()), (4 * COST, 2));
}

#[test]
fn a_gateway_whose_epoch_was_closed_begins_a_new_one() {
    let mut world = enforcing(1_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    world.rows(1);
    let kill = |world: &mut World| {
        world.envoy.as_mut().unwrap().process.kill();
        world.envoy = None;
    };
    kill(&mut world);
    // Its disk is away, then comes back: meanwhile another log spoke for this gateway.
    let aside = world.dir.path().join("aside");
    std::fs::rename(world.log_dir(), &aside).unwrap();
    world.start();
    world.wait_ready();
    kill(&mut world);
    std::fs::remove_dir_all(world.log_dir()).unwrap();
    std::fs::rename(&aside, world.log_dir()).unwrap();
    world.start();
    world.wait_ready();
    assert_eq!(world.chat("json", HELLO).status, 200, "{}", world.log_text());
    assert_eq!(world.rows(2).len(), 2);
    assert_eq!(world.ledger.epochs(), 3);
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
fn a_steady_load_costs_the_ledger_few_messages() {
    let world = enforcing(1_000_000_000_000);
    assert_eq!(world.chat("json", HELLO).status, 200);
    let before = world.ledger.messages();
    for _ in 0..1_000 {
        assert_eq!(world.chat("json", HELLO).status, 200);
    }
    let messages = world.ledger.messages() - before;
    assert!(messages <= 50, "{messages} messages for 1,000 calls");
    assert_eq!(world.rows(1_001).len(), 1_001);
}
