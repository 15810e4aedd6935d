//! Replayer against provider over real sockets: what the clients saw and what was billed must agree.
#![allow(missing_docs, clippy::unwrap_used)]

use plimsoll_sim::bill::{self, Bill, End};
use plimsoll_sim::harness::http;
use plimsoll_sim::price::Prices;
use plimsoll_sim::provider::{Disconnect, Provider, Rate, Running, Settings};
use plimsoll_sim::replay::{self, Answer, MaxTokens, Pace, Plan, Progress, Stop};
use plimsoll_sim::trace::{self, Fill};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn start(settings: Settings) -> Running {
    let mut prices = Prices::default();
    prices.add("assistant=1.25,0.125,10").unwrap();
    Provider::new(Settings { prices, ..settings }, Bill::default()).start().unwrap()
}

fn plan(provider: &Running, limit: u64) -> Plan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/azure-conv-2023-11-16.csv");
    let calls = trace::read(&path, &Fill::default()).unwrap();
    let target = format!("http://{}", provider.address).parse().unwrap();
    Plan { limit: Some(limit), include_usage: true, ..Plan::new(Arc::new(calls), vec![target]) }
}

fn run(plan: Plan) -> (replay::Report, Vec<Answer>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut answers = Vec::new();
    let report =
        runtime.block_on(replay::replay(plan, Stop::default(), Arc::new(Progress::default()), |answer| {
            answers.push(answer.clone());
        }));
    (report, answers)
}

fn ask(provider: &Running, headers: &[(&str, &str)], body: &str) -> http::Page {
    http::request(provider.address, "POST", "/v1/chat/completions", headers, body.as_bytes()).unwrap()
}

const HELLO: &str = r#"{"model":"assistant","messages":[{"role":"user","content":"12345678"}]}"#;

#[test]
fn every_answer_states_the_usage_that_the_bill_has() {
    let provider = start(Settings::default());
    let (report, answers) = run(plan(&provider, 500));
    assert_eq!((report.calls, report.served), (500, 500), "{report}");
    let lines = provider.provider.bill().lines();
    assert_eq!(lines.len(), 500);
    for answer in &answers {
        let line =
            lines.iter().find(|line| Some(&line.request_id) == answer.said.request_id.as_ref()).unwrap();
        let usage = answer.said.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (line.prompt_tokens, line.output_tokens));
        let nanos = line.prompt_tokens * 1250 + line.output_tokens * 10_000;
        assert_eq!(line.nano_usd, i64::try_from(nanos).unwrap());
    }
}

#[test]
fn prompts_and_outputs_have_the_recorded_sizes() {
    let provider = start(Settings::default());
    let plan = plan(&provider, 100);
    let calls = plan.calls.clone();
    let (_, answers) = run(plan);
    for answer in answers {
        let (call, usage) = (&calls[usize::try_from(answer.number).unwrap()], answer.said.usage.unwrap());
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (call.prompt_tokens, call.output_tokens));
    }
}

#[test]
fn open_loop_latency_counts_from_the_due_time() {
    // One place at a time and 20 ms a call: the last of ten calls, all due at once, waits for nine.
    let provider = start(Settings { first_token: Duration::from_millis(20), ..Settings::default() });
    let mut plan = plan(&provider, 10);
    plan.pace = Pace::Open { speed: 1_000_000.0, concurrency: 1 };
    let (report, _) = run(plan);
    assert!(report.latency_ms.max >= 200.0, "{report}");
}

#[test]
fn a_provider_that_stops_billing_on_disconnect_bills_what_it_sent() {
    for disconnect in [Disconnect::ToTheEnd, Disconnect::WhatWasSent] {
        let per_token = Duration::from_millis(20);
        let provider = start(Settings { disconnect, per_token, tokens_per_event: 1, ..Settings::default() });
        let mut plan = plan(&provider, 1);
        plan.abandon_every = Some(1);
        let mut calls = (*plan.calls).clone();
        calls[0].stream = true;
        calls[0].output_tokens = 100;
        plan.calls = Arc::new(calls);
        let (report, _) = run(plan);
        assert_eq!(report.broken.get(&replay::End::Abandoned), Some(&1));
        let billed = || match provider.provider.bill().lines().as_slice() {
            [line] => Ok(line.clone()),
            lines => Err(format!("{} lines", lines.len())),
        };
        plimsoll_sim::harness::wait_until("the bill", Duration::from_secs(10), || billed().map(drop))
            .unwrap();
        let line = billed().unwrap();
        assert_eq!(line.end, End::Disconnected);
        match disconnect {
            Disconnect::ToTheEnd => assert_eq!(line.output_tokens, 100),
            Disconnect::WhatWasSent => assert!(line.output_tokens < 50, "{line:?}"),
        }
    }
}

