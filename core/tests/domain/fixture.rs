//! Policy objects to test with: one namespace that spends, one root namespace that pays.

use plimsoll_core::account::{Amount, Unit};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{
    Backend, Bounds, Budget, Dialect, Enforcement, Installation, Limit, Model, Namespaces, PolicyKey,
    PolicyObject, Route, Verdict, WeightedBackend, WindowBounds,
};
use plimsoll_core::price::Rates;
use plimsoll_core::snapshot::Snapshot;

pub const ROOT: &str = "plimsoll-system";

pub fn name(text: &str) -> ObjectName {
    ObjectName::try_from(text.to_owned()).unwrap()
}

pub fn rates() -> Rates {
    Rates {
        input: NanoUsd(1_250_000_000),
        cached_input: NanoUsd(125_000_000),
        cache_write: NanoUsd(1_250_000_000),
        output: NanoUsd(10_000_000_000),
    }
}

pub fn installation() -> Installation {
    Installation {
        mode: Enforcement::Enforce,
        root_namespace: ROOT.to_owned(),
        anonymous_namespace: "finance".to_owned(),
        anonymous: Verdict::Allow,
        unbudgeted: Verdict::Allow,
        default_backend: Some(name("plimsoll-system/openai")),
        max_output_tokens: 4096,
        ride_through_ms: 600_000,
    }
}

pub fn model(name: &str) -> Model {
    Model {
        name: name.to_owned(),
        context_tokens: Some(400_000),
        max_output_tokens: Some(128_000),
        rates: Some(rates()),
    }
}

pub fn backend(models: Vec<Model>) -> Backend {
    Backend {
        dialect: Dialect::OpenAI,
        cluster: "openai-key".to_owned(),
        passthrough_cluster: "openai-own".to_owned(),
        authority: "api.openai.com".to_owned(),
        path_prefix: "/v1".to_owned(),
        bills_after_disconnect: true,
        allowed: Namespaces::All,
        models,
    }
}

pub fn route(model: &str, backends: &[(&str, &str, u32)]) -> Route {
    Route {
        model: model.to_owned(),
        tier: "premium".to_owned(),
        backends: backends
            .iter()
            .map(|(backend, model, weight)| WeightedBackend {
                backend: name(backend),
                model: (*model).to_owned(),
                weight: *weight,
            })
            .collect(),
        max_output_tokens: Some(2048),
        timeout_ms: Some(120_000),
    }
}

pub fn limit(limit: &str, unit: Unit) -> Limit {
    Limit {
        name: limit.to_owned(),
        unit,
        window: "Month@Europe/Berlin".to_owned(),
        amount: Amount(5_000_000_000_000),
        block_at: Amount(5_000_000_000_000),
    }
}

pub fn budget(namespaces: Namespaces) -> Budget {
    Budget {
        namespaces,
        features: None,
        users: None,
        routes: None,
        models: None,
        limits: vec![limit("month", Unit::Usd)],
        enforcement: Enforcement::Enforce,
        unpriced: Verdict::Deny,
        contact: Some("#ai-platform".to_owned()),
    }
}

pub fn only(namespace: &str) -> Namespaces {
    Namespaces::Only([namespace.to_owned()].into())
}

/// The key of `kind/namespace/name`.
pub fn key(text: &str) -> PolicyKey {
    text.parse().unwrap()
}

pub fn december() -> Bounds {
    Bounds { start: UnixMs(1_796_079_600_000), end: UnixMs(1_798_758_000_000) }
}

/// An installation with one backend, one route `assistant`, and `finance/invoices` over all of finance.
pub fn objects() -> Vec<PolicyObject> {
    vec![
        PolicyObject::encode(PolicyKey::Installation, &installation()),
        PolicyObject::encode(key("window/Month@Europe/Berlin"), &WindowBounds { bounds: vec![december()] }),
        PolicyObject::encode(
            key("backend/plimsoll-system/openai"),
            &backend(vec![
                model("gpt-5.2"),
                Model { rates: None, ..model("gpt-free") },
                Model { context_tokens: None, ..model("gpt-blind") },
                Model { max_output_tokens: None, ..model("gpt-endless") },
            ]),
        ),
        PolicyObject::encode(
            key("route/finance/assistant"),
            &route("assistant", &[("plimsoll-system/openai", "gpt-5.2", 1)]),
        ),
        PolicyObject::encode(key("budget/finance/invoices"), &budget(only("finance"))),
    ]
}

pub fn snapshot() -> Snapshot {
    with(&[])
}

/// The objects above, and these after them.
pub fn with(more: &[PolicyObject]) -> Snapshot {
    let objects = [objects(), more.to_vec()].concat();
    let (snapshot, rejected) = Snapshot::default().apply(true, &objects, &[]);
    assert_eq!(rejected, vec![]);
    snapshot
}

/// The objects above without any budget, and these.
pub fn without_budgets(more: &[PolicyObject]) -> Snapshot {
    let (snapshot, rejected) = snapshot().apply(false, more, &[key("budget/finance/invoices")]);
    assert_eq!(rejected, vec![]);
    snapshot
}
