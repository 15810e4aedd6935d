//! What the operator says of real gateways: refused by Envoy, killed, stopped, and after its own restart.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use plimsoll_sim::replay::Pace;
use plimsoll_sim::trace::Call;
use serde_json::Value;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use support::{Loop, budget};

const PATIENCE: Duration = Duration::from_secs(30);

fn calls() -> Vec<Call> {
    let call = |n: u64| Call {
        at: Duration::from_millis(n),
        feature: "steady".into(),
        user: "user".into(),
        model: "assistant".into(),
        prompt_tokens: 100,
        output_tokens: 50,
        stream: n.is_multiple_of(2),
    };
    (0..50).map(call).collect()
}

/// The condition `kind` of a status: `False Reason`, and its message.
fn condition(status: &Value, kind: &str) -> Result<(String, String), String> {
    let conditions = status["conditions"].as_array().ok_or("no conditions")?;
    let found = conditions.iter().find(|condition| condition["type"] == kind).ok_or("no such condition")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((format!("{} {}", text("status"), text("reason")), text("message")))
}

fn is(status: &Value, kind: &str, what: &str) -> Result<String, String> {
    let (found, message) = condition(status, kind)?;
    if found == what { Ok(message) } else { Err(format!("{kind} is {found}: {message}")) }
}

fn counts(status: &Value, enforcing: u64, total: u64) -> Result<(), String> {
    let counted = &status["budgets"]["finance/steady"]["gateways"];
    let found = (counted["enforcing"].as_u64(), counted["total"].as_u64());
    if found == (Some(enforcing), Some(total)) { Ok(()) } else { Err(format!("{found:?} gateways enforce")) }
}

/// A backend that is reached by TLS, so that its cluster names the file of trusted roots.
const BY_TLS: &str = r#"
apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {name: by-tls, namespace: plimsoll-system}
spec:
  provider: {api: OpenAI, baseURL: "https://127.0.0.1:1/v1", apiKeySecretRef: {name: by-tls, key: key}}
  models: [{name: m, contextTokens: 1000, maxOutputTokens: 100, price: {inputPerMillion: 1, outputPerMillion: 2}}]
---
apiVersion: v1
kind: Secret
metadata: {name: by-tls, namespace: plimsoll-system}
stringData: {key: sk-never-to-be-told}
"#;

#[test]
fn what_envoy_refuses_is_told_in_its_words_by_its_backend_alone_and_mended_while_traffic_goes_on() {
    let settings = "providerCAFile: /no/such/roots.pem";
    let this = Loop::start(2, &budget("steady", "500", "Month"), settings);
    let (stop, progress, task) = this.send(this.plan(calls(), Pace::Closed { clients: 4 }));
    let served = |more: u64| {
        let before = progress.served.load(Relaxed);
        plimsoll_sim::harness::wait_until("calls served", PATIENCE, || {
            let now = progress.served.load(Relaxed);
            if now >= before + more { Ok(()) } else { Err(format!("{} served", now - before)) }
        })
        .unwrap();
    };
    served(20);

    this.stack.write("by-tls.yaml", BY_TLS).unwrap();
    this.stack
        .wait_status("the rejection", |status| {
            let backend = &status["backends"]["plimsoll-system/by-tls"];
            let told = is(backend, "Programmed", "False RejectedByGateway")?;
            if !told.starts_with("Envoy of gateway-1, gateway-2 rejects the cluster: ") {
                return Err(told);
            }
            assert!(told.contains("/no/such/roots.pem") && told.contains("providerCAFile"), "{told}");
            assert!(!told.contains("pdate the gateway"), "{told}");
            is(backend, "Stalled", "True RejectedByGateway")?;
            for gateway in ["gateway-1", "gateway-2"] {
                let rejected = &status["gateways"][gateway]["envoyRejected"];
                let words = rejected["cluster backend/plimsoll-system/by-tls"].as_str().unwrap_or_default();
                // Its own words, and nobody else's.
                assert!(words.contains("/no/such/roots.pem") && !words.contains("passthrough"), "{words}");
            }
            let other = &status["backends"]["plimsoll-system/sim"];
            is(other, "Programmed", "True Programmed")?;
            is(&status["budgets"]["finance/steady"], "Enforced", "True Enforced").map(drop)
        })
        .unwrap();
    served(20);

    let directory = this.stack.manifests().parent().unwrap().to_owned();
    let config = directory.join("plimsoll.yaml");
    let mended = std::fs::read_to_string(&config).unwrap();
    let roots = directory.join("tls/ca.pem").display().to_string();
    std::fs::write(&config, mended.replace("/no/such/roots.pem", &roots)).unwrap();
    this.stack
        .wait_status("the mended cluster", |status| {
            let backend = &status["backends"]["plimsoll-system/by-tls"];
            is(backend, "Programmed", "True Programmed")?;
            is(backend, "Ready", "True InForce")?;
            let gateway = &status["gateways"]["gateway-1"];
            assert_eq!(gateway["clusters"], gateway["clustersTotal"]);
            Ok(())
        })
        .unwrap();
    served(20);
    stop.stop();
    let report = this.runtime.block_on(task).unwrap();
    assert!(report.statuses.keys().all(|status| *status == 200), "{:?}", report.statuses);
    let log = std::fs::read_to_string(directory.join("operator.log")).unwrap();
    for text in [log, this.stack.page("/status").unwrap().body] {
        assert!(!text.contains("sk-never-to-be-told") && !text.contains("the-providers-key"));
    }
    this.close().check_bill();
}

