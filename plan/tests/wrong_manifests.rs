//! What each of thirty-seven wrong manifests is told, word for word: read it as a page of the manual.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use plimsoll_plan::{Settings, check};

const BUDGET: &str =
    "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {name: all, namespace: finance}\n";
const ROUTE: &str =
    "apiVersion: plimsoll.dev/v1alpha1\nkind: ModelRoute\nmetadata: {name: assistant, namespace: finance}\n";
const BACKEND: &str =
    "apiVersion: plimsoll.dev/v1alpha1\nkind: ModelBackend\nmetadata: {name: openai, namespace: finance}\n";

/// (manifest: header and rest, what it is told, a line each).
const TABLE: &[(&str, &str, &str)] = &[
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 12.5}]}"#,
        r#"AIBudget finance/all: spec.limits[0].amount 12.5 is not an integer; write a decimal number in quotes, "12.5""#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: '1,000'}]}"#,
        r#"AIBudget finance/all: spec.limits[0].amount "1,000" does not fit; write an amount of 0 or more like 500 or "12.50", with at most nine decimals"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: -5}]}"#,
        r#"AIBudget finance/all: spec.limits[0].amount -5 is too small; use 0 or more"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: '9300000000'}]}"#,
        r#"AIBudget finance/all: spec.limits[0].amount "9300000000" is too large; the largest amount is 9200000000"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: '1.5', unit: Tokens}]}"#,
        r#"AIBudget finance/all: spec.limits[0].amount "1.5" is not a whole number; Tokens are counted whole"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5, unit: EUR}]}"#,
        r#"AIBudget finance/all: spec.limits[0].unit "EUR" is not allowed; use one of USD, Tokens, Requests"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5, window: {period: Monthly}}]}"#,
        r#"AIBudget finance/all: spec.limits[0].window.period "Monthly" is not allowed; did you mean "Month"?"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5, window: {timeZone: Berlin}}]}"#,
        r#"AIBudget finance/all: spec.limits[0].window.timeZone "Berlin" is not an IANA time zone; did you mean "Europe/Berlin"?"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amuont: 5}]}"#,
        r#"AIBudget finance/all: spec.limits[0].amuont is not a field; did you mean "amount"?