#[test]
fn a_stream_looks_like_openais_with_and_without_usage() {
    let provider = start(Settings::default());
    let body =
        |options: &str| HELLO.replace("\"messages\"", &format!("\"stream\":true{options},\"messages\""));
    let headers =
        [("x-sim-output-tokens", "20"), ("x-sim-cached-tokens", "1"), ("x-sim-reasoning-tokens", "4")];
    let events = |page: &http::Page| -> Vec<String> {
        let events = page.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        events.map(str::to_owned).collect()
    };
    let without = events(&ask(&provider, &headers, &body("")));
    assert_eq!(without.last().unwrap(), "[DONE]");
    assert!(without.iter().all(|event| !event.contains("usage")), "{without:?}");

    let with = events(&ask(&provider, &headers, &body(r#","stream_options":{"include_usage":true}"#)));
    // Role, three times text (8 + 8 + 4 tokens), the end, usage, [DONE].
    assert_eq!(with.len(), 7);
    for event in &with[..5] {
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        assert!(event["usage"].is_null() && event.as_object().unwrap().contains_key("usage"));
        assert_eq!(event["choices"].as_array().unwrap().len(), 1);
    }
    let last: serde_json::Value = serde_json::from_str(&with[5]).unwrap();
    assert_eq!(last["choices"], serde_json::json!([]));
    assert_eq!(last["usage"]["prompt_tokens"], 2);
    assert_eq!(last["usage"]["completion_tokens"], 20);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    assert_eq!(last["usage"]["completion_tokens_details"]["reasoning_tokens"], 4);
    let lines = provider.provider.bill().lines();
    // One prompt token at 1250, one cached at 125, twenty out at 10000 nano-dollars.
    assert_eq!(lines.iter().map(|line| line.nano_usd).collect::<Vec<_>>(), [201_375, 201_375]);
}

#[test]
fn faults_strike_when_ordered_and_are_billed_as_a_provider_would() {
    let provider = start(Settings { api_key: Some("secret".into()), ..Settings::default() });
    assert_eq!(ask(&provider, &[], HELLO).status, 401);
    let key = ("authorization", "Bearer secret");
    assert_eq!(ask(&provider, &[key, ("x-sim-status", "503")], HELLO).status, 503);
    assert_eq!(provider.provider.bill().total().calls, 0);
    let page = ask(&provider, &[key, ("x-sim-usage", "missing")], HELLO);
    assert!(page.status == 200 && !page.body.contains("usage"));
    let page = ask(&provider, &[key, ("x-sim-usage", "wrong"), ("x-sim-output-tokens", "10")], HELLO);
    assert!(page.body.contains("\"completion_tokens\":5"), "{page:?}");
    let page = ask(&provider, &[key, ("x-sim-truncate", "1"), ("x-sim-output-tokens", "10")], HELLO);
    assert!(serde_json::from_str::<serde_json::Value>(&page.body).is_err());
    let ends: Vec<_> = provider.provider.bill().lines().iter().map(|l| (l.output_tokens, l.end)).collect();
    assert_eq!(ends, [(64, End::Completed), (10, End::Completed), (5, End::Truncated)]);
    assert_eq!(ask(&provider, &[key], "{").status, 400);
}

#[test]
fn faults_by_rate_strike_about_as_often_as_said() {
    let provider = start(Settings { fail: Rate(200_000), fail_status: 503, ..Settings::default() });
    let mut plan = plan(&provider, 1000);
    plan.max_tokens = MaxTokens::Fixed(1);
    let (report, _) = run(plan);
    let failed = report.statuses.get(&503).copied().unwrap_or(0);
    assert!((140..260).contains(&failed), "{report}");
    assert_eq!(provider.provider.bill().total().calls, 1000 - failed);
}

#[test]
fn the_bills_file_and_its_page_hold_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bill.jsonl");
    let provider = Provider::new(Settings::default(), Bill::open(Some(&path)).unwrap()).start().unwrap();
    for id in ["a", "b", "b"] {
        ask(&provider, &[("x-request-id", id)], HELLO);
    }
    let lines = bill::read(&path).unwrap();
    assert_eq!(lines.iter().map(|line| line.request_id.as_str()).collect::<Vec<_>>(), ["a", "b", "b"]);
    let page = http::get(provider.address, "/bill").unwrap();
    let page: serde_json::Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!(page["lines"], serde_json::to_value(&lines).unwrap());
    assert_eq!(page["total"]["calls"], 3);
}

#[test]
fn a_replay_that_would_send_nothing_says_why_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let trace = |name: &str, rows: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("time,prompt_tokens,output_tokens\n{rows}")).unwrap();
        path
    };
    let (empty, full) = (trace("empty.csv", ""), trace("full.csv", "0,1,1\n"));
    let replay = |trace: &Path, flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_plimsoll-replay"));
        command.arg("--trace").arg(trace).args(["--target", "http://127.0.0.1:9"]).args(flags);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (trace, flags, says) in [
        (&empty, &[][..], "the trace holds no calls"),
        (&full, &["--clients", "0"], "clients is 0"),
        (&full, &["--concurrency", "0"], "concurrency is 0"),
        (&full, &["--limit", "0"], "limit is 0"),
        (&full, &["--duration", "0"], "duration is 0"),
        (&full, &["--speed", "0"], "speed 0 is none"),
        (&full, &["--speed", "inf"], "speed inf is none"),
        (&full, &["--repeat"], "--repeat has no end"),
        (&full, &["--features", "a=b"], "write NAME=WEIGHT"),
    ] {
        let (code, stderr) = replay(trace, flags);
        assert_eq!(code, Some(2), "{flags:?}: {stderr}");
        assert!(stderr.contains(says), "{flags:?}: {stderr}");
    }
}