#[test]
fn a_killed_gateway_counts_and_is_named_and_a_stopped_one_is_neither() {
    let mut this = Loop::start(2, &budget("steady", "500", "Month"), "");
    this.stack.gateway(1).unwrap().kill();
    this.stack
        .wait_status("the end of its streams", |status| {
            let gateway = &status["gateways"]["gateway-2"];
            if gateway["ledgerDownSince"].is_null() || gateway["xdsDownSince"].is_null() {
                return Err(gateway.to_string());
            }
            assert_eq!(gateway["policy"], gateway["policyTotal"], "it may go on with what it holds");
            is(&status["budgets"]["finance/steady"], "Enforced", "True Enforced")?;
            counts(status, 2, 2)
        })
        .unwrap();

    // It will not hear of a change; that is said, and keeps nobody from being ready.
    this.stack.write("more.yaml", &budget("later", "5", "Month")).unwrap();
    this.stack
        .wait_status("the change", |status| {
            let later = &status["budgets"]["finance/later"];
            let told = is(later, "Enforced", "False GatewayDisconnected")?;
            assert!(
                told.starts_with("no ledger stream since 20") && told.contains("Z: gateway-2. "),
                "{told}"
            );
            is(later, "Ready", "True InForce")?;
            assert_eq!(status["gateways"]["gateway-2"]["policyLacking"][0], "budget/finance/later");
            counts(status, 2, 2)
        })
        .unwrap();
    this.stack.spawn_gateway(1).unwrap();
    this.stack.wait_gateway(1).unwrap();
    this.wait_enforced(2);

    // Stopped as Kubernetes stops it, it says that it ends; from then on nobody waits for it or misses it.
    let envoy = this.stack.gateway(1).unwrap().envoy().unwrap();
    envoy.process.terminate(PATIENCE).unwrap();
    this.stack
        .wait_status("one gateway", |status| {
            let (enforced, why) = condition(&status["budgets"]["finance/steady"], "Enforced")?;
            assert_eq!(enforced, "True Enforced", "{why}");
            assert!(
                status["gateways"]["gateway-2"].is_null()
                    || status["gateways"]["gateway-2"]["ledger"] == true
            );
            counts(status, 1, 1)
        })
        .unwrap();

    // An operator that starts again knows who is missing before that one is back.
    this.stack.kill_operator();
    this.stack.start_operator().unwrap();
    this.stack
        .wait_status("the gateway's return", |status| {
            let counted = &status["budgets"]["finance/steady"]["gateways"];
            let total = counted["total"].as_u64().ok_or("no report yet")?;
            assert_eq!(total, 1, "{status:#}");
            is(&status["backends"]["plimsoll-system/sim"], "Programmed", "True Programmed")?;
            counts(status, 1, 1)
        })
        .unwrap();
}
