//! Micro-benchmarks of what every call costs: matching and admission, metering, pricing, deciding.
//!
//! Prints the median of 31 rounds in nanoseconds; writes them as JSON where `PLIMSOLL_BENCH_JSON` names
//! a file. A loop of its own: the figures are few, and no dependency is worth them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use plimsoll_core::account::{Amount, LimitKey, Unit};
use plimsoll_core::budget::Traits;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::meter::{Framing, Meter, Stripper};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{
    Backend, Budget, Dialect, Enforcement, Installation, Limit, Model, Namespaces, Pattern, PolicyKey,
    PolicyObject, Verdict, WindowBounds,
};
use plimsoll_core::price::Rates;
use plimsoll_core::session::{Head, decide};
use plimsoll_core::snapshot::Snapshot;
use plimsoll_core::usage::Usage;
use std::hint::black_box;
use std::time::Instant;

const RATES: Rates = Rates {
    input: NanoUsd(1_250_000_000),
    cached_input: NanoUsd(125_000_000),
    cache_write: NanoUsd(1_250_000_000),
    output: NanoUsd(10_000_000_000),
};

/// The median time of one call of `work`, in nanoseconds.
fn time(name: &'static str, figures: &mut Vec<(&'static str, u128)>, mut work: impl FnMut()) {
    let from = Instant::now();
    let mut calls = 0_u32;
    while from.elapsed().as_millis() < 50 {
        work();
        calls += 1;
    }
    let mut rounds: Vec<u128> = (0..31)
        .map(|_| {
            let from = Instant::now();
            for _ in 0..calls.div_ceil(5) {
                work();
            }
            from.elapsed().as_nanos() / u128::from(calls.div_ceil(5))
        })
        .collect();
    rounds.sort_unstable();
    println!("{name:<16} {:>9} ns", rounds[15]);
    figures.push((name, rounds[15]));
}

fn budget(namespaces: Namespaces, feature: Option<String>) -> Budget {
    Budget {
        namespaces,
        features: feature.map(|feature| vec![Pattern::Literal(feature)]),
        users: None,
        routes: None,
        models: None,
        limits: vec![Limit {
            name: "month".to_owned(),
            unit: Unit::Usd,
            window: "Month@UTC".to_owned(),
            amount: Amount(5_000_000_000_000),
            block_at: Amount(5_000_000_000_000),
        }],
        enforcement: Enforcement::Enforce,
        unpriced: Verdict::Deny,
        contact: None,
    }
}

fn one(namespace: &str) -> Namespaces {
    Namespaces::Only([namespace.to_owned()].into())
}

/// 10,000 budgets; a call of team-7's feature-7 matches 8 of them.
fn snapshot() -> Snapshot {
    let key = |name: String| PolicyKey::Budget(ObjectName::new("plimsoll-system", name));
    let mut objects: Vec<PolicyObject> = (0..9_993)
        .map(|i| {
            let body = budget(one(&format!("team-{}", i % 100)), Some(format!("feature-{i}")));
            PolicyObject::encode(key(format!("b{i}")), &body)
        })
        .collect();
    objects.extend(
        (0..3).map(|i| PolicyObject::encode(key(format!("company{i}")), &budget(Namespaces::All, None))),
    );
    objects
        .extend((0..4).map(|i| PolicyObject::encode(key(format!("team{i}")), &budget(one("team-7"), None))));
    let name = ObjectName::new("plimsoll-system", "openai");
    objects.push(PolicyObject::encode(
        PolicyKey::Installation,
        &Installation {
            mode: Enforcement::Enforce,
            root_namespace: "plimsoll-system".to_owned(),
            anonymous_namespace: "team-7".to_owned(),
            anonymous: Verdict::Allow,
            unbudgeted: Verdict::Allow,
            default_backend: None,
            max_output_tokens: 4096,
            ride_through_ms: 600_000,
        },
    ));
    objects.push(PolicyObject::encode(
        PolicyKey::Window("Month@UTC".to_owned()),
        &WindowBounds {
            bounds: vec![plimsoll_core::policy::Bounds { start: UnixMs(0), end: UnixMs::NEVER }],
        },
    ));
    objects.push(PolicyObject::encode(
        PolicyKey::Backend(name),
        &Backend {
            dialect: Dialect::OpenAI,
            cluster: "openai".to_owned(),
            passthrough_cluster: "openai-own".to_owned(),
            authority: "api.openai.com".to_owned(),
            path_prefix: "/v1".to_owned(),
            bills_after_disconnect: true,
            allowed: Namespaces::All,
            models: vec![Model {
                name: "gpt-5.2".to_owned(),
                context_tokens: Some(400_000),
                max_output_tokens: Some(128_000),
                rates: Some(RATES),
            }],
        },
    ));
    let (snapshot, rejected) = Snapshot::default().apply(true, &objects, &[]);
    assert!(rejected.is_empty(), "{rejected:?}");
    snapshot
}

