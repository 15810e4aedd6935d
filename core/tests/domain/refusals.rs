//! Refusals: what each wrong request gets, word for word.

use crate::fixture::{december, limit, name, snapshot};
use crate::session::head;
use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::meter::Measured;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::Dialect;
use plimsoll_core::protocol::{AskId, No, NoKind, Outcome};
use plimsoll_core::refusal::{Refusal, Rendered};
use plimsoll_core::session::{Head, Verdict, decide};
use plimsoll_core::settle::{Ended, Settled, settle};
use plimsoll_core::usage::Usage;

fn no(kind: NoKind, used: i64, unit: Unit) -> No {
    let limit = limit("month", unit).key(&name("finance/invoices"));
    let account = AccountKey { limit, start: december().start, key: String::new() };
    No { ask: AskId(1), account, kind, reserve: Amount(20_500_000), used: Amount(used) }
}

fn render(refusal: &Refusal) -> Rendered {
    refusal.render(Dialect::OpenAI, "req-1")
}

#[test]
fn an_exhausted_budget_says_which_how_much_when_and_whom_to_ask() {
    let refusal = Refusal::from_no(&no(NoKind::Exhausted, 5_000_000_000_000, Unit::Usd), &snapshot());
    let Rendered { status, headers, body } = render(&refusal);
    assert_eq!(status, 429);
    let expected: Vec<(&str, String)> = [
        ("content-type", "application/json"),
        ("x-should-retry", "false"),
        ("x-plimsoll-reason", "budget_exceeded"),
        ("x-plimsoll-budget", "finance/invoices"),
        ("x-plimsoll-limit", "month"),
        ("x-plimsoll-stage", "Block"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into();
    assert_eq!(headers, expected);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({"error": {
            "type": "budget_exceeded", "code": "budget_exceeded",
            "message": "AIBudget finance/invoices, limit month: $5000.00 of $5000.00 used. Resets 2027-01-01T00:00+01:00. Ask #ai-platform.",
            "plimsoll": {"budget": "finance/invoices", "limit": "month", "requestId": "req-1", "resets": "2027-01-01T00:00+01:00"}
        }})
    );
}

#[test]
fn a_call_that_is_too_large_for_what_is_left_is_told_so() {
    let refusal = Refusal::from_no(&no(NoKind::Exhausted, 4_999_990_000_000, Unit::Usd), &snapshot());
    assert!(render(&refusal).body.contains("$4999.99 of $5000.00 used; this call may take $0.02. Resets"));
}

#[test]
fn a_contended_budget_asks_for_a_retry() {
    let refusal = Refusal::from_no(&no(NoKind::Contended, 4_000_000_000_000, Unit::Usd), &snapshot());
    let Rendered { status, headers, body } = render(&refusal);
    assert_eq!(status, 429);
    assert!(
        headers.contains(&("retry-after", "1".to_owned()))
            && !headers.iter().any(|(name, _)| *name == "x-should-retry")
    );
    assert!(body.contains(r#""code":"rate_limited""#), "{body}");
}

#[test]
fn a_budget_that_is_gone_meanwhile_still_refuses_in_words() {
    let mut gone = no(NoKind::Exhausted, 7, Unit::Tokens);
    let limit = &gone.account.limit;
    gone.account.limit =
        LimitKey::new(name("finance/gone"), limit.limit.clone(), limit.unit, limit.window.clone());
    assert!(
        render(&Refusal::from_no(&gone, &snapshot()))
            .body
            .contains("finance/gone, limit month: 7 tokens of 7 tokens used.")
    );
}

#[test]
fn the_ledgers_absence_is_no_refusal_of_a_budget() {
    for (refusal, code, says) in [
        (Refusal::LedgerUnavailable, "ledger_unavailable", "ledger did not answer"),
        (Refusal::LogUnwritable, "ledger_unavailable", "can't write its admission log"),
        (Refusal::NotReady, "not_ready", "no operator has answered"),
    ] {
        let rendered = render(&refusal);
        assert_eq!((rendered.status, refusal.code()), (503, code));
        assert!(rendered.body.contains(says), "{}", rendered.body);
        assert!(rendered.headers.contains(&("retry-after", "1".to_owned())));
    }
    assert_eq!(render(&Refusal::TooLarge { limit: 8 }).status, 413);
}

/// What each of twenty wrong requests gets.
#[test]
fn twenty_wrong_requests() {
    let long = "f".repeat(257);
    let feature = Head { feature: Some(&long), ..head() };
    let control = Head { session: Some("a\u{7f}b"), ..head() };
    let path = Head { path: "/v1/embeddings?key=secret", ..head() };
    let method = Head { method: "GET", ..head() };
    let ok = head();
    let table: [(&Head<'_>, &[u8], u16, &str, &str); 20] = [
        (&ok, b"", 400, "invalid_request", "The request has no body; send a JSON object."),
        (
            &ok,
            b"{\"model\":\"\xff\"}",
            400,
            "invalid_request",
            "The body is not UTF-8 at byte 10; JSON is UTF-8, and compressed bodies are not read.",
        ),
        (
            &ok,
            b"{\"model\":",
            400,
            "invalid_request",
            "The body is not JSON: EOF while parsing a value at line 1 column 9.",
        ),
        (&ok, b"[1]", 400, "invalid_request", "The body is not a JSON object."),
        (
            &ok,
            b"{} {}",
            400,
            "invalid_request",
            "The body is not JSON: trailing characters at line 1 column 4.",
        ),
        (&ok, b"{}", 400, "invalid_request", "\"model\" is missing; name a model or a route."),
        (&ok, br#"{"model":7}"#, 400, "invalid_request", "\"model\" must be a string."),
        (
            &ok,
            br#"{"model":"assistant","model":"gpt-free"}"#,
            400,
            "invalid_request",
            "\"model\" stands twice in the body; send it once.",
        ),
        (
            &ok,
            br#"{"model":"assistant","messages":[],"messages":[]}"#,
            400,
            "invalid_request",
            "\"messages\" stands twice in the body; send it once.",
        ),
        (
            &ok,
            br#"{"model":"assistant","Max_Tokens":9}"#,
            400,
            "invalid_request",
            "\"Max_Tokens\" is not \"max_tokens\", and some servers take it for that; spell it \"max_tokens\".",
        ),
        (
            &ok,
            br#"{"model":"assistant","max_tokens":-1}"#,
            400,
            "invalid_request",
            "\"max_tokens\" must be a whole number of at least 0.",
        ),
        (
            &ok,
            br#"{"model":"assistant","n":1.5}"#,
            400,
            "invalid_request",
            "\"n\" must be a whole number of at least 1.",
        ),
        (
            &ok,
            br#"{"model":"assistant","stream":"yes"}"#,
            400,
            "invalid_request",
            "\"stream\" must be a boolean.",
        ),
        (
            &ok,
            br#"{"model":"assistant","stream":true,"stream_options":[]}"#,
            400,
            "invalid_request",
            "\"stream_options\" must be an object whose include_usage is a boolean.",
        ),
        (&ok, br#"{"model":"assistant","user":42}"#, 400, "invalid_request", "\"user\" must be a string."),
        (
            &feature,
            br#"{"model":"assistant"}"#,
            400,
            "invalid_request",
            "x-plimsoll-feature has 257 bytes; at most 256 are allowed.",
        ),
        (
            &control,
            br#"{"model":"assistant"}"#,
            400,
            "invalid_request",
            "x-plimsoll-session has control characters; remove them.",
        ),
        (
            &ok,
            b"{\"model\":\"no\\nbody\"}",
            404,
            "model_not_found",
            "No ModelRoute or ModelBackend serves the model \"no\nbody\" to namespace finance.",
        ),
        (
            &path,
            br#"{"model":"assistant"}"#,
            404,
            "unknown_path",
            "Nothing answers to /v1/embeddings here; Plimsoll serves POST /v1/chat/completions and GET /v1/models.",
        ),
        (
            &method,
            br#"{"model":"assistant"}"#,
            404,
            "unknown_path",
            "Nothing answers to /v1/chat/completions here; Plimsoll serves POST /v1/chat/completions and GET /v1/models.",
        ),
    ];
    for (head, body, status, code, message) in table {
        let shown = String::from_utf8_lossy(body);
        let Verdict::Refuse(refusal) = decide(&snapshot(), head, body, &[0; 32]) else {
            panic!("{shown} was not refused")
        };
        let rendered = render(&refusal);
        let json: serde_json::Value = serde_json::from_str(&rendered.body).unwrap();
        assert_eq!(
            (rendered.status, json["error"]["code"].as_str(), json["error"]["message"].as_str()),
            (status, Some(code), Some(message)),
            "{shown}"
        );
        assert_eq!(json["error"]["type"], "invalid_request_error", "{shown}");
        // Nothing of the client's stands in a header.
        let known = ["application/json", "false", code];
        assert!(
            rendered.headers.iter().all(|(_, value)| known.contains(&value.as_str())),
            "{:?}",
            rendered.headers
        );
    }
}

#[test]
fn a_megabyte_of_model_is_not_repeated() {
    let body = format!(r#"{{"model":"{}"}}"#, "m".repeat(1 << 20));
    let Verdict::Refuse(refusal) = decide(&snapshot(), &head(), body.as_bytes(), &[0; 32]) else {
        panic!("not refused")
    };
    assert!(render(&refusal).body.len() < 600);
}

#[test]
fn settlement_follows_the_ledgers_rules() {
    let Verdict::Send(call) =
        decide(&snapshot(), &head(), br#"{"model":"assistant","max_tokens":10}"#, &[0; 32])
    else {
        panic!("refused")
    };
    let usage = Usage { input: 1_000, output: 5, ..Usage::default() };
    let measured = |usage, complete| Measured { usage, complete };
    let cost = Settled {
        usage,
        charge: Charge { usd: NanoUsd(1_300_000), tokens: 1_005, requests: 1 },
        outcome: Outcome::Completed,
    };
    let free = Settled {
        usage: Usage::default(),
        charge: Charge { usd: NanoUsd(0), tokens: 0, requests: 1 },
        outcome: Outcome::ProviderError,
    };
    let reserve = |outcome| Settled { usage: Usage::default(), charge: call.reserve, outcome };
    for (ended, measured, settled) in [
        // The cost exceeds the reserve here: it settles in full.
        (Ended::Answered(200), measured(Some(usage), true), cost),
        (Ended::Unknown, measured(Some(usage), true), cost),
        (Ended::Answered(200), measured(None, true), reserve(Outcome::UsageMissing)),
        (Ended::Answered(200), measured(None, false), reserve(Outcome::UsageMissing)),
        (Ended::Answered(200), measured(Some(usage), false), reserve(Outcome::Abandoned)),
        (Ended::Unknown, measured(Some(usage), false), reserve(Outcome::Abandoned)),
        (Ended::Unknown, measured(None, false), reserve(Outcome::Abandoned)),
        (Ended::Answered(429), measured(None, true), free),
        (Ended::Answered(500), measured(Some(usage), true), free),
        (Ended::NoConnection, measured(None, false), free),
    ] {
        assert_eq!(settle(&call, ended, &measured), settled, "{ended:?} {measured:?}");
    }
}