AIBudget finance/all: spec.limits[0].amount is missing; add it"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: []}"#,
        r#"AIBudget finance/all: spec.limits is empty; give at least one entry, or leave the field out if it is optional"#,
    ),
    (
        BUDGET,
        r#"spec: {limit: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.limit is not a field; did you mean "limits"?
AIBudget finance/all: spec.limits is missing; add it"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5}, {name: month, amount: 6}]}"#,
        r#"AIBudget finance/all: spec.limits[1].name "month" stands there twice; give each entry its own"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: Month 1, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.limits[0].name "Month 1" does not fit; use lower case letters, digits and -"#,
    ),
    (
        BUDGET,
        r#"spec: {match: {}, limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.match: give at least one of features, users, routes, models and namespaceSelector, or leave match out"#,
    ),
    (
        BUDGET,
        r#"spec: {match: {features: []}, limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.match.features is empty; give at least one entry, or leave the field out if it is optional"#,
    ),
    (
        BUDGET,
        r#"spec: {match: {models: ['gpt-*-mini']}, limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.match.models[0] "gpt-*-mini" does not fit; a * may only end it, after at least one character; leave the list out to match any"#,
    ),
    (
        BUDGET,
        r#"spec: {match: {features: billing}, limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.match.features is the string "billing"; it should be a list"#,
    ),
    (
        BUDGET,
        r#"spec: {match: {namespaceSelector: {matchLabels: {team: a}}}, limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.match.namespaceSelector is allowed only in the root namespace plimsoll-system; remove it, or move the budget there"#,
    ),
    (
        BUDGET,
        r#"spec: {match: {namespaceSelector: {matchExpressions: [{key: team, operator: In}]}}, limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: spec.match.namespaceSelector.matchExpressions[0]: give values with In and NotIn, and none with Exists and DoesNotExist"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5}], stages: [{trigger: Used, percent: 120, action: Block}]}"#,
        r#"AIBudget finance/all: spec.stages[0]: a Block stage stands at 100 percent at most; to allow more, raise the amount"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5}], stages: [{trigger: Used, percent: 0, action: Notify}]}"#,
        r#"AIBudget finance/all: spec.stages[0].percent 0 is out of range; use 1 to 1000"#,
    ),
    (
        BUDGET,
        r#"spec: {limits: [{name: month, amount: 5}], enforcement: Enforced, contact: "a\nb"}"#,
        r#"AIBudget finance/all: spec.contact "a\nb" does not fit; write it on one line
AIBudget finance/all: spec.enforcement "Enforced" is not allowed; did you mean "Enforce"?"#,
    ),
    (
        ROUTE,
        r#"spec: {tiers: []}"#,
        r#"ModelRoute finance/assistant: spec.tiers is empty; give at least one entry, or leave the field out if it is optional"#,
    ),
    (
        ROUTE,
        r#"spec: {tiers: [{name: only, backends: [{backendRef: {name: openai}, model: gpt-5, weight: 0}]}]}"#,
        r#"ModelRoute finance/assistant: spec.tiers[0]: every weight is 0, so nothing would answer; give at least one backend a weight above 0"#,
    ),
    (
        ROUTE,
        r#"spec: {tiers: [{name: only, backends: [{backendRef: openai, model: gpt-5}]}], timeout: 2 minutes}"#,
        r#"ModelRoute finance/assistant: spec.tiers[0].backends[0].backendRef is the string "openai"; it should be an object
ModelRoute finance/assistant: spec.timeout "2 minutes" does not fit; write a duration like 120s, 500ms or 2m"#,
    ),
    (
        ROUTE,
        r#"spec: {tiers: [{name: a, backends: [{backendRef: {name: openai}, model: gpt-5}]}, {name: b, backends: [{backendRef: {name: openai}, model: gpt-5}]}]}"#,
        r#"ModelRoute finance/assistant: spec.tiers has 2 entries; at most 1 are allowed"#,
    ),
    (
        BACKEND,
        r#"spec: {provider: {api: OpenAI, baseURL: 'http://api.openai.com/v1'}, models: [{name: gpt-5}]}"#,
        r#"ModelBackend finance/openai: spec.provider.baseURL "http://api.openai.com/v1" is plain HTTP, which is allowed only in the root namespace plimsoll-system; use a public https:// address, or move the backend there"#,
    ),
    (
        BACKEND,
        r#"spec: {provider: {api: OpenAI, baseURL: 'https://10.0.0.7/v1'}, models: [{name: gpt-5}]}"#,
        r#"ModelBackend finance/openai: spec.provider.baseURL "https://10.0.0.7/v1" points to a private address, which is allowed only in the root namespace plimsoll-system; use a public https:// address, or move the backend there"#,
    ),
    (
        BACKEND,
        r#"spec: {provider: {api: OpenAI, baseURL: 'https://user:pw@api.openai.com/v1'}, models: [{name: gpt-5}]}"#,
        r#"ModelBackend finance/openai: spec.provider.baseURL does not fit; write it like https://api.openai.com/v1, without user, query or fragment"#,
    ),
    (
        BACKEND,
        r#"spec: {provider: {api: OpenAI, baseURL: 'https://api.openai.com/v1', discountPercent: 120}, models: [{name: gpt-5, price: {inputPerMillion: 1}}]}"#,
        r#"ModelBackend finance/openai: spec.models[0].price.outputPerMillion is missing; add it"#,
    ),
    (
        BACKEND,
        r#"spec: {provider: {api: OpenAI, baseURL: 'https://api.openai.com/v1', discountPercent: 120}, models: [{name: gpt-5}]}"#,
        r#"ModelBackend finance/openai: spec.provider.discountPercent "120" is more than 100; write the share that is taken off, like "12.5""#,
    ),
    (
        BACKEND,
        r#"spec: {provider: {api: OpenAI, baseURL: 'https://api.openai.com/v1'}, models: [{name: gpt-5}], allowedRoutes: {namespaces: {from: Selector}}}"#,
        r#"ModelBackend finance/openai: spec.allowedRoutes.namespaces: give selector with from: Selector, and only then"#,
    ),
    (
        "apiVersion: plimsoll.dev/v1\nkind: AIBudget\nmetadata: {name: all, namespace: finance}\n",
        r#"spec: {limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget finance/all: apiVersion "plimsoll.dev/v1" is not that of AIBudget; write plimsoll.dev/v1alpha1"#,
    ),
    (
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudgets\nmetadata: {name: all, namespace: finance}\n",
        r#"spec: {limits: [{name: month, amount: 5}]}"#,
        r#"manifest finance/all: kind "AIBudgets" is not known; did you mean "AIBudget"?"#,
    ),
    (
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {name: all}\n",
        r#"spec: {limits: [{name: month, amount: 5}]}"#,
        r#"AIBudget all: metadata.namespace is missing; add it"#,
    ),
    (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: openai, namespace: finance}\n",
        r#"stringDatas: {api-key: sk-secret}"#,
        r#"Secret finance/openai: "stringDatas" is not a field; did you mean "stringData"?"#,
    ),
    (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: openai, namespace: finance}\n",
        r#"data: {api-key: sk-not-base64!}"#,
        r#"Secret finance/openai: data or stringData is not a map of strings; write data in base64, or stringData as plain text"#,
    ),
];

fn told(manifest: &str) -> Vec<String> {
    let value: serde_json::Value = match serde_saphyr::from_str(manifest) {
        Ok(value) => value,
        Err(error) => return vec![error.to_string()],
    };
    match plimsoll_api::validate(&value) {
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
        Ok(object) => check(&object, &Settings::default()).iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn each_wrong_manifest_is_told_what_is_wrong_and_what_to_do() {
    assert!(TABLE.len() >= 20);
    let mut wrong = String::new();
    for (header, rest, expected) in TABLE {
        let told = told(&format!("{header}{rest}")).join("\n");
        if told != *expected {
            wrong += &format!("---\n{rest}\nis told:\n{told}\ninstead of:\n{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