fn main() {
    let mut figures = Vec::new();
    let snapshot = snapshot();
    let traits =
        Traits { namespace: "team-7", feature: "feature-7", user: "(none)", route: "", model: "gpt-5.2" };
    let mut matched = 0;
    snapshot.matching(&traits, |_| matched += 1);
    assert_eq!(matched, 8);
    time("match_ns", &mut figures, || {
        let mut found: Vec<&LimitKey> = Vec::with_capacity(8);
        snapshot.matching(black_box(&traits), |budget| found.extend(&budget.limits));
        black_box(found);
    });
    admission(&snapshot, &traits, &mut figures);

    let request = format!(
        r#"{{"model":"gpt-5.2","messages":[{{"role":"user","content":"{}"}}],"max_tokens":256,"temperature":0.2}}"#,
        "word ".repeat(330)
    );
    let head = Head {
        request_id: "6f1c1c52-6ad9-4a5c-9b1a-0f2b0f1f7a11",
        method: "POST",
        path: "/v1/chat/completions",
        feature: Some("feature-7"),
        ..Head::default()
    };
    time("decide_ns", &mut figures, || {
        black_box(decide(&snapshot, black_box(&head), black_box(request.as_bytes()), &[7; 32]));
    });

    let usage = r#"{"prompt_tokens":412,"completion_tokens":187,"total_tokens":599,"prompt_tokens_details":{"cached_tokens":128},"completion_tokens_details":{"reasoning_tokens":64}}"#;
    let answer = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-5.2","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],"usage":{usage},"service_tier":"default"}}"#,
        "text ".repeat(160)
    );
    time("meter_json_ns", &mut figures, || {
        let mut meter = Meter::new(Dialect::OpenAI, Framing::Json);
        meter.push(black_box(answer.as_bytes()));
        assert!(black_box(meter.finish()).usage.is_some());
    });

    let mut events: Vec<String> = (0..40)
        .map(|i| format!("data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"gpt-5.2\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{i}\"}},\"finish_reason\":null}}],\"usage\":null}}\n\n"))
        .collect();
    events.push(format!("data: {{\"id\":\"chatcmpl-1\",\"choices\":[],\"usage\":{usage}}}\n\n"));
    events.push("data: [DONE]\n\n".to_owned());
    time("meter_sse_ns", &mut figures, || {
        let mut meter = Meter::new(Dialect::OpenAI, Framing::Sse);
        for event in &events {
            meter.push(black_box(event.as_bytes()));
        }
        assert!(black_box(meter.finish()).usage.is_some());
    });
    let mut out = Vec::new();
    time("strip_sse_ns", &mut figures, || {
        let mut stripper = Stripper::default();
        for event in &events {
            out.clear();
            stripper.push(black_box(event.as_bytes()), &mut out);
        }
        out.clear();
        stripper.finish(&mut out);
    });

    let used = Usage { input: 284, cached_input: 128, cache_write: 0, output: 187, reasoning: 64 };
    time("price_ns", &mut figures, || {
        black_box(black_box(&RATES).cost(black_box(&used)));
    });

    if let Ok(path) = std::env::var("PLIMSOLL_BENCH_JSON") {
        let json: serde_json::Map<String, serde_json::Value> = figures
            .iter()
            .map(|(name, ns)| ((*name).to_owned(), u64::try_from(*ns).unwrap().into()))
            .collect();
        std::fs::write(&path, serde_json::Value::from(json).to_string())
            .expect("the figures can't be written");
    }
}

/// Matching among 10,000 budgets and admitting against the 8 that match.
fn admission(snapshot: &Snapshot, traits: &Traits<'_>, figures: &mut Vec<(&'static str, u128)>) {
    use plimsoll_core::account::{AccountKey, Charge};
    use plimsoll_core::gateway::{Admission, Gateway};
    use plimsoll_core::ids::{Epoch, Incarnation};
    use plimsoll_core::protocol::{Answer, Grant, LogState, Welcome};

    let gateway = Gateway::new("bench".to_owned(), Epoch(1));
    gateway.set_policy(
        snapshot.enforced_limits().cloned(),
        snapshot.windows().map(|(spec, bounds)| (spec.to_owned(), bounds.to_vec())),
    );
    let now = UnixMs(1_000);
    let _ = gateway.hello(LogState::New, 0);
    gateway.welcome(
        &Welcome {
            incarnation: Incarnation(1),
            now,
            durable: 0,
            holdings: vec![],
            hmac_key: [7; 32],
            went_back: false,
            epoch_closed: false,
        },
        now,
    );
    let mut grants = Vec::new();
    snapshot.matching(traits, |budget| {
        grants.extend(budget.limits.iter().map(|limit| Grant {
            account: AccountKey { limit: limit.clone(), start: UnixMs(0), key: String::new() },
            granted: Amount(i64::MAX / 4),
            size: Amount(i64::MAX / 8),
            small: false,
            recall: 0,
            recalled: false,
        }));
    });
    gateway.answer(&Answer { grants, now, ..Answer::default() }, now);
    let charge = Charge { usd: NanoUsd(3_000_000), tokens: 2_000, requests: 1 };
    time("admit_ns", figures, || {
        let mut limits: Vec<LimitKey> = Vec::with_capacity(8);
        snapshot.matching(black_box(traits), |budget| limits.extend(budget.limits.iter().cloned()));
        match gateway.admit(&limits, &charge, now) {
            Admission::Admitted(reservation) => {
                black_box(reservation.settle(&charge));
            }
            other => panic!("not admitted: {other:?}"),
        }
    });
}
