//! Sessions: what a request is charged to, what it may cost, and what of it is changed.

use crate::fixture::{
    backend, budget, installation, key, limit, model, name, objects, only, rates, route, snapshot, with,
    without_budgets,
};
use plimsoll_core::account::Unit;
use plimsoll_core::policy::{
    Budget, Enforcement, Installation, Model, Namespaces, Pattern, PolicyKey, PolicyObject,
    Verdict as Allowed,
};
use plimsoll_core::protocol::NONE;
use plimsoll_core::refusal::Refusal;
use plimsoll_core::session::{Call, Head, Verdict, apply_edits, decide};
use plimsoll_core::snapshot::Snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};

const KEY: [u8; 32] = [7; 32];

pub fn head() -> Head<'static> {
    Head { request_id: "req-1", method: "POST", path: "/v1/chat/completions", ..Head::default() }
}

fn call(snapshot: &Snapshot, head: &Head<'_>, body: &str) -> Call {
    match decide(snapshot, head, body.as_bytes(), &KEY) {
        Verdict::Send(call) => *call,
        other => panic!("{body}: {other:?}"),
    }
}

fn refusal(snapshot: &Snapshot, head: &Head<'_>, body: &str) -> Refusal {
    match decide(snapshot, head, body.as_bytes(), &KEY) {
        Verdict::Refuse(refusal) => *refusal,
        other => panic!("{body}: {other:?}"),
    }
}

fn sent(snapshot: &Snapshot, body: &str) -> String {
    let call = call(snapshot, &head(), body);
    String::from_utf8(apply_edits(body.as_bytes(), &call.edits)).unwrap()
}

fn observing() -> Snapshot {
    let observe = Installation { mode: Enforcement::Observe, ..installation() };
    with(&[PolicyObject::encode(PolicyKey::Installation, &observe)])
}

#[test]
fn a_call_goes_to_its_routes_backend_with_its_model_and_bound() {
    let body = r#"{"model": "assistant", "messages": [{"role":"user","content":"hi"}]}"#;
    let call = call(&snapshot(), &head(), body);
    assert_eq!(call.passage.cluster, "openai-key");
    assert_eq!(call.passage.path, "/v1/chat/completions");
    assert_eq!((call.route(), call.tier(), call.model.as_str()), ("assistant", "premium", "gpt-5.2"));
    assert_eq!(call.limits, vec![limit("month", Unit::Usd).key(&name("finance/invoices"))]);
    assert_eq!(call.enforcement, Enforcement::Enforce);
    // Input bound: the body's bytes; output: the route's 2048, less than the model's.
    let bytes = body.len() as u64;
    assert_eq!(
        (call.reserve.usd, call.reserve.tokens, call.reserve.requests),
        (rates().bound(bytes, 2048), bytes + 2048, 1)
    );
    assert_eq!(call.price_version, rates().version());
    let sent = String::from_utf8(apply_edits(body.as_bytes(), &call.edits)).unwrap();
    assert_eq!(
        sent,
        r#"{"model": "gpt-5.2", "messages": [{"role":"user","content":"hi"}],"max_completion_tokens":2048}"#
    );
}

#[test]
fn output_is_bounded_by_the_key_that_the_client_used() {
    let policy = snapshot();
    for (sends, gets) in [
        (r#""max_tokens":10"#, r#""max_tokens":10"#),
        (r#""max_tokens":4000"#, r#""max_tokens":2048"#),
        (r#""max_completion_tokens": 99999999999999999999"#, r#""max_completion_tokens": 2048"#),
        (r#""max_tokens":4000,"max_completion_tokens":5"#, r#""max_tokens":5,"max_completion_tokens":5"#),
        (r#""max_tokens":null"#, r#""max_tokens":null,"max_completion_tokens":2048"#),
        (r#""max_completion_tokens":null"#, r#""max_completion_tokens":2048"#),
        (
            r#""max_completion_tokens":null,"max_tokens":3000"#,
            r#""max_completion_tokens":null,"max_tokens":2048"#,
        ),
    ] {
        assert_eq!(
            sent(&policy, &format!(r#"{{"model":"assistant",{sends}}}"#)),
            format!(r#"{{"model":"gpt-5.2",{gets}}}"#)
        );
    }
    let reserve = |body: &str| call(&policy, &head(), body).reserve.tokens - body.len() as u64;
    assert_eq!(reserve(r#"{"model":"assistant","max_tokens":10}"#), 10);
    assert_eq!(reserve(r#"{"model":"assistant","max_tokens":10,"n":3}"#), 30);
    let endless = r#"{"model":"assistant","max_tokens":10,"n":99999999999999999999}"#;
    assert_eq!(call(&policy, &head(), endless).reserve.tokens, u64::MAX);
    // Without a route the model's own maximum; without that the installation's.
    assert_eq!(reserve(r#"{"model":"gpt-5.2"}"#), 128_000);
    assert_eq!(reserve(r#"{"model":"gpt-endless"}"#), 4096);
    assert_eq!(reserve(r#"{"model":"assistant","prediction":{"content":"abc"}}"#), 2048 + 17);
}

#[test]
fn usage_is_asked_for_in_streams_and_stripped_where_the_client_did_not_ask() {
    let policy = without_budgets(&[]);
    for (sends, gets, strip) in [
        (r#""stream":true"#, r#""stream":true,"stream_options":{"include_usage":true}"#, true),
        (
            r#""stream":true,"stream_options":{}"#,
            r#""stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
        (
            r#""stream":true,"stream_options":{"a":1}"#,
            r#""stream":true,"stream_options":{"include_usage":true,"a":1}"#,
            true,
        ),
        (
            r#""stream":true,"stream_options":null"#,
            r#""stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
        (
            r#""stream":true,"stream_options":{"include_usage":false}"#,
            r#""stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
        (
            r#""stream":true,"stream_options":{"include_usage":null}"#,
            r#""stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
        (
            r#""stream":true,"stream_options":{"include_usage":true}"#,
            r#""stream":true,"stream_options":{"include_usage":true}"#,
            false,
        ),
        (r#""stream":false"#, r#""stream":false"#, false),
        (r#""stream":null"#, r#""stream":null"#, false),
    ] {
        let body = format!(r#"{{"model":"gpt-5.2",{sends}}}"#);
        assert_eq!(sent(&policy, &body), format!(r#"{{"model":"gpt-5.2",{gets}}}"#));
        assert_eq!(call(&policy, &head(), &body).strip_usage, strip, "{body}");
    }
}

#[test]
fn a_model_written_with_escapes_is_understood_and_replaced() {
    let body = r#"{"mod\u0065l":"assist\u0061nt","max_tokens":1}"#;
    assert_eq!(sent(&snapshot(), body), r#"{"mod\u0065l":"gpt-5.2","max_tokens":1}"#);
    let body = r#"{"model":"gpt-5\u002e2","max_tokens":1}"#;
    assert_eq!(sent(&snapshot(), body), body);
}

#[test]
fn what_bytes_do_not_bound_takes_the_context() {
    let part = |part: &str| {
        format!(
            r#"{{"model":"gpt-5.2","max_tokens":1,"messages":[{{"role":"user","content":[{{"type":"text","text":"x"}},{part}]}}]}}"#
        )
    };
    for unbounded in [
        part(r#"{"type":"image_url","image_url":{"url":"https://x/y.png"}}"#),
        part(r#"{"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}}"#),
        part(r#"{"type":"file","file":{"file_id":"f"}}"#),
        part(r#"{"type":"text","type":"image_url","image_url":{}}"#),
        part(r#"{"t\u0079pe":"im\u0061ge_url","image_url":{}}"#),
        part(r#"{"image_url":{}}"#),
        part(r#"{"type":7}"#),
        part("[{\"type\":\"image_url\"}]"),
        r#"{"model":"gpt-5.2","max_tokens":1,"messages":[{"role":"assistant","audio":{"id":"a"}}]}"#.to_owned(),
        r#"{"model":"gpt-5.2","max_tokens":1,"chat_template":"{% for i in range(9) %}x{% endfor %}","messages":[]}"#.to_owned(),
    ] {
        assert_eq!(call(&snapshot(), &head(), &unbounded).reserve.tokens, 400_001, "{unbounded}");
        let blind = unbounded.replace("gpt-5.2", "gpt-blind");
        let refusal = refusal(&snapshot(), &head(), &blind);
        assert_eq!((refusal.status(), refusal.code()), (403, "model_unpriced"), "{blind}");
    }
    let text = part(r#"{"type":"text","text":"image_url"}"#);
    assert_eq!(call(&snapshot(), &head(), &text).reserve.tokens, text.len() as u64 + 1);
}

#[test]
fn what_is_billed_apart_is_unpriced() {
    let extra = |extra: &str| format!(r#"{{"model":"gpt-5.2","max_tokens":1,{extra}}}"#);
    for apart in [
        r#""web_search_options":{}"#,
        r#""tools":[{"type":"function","function":{}},{"type":"web_search"}]"#,
        r#""modalities":["text","audio"]"#,
        r#""audio":{"voice":"x"}"#,
        r#""service_tier":"priority""#,
        r#""plugins":[]"#,
        r#""models":["dearer"]"#,
    ] {
        assert_eq!(refusal(&snapshot(), &head(), &extra(apart)).code(), "model_unpriced", "{apart}");
    }
    for bounded in [
        r#""web_search_options":null"#,
        r#""tools":[{"type":"function","function":{"name":"f"}}]"#,
        r#""modalities":["text"]"#,
        r#""service_tier":"flex""#,
    ] {
        assert_eq!(call(&snapshot(), &head(), &extra(bounded)).rates, Some(rates()), "{bounded}");
    }
}

#[test]
fn an_unpriced_model_costs_nothing_where_the_budgets_allow_it() {
    let allow = Budget { unpriced: Allowed::Allow, ..budget(only("finance")) };
    let snapshot = with(&[PolicyObject::encode(key("budget/finance/invoices"), &allow)]);
    let body = r#"{"model":"gpt-free","max_tokens":5}"#;
    let call = call(&snapshot, &head(), body);
    assert_eq!((call.rates, call.reserve.usd.0, call.reserve.tokens), (None, 0, body.len() as u64 + 5));
}

#[test]
fn every_matching_budget_is_charged_once() {
    let snapshot = with(&[
        PolicyObject::encode(key("budget/plimsoll-system/company"), &budget(Namespaces::All)),
        PolicyObject::encode(
            key("budget/finance/chat"),
            &Budget {
                features: Some(vec![Pattern::Literal("chat".to_owned())]),
                limits: vec![limit("day", Unit::Tokens), limit("minute", Unit::Requests)],
                ..budget(only("finance"))
            },
        ),
        PolicyObject::encode(
            key("budget/finance/vip"),
            &Budget { users: Some(vec![Pattern::Prefix("vip-".to_owned())]), ..budget(only("finance")) },
        ),
        PolicyObject::encode(
            key("budget/finance/look"),
            &Budget { enforcement: Enforcement::Observe, ..budget(only("finance")) },
        ),
        PolicyObject::encode(key("budget/sales/all"), &budget(only("sales"))),
    ]);
    let body = r#"{"model":"assistant","user":"vip-7"}"#;
    let head = Head { feature: Some("chat"), customer: Some("acme"), ..head() };
    let call = call(&snapshot, &head, body);
    let mut limits: Vec<String> =
        call.limits.iter().map(|key| format!("{} {}", key.budget, key.limit)).collect();
    limits.sort();
    assert_eq!(
        limits,
        [
            "finance/chat day",
            "finance/chat minute",
            "finance/invoices month",
            "finance/vip month",
            "plimsoll-system/company month"
        ]
    );
    assert_eq!(call.observed, vec![name("finance/look")]);
    assert_eq!(
        (call.caller.feature.as_str(), call.caller.customer.as_str(), call.caller.session.as_str()),
        ("chat", "acme", NONE)
    );
    assert_eq!(call.caller.user_hash.len(), 64);
    assert!(!format!("{:?}", call.caller).contains("vip"));
}

#[test]
fn the_user_is_the_headers_then_the_bodys() {
    let hash = |head: &Head<'_>, body: &str| call(&snapshot(), head, body).caller.user_hash;
    let header = Head { user: Some("a"), ..head() };
    let of = |user| plimsoll_core::caller::hash_user(user, &KEY);
    assert_eq!(hash(&header, r#"{"model":"assistant","user":"b"}"#), of("a"));
    assert_eq!(hash(&head(), r#"{"model":"assistant","user":"b","safety_identifier":"c"}"#), of("c"));
    assert_eq!(hash(&head(), r#"{"model":"assistant","user":"b\u0021"}"#), of("b!"));
    assert_eq!(hash(&head(), r#"{"model":"assistant","user":null}"#), NONE);
}

#[test]
fn observing_changes_nothing_but_the_model_and_the_asked_usage() {
    let body = r#"{"model":"gpt-5.2","max_tokens":999999,"n":7}"#;
    let call = call(&observing(), &head(), body);
    assert_eq!(
        (call.edits, call.limits, call.enforcement, call.timeout_ms),
        (vec![], vec![], Enforcement::Observe, None)
    );
    assert_eq!(call.observed, vec![name("finance/invoices")]);
    assert_eq!(call.passage.cluster, "openai-own");
    assert_eq!(sent(&observing(), r#"{"model":"assistant"}"#), r#"{"model":"gpt-5.2"}"#);
}

#[test]
fn observing_refuses_nothing() {
    let long = "x".repeat(300);
    let bad_head = Head { feature: Some(&long), session: Some("a\u{1}b"), ..head() };
    for snapshot in [observing(), without_budgets(&[])] {
        for body in ["", "{", "[]", "\u{0}", r#"{"model":"nobody"}"#, r#"{"model":7}"#, r#"{}"#] {
            let Verdict::Pass(passage) = decide(&snapshot, &head(), body.as_bytes(), &KEY) else {
                panic!("{body}")
            };
            assert_eq!(
                (passage.authority.as_str(), passage.path.as_str()),
                ("api.openai.com", "/v1/chat/completions")
            );
        }
        for body in [
            r#"{"model":"assistant","n":-1,"stream":"yes","stream_options":7,"user":{}}"#,
            r#"{"model":"gpt-5.2","model":"gpt-5.2","Model":"x","web_search_options":{}}"#,
        ] {
            let call = call(&snapshot, &bad_head, body);
            assert!(call.caller.feature.len() <= 256 && call.caller.session == "a_b");
        }
        let embeddings = Head { path: "/v1/embeddings?x=1", ..head() };
        let Verdict::Pass(passage) = decide(&snapshot, &embeddings, b"{}", &KEY) else { panic!("refused") };
        assert_eq!(passage.path, "/v1/embeddings?x=1");
    }
}

#[test]
fn a_call_that_only_observing_budgets_match_is_not_altered() {
    let look = Budget { enforcement: Enforcement::Observe, ..budget(only("finance")) };
    let snapshot = with(&[
        PolicyObject::encode(key("budget/finance/invoices"), &look),
        PolicyObject::encode(key("budget/sales/all"), &budget(only("sales"))),
    ]);
    let call = call(&snapshot, &head(), r#"{"model":"gpt-free","n":0}"#);
    assert_eq!((call.edits, call.limits, call.enforcement), (vec![], vec![], Enforcement::Observe));
}

#[test]
fn a_routes_bound_holds_without_a_budget_and_a_backends_model_has_none() {
    let free = without_budgets(&[]);
    assert_eq!(
        sent(&free, r#"{"model":"assistant"}"#),
        r#"{"model":"gpt-5.2","max_completion_tokens":2048}"#
    );
    for (own, kept, lowered) in [(10, 10, None), (2_048, 2_048, None), (2_049, 2_048, Some(2_048))] {
        let body = format!(r#"{{"model":"assistant","max_tokens":{own}}}"#);
        assert_eq!(sent(&free, &body), format!(r#"{{"model":"gpt-5.2","max_tokens":{kept}}}"#));
        assert_eq!(call(&free, &head(), &body).lowered, lowered, "{own}");
    }
    let own_name = r#"{"model":"gpt-5.2","max_tokens":999999}"#;
    assert_eq!(sent(&free, own_name), own_name);
}

#[test]
fn what_is_not_metered_does_not_pass_where_budgets_enforce() {
    let snapshot = snapshot();
    let of = |method: &'static str, path: &'static str| {
        decide(&snapshot, &Head { method, path, ..head() }, b"{}", &KEY)
    };
    for (method, path) in [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("GET", "/v1/modelsx"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat%2Fcompletions"),
    ] {
        assert!(
            matches!(of(method, path), Verdict::Refuse(refusal) if refusal.status() == 404),
            "{method} {path}"
        );
    }
    assert!(matches!(of("GET", "/v1/models"), Verdict::Pass(_)));
    assert!(matches!(of("GET", "/v1/models/gpt-5.2"), Verdict::Pass(_)));
    let body = br#"{"model":"assistant"}"#;
    let prefixed = Head { path: "/openai/v1/chat/completions?api-version=7", ..head() };
    let Verdict::Send(call) = decide(&snapshot, &prefixed, body, &KEY) else { panic!("refused") };
    assert_eq!(call.passage.path, "/v1/chat/completions?api-version=7");
}

#[test]
fn weights_are_drawn_by_the_request_id_and_the_same_id_draws_the_same() {
    let two = route("two", &[("plimsoll-system/openai", "gpt-5.2", 3), ("plimsoll-system/b", "b", 1)]);
    let snapshot = with(&[
        PolicyObject::encode(key("backend/plimsoll-system/b"), &backend(vec![model("b")])),
        PolicyObject::encode(key("route/finance/two"), &two),
    ]);
    let draw = |i: u32| {
        let id = format!("request-{i}");
        call(&snapshot, &Head { request_id: &id, ..head() }, r#"{"model":"two"}"#).model
    };
    let drawn = (0..4_000).filter(|i| draw(*i) == "b").count();
    assert!((850..1150).contains(&drawn), "{drawn}");
    assert!((0..100).all(|i| draw(i) == draw(i)));
}

#[test]
fn sixty_five_limits_are_too_many_and_sixty_four_are_not() {
    let budgets = |count: u32| {
        let more: Vec<PolicyObject> = (1..count)
            .map(|i| PolicyObject::encode(key(&format!("budget/finance/b{i}")), &budget(only("finance"))))
            .collect();
        with(&more)
    };
    assert_eq!(call(&budgets(64), &head(), r#"{"model":"assistant"}"#).limits.len(), 64);
    let refusal = refusal(&budgets(65), &head(), r#"{"model":"assistant"}"#);
    assert_eq!(refusal, Refusal::TooManyAccounts { matched: 65 });
}

#[test]
fn settings_deny_the_unknown_and_the_unbudgeted() {
    let deny = |installation: &Installation| PolicyObject::encode(PolicyKey::Installation, installation);
    let body = r#"{"model":"assistant"}"#;
    let strict = with(&[deny(&Installation { anonymous: Allowed::Deny, ..installation() })]);
    assert_eq!(refusal(&strict, &head(), body), Refusal::Unauthenticated);
    assert!(!call(&strict, &Head { namespace: Some("finance"), ..head() }, body).limits.is_empty());
    let strict = without_budgets(&[deny(&Installation { unbudgeted: Allowed::Deny, ..installation() })]);
    assert_eq!(refusal(&strict, &head(), body).code(), "unbudgeted");
    let unready = Snapshot::default().apply(true, &objects()[1..], &[]).0;
    assert_eq!(refusal(&unready, &head(), body), Refusal::NotReady);
    assert_eq!(Model { rates: None, ..model("x") }.price_version().0, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn edits_change_what_they_must_and_nothing_else(
        max_tokens in proptest::option::of(prop_oneof![Just(json!(null)), (0..9_000_u64).prop_map(|n| json!(n))]),
        max_completion in proptest::option::of(prop_oneof![Just(json!(null)), (0..9_000_u64).prop_map(|n| json!(n))]),
        stream in proptest::option::of(any::<bool>()),
        options in proptest::option::of(prop_oneof![Just(json!(null)), Just(json!({})), Just(json!({"include_usage": true})), Just(json!({"z": 1, "include_usage": false}))]),
        text in ".{0,20}", temperature in any::<i32>(), pretty: bool, assistant: bool,
    ) {
        let mut body = json!({"messages": [{"role": "user", "content": text}], "temperature": temperature});
        body["model"] = json!(if assistant { "assistant" } else { "gpt-5.2" });
        for (name, value) in [("max_tokens", &max_tokens), ("max_completion_tokens", &max_completion), ("stream", &stream.map(Value::from)), ("stream_options", &options)] {
            if let Some(value) = value {
                body[name] = value.clone();
            }
        }
        let text = if pretty { serde_json::to_string_pretty(&body).unwrap() + "\n" } else { body.to_string() };
        let call = call(&snapshot(), &head(), &text);
        let sent: Value = serde_json::from_slice(&apply_edits(text.as_bytes(), &call.edits)).unwrap();
        let most = if assistant { 2048 } else { 128_000 };
        let bounds: Vec<u64> = ["max_tokens", "max_completion_tokens"].iter().filter_map(|key| sent[key].as_u64()).collect();
        prop_assert!(!bounds.is_empty() && bounds.iter().all(|bound| *bound <= most));
        prop_assert_eq!(&sent["model"], "gpt-5.2");
        if stream == Some(true) {
            prop_assert_eq!(&sent["stream_options"]["include_usage"], &json!(true));
            prop_assert_eq!(call.strip_usage, options != Some(json!({"include_usage": true})));
        } else {
            prop_assert_eq!(&sent["stream_options"], &body["stream_options"]);
        }
        for key in ["messages", "temperature", "stream"] {
            prop_assert_eq!(&sent[key], &body[key]);
        }
    }

    #[test]
    fn no_body_breaks_a_session(body in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        "[\\[\\]{}\":,a-z0-9\\\\ ]{0,80}".prop_map(String::into_bytes),
        proptest::collection::vec(proptest::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"model\"", "\"assistant\"", "\"messages\"", "\"content\"", "\"type\"", "\"n\"", "1", "-1", "null",
            "true", "\"stream\"", "\"stream_options\"", "\"tools\"", "\"max_tokens\"", "\"user\"", " ", "\u{17f}tream",
        ]), 0..30).prop_map(|parts| parts.concat().into_bytes()),
    ]) {
        let verdict = decide(&snapshot(), &head(), &body, &KEY);
        if let Verdict::Send(call) = verdict {
            let sent = apply_edits(&body, &call.edits);
            let sent: Value = serde_json::from_slice(&sent).unwrap();
            prop_assert!(sent["max_tokens"].as_u64().or(sent["max_completion_tokens"].as_u64()).is_some());
        }
    }
}
