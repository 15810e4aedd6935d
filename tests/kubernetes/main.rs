//! The operator on a real API server: what people apply, delete and forbid, and what happens to it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod cluster;
mod gateway;
mod many;
mod outage;
mod rights;

use cluster::{Cluster, amount, budget, condition};
use gateway::Gateway;
use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::PolicyKey;
use serde_json::{Value, json};

/// A backend with its key, a route to it, and a budget.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: finance}
---
apiVersion: v1
kind: Secret
metadata: {name: openai, namespace: plimsoll-system}
stringData: {api-key: sk-very-secret}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {name: openai, namespace: plimsoll-system}
spec:
  provider: {api: OpenAI, baseURL: "https://api.openai.com/v1", apiKeySecretRef: {name: openai, key: api-key}}
  models: [{name: m, contextTokens: 1000, maxOutputTokens: 100, price: {inputPerMillion: 1, outputPerMillion: 2}}]
  allowedRoutes: {namespaces: {from: All}}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelRoute
metadata: {name: assistant, namespace: finance}
spec:
  tiers: [{name: only, backends: [{backendRef: {name: openai, namespace: plimsoll-system}, model: m}]}]
"#;

fn key(name: &str) -> PolicyKey {
    PolicyKey::Budget(ObjectName::new("finance", name))
}

fn holds(object: &Value, kind: &str, status: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == status)
}

#[test]
fn what_is_applied_is_enforced_told_back_and_changed_while_it_runs() {
    let cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&budget("a", "500"));
    let object = cluster.until_object("the budget enforced", "aibudgets", "finance/a", |object| {
        holds(object, "Enforced", "True") && object["status"]["gateways"]["total"] == 1
    });
    assert_eq!(object["status"]["observedGeneration"], 1);
    assert_eq!(object["status"]["limits"][0]["amount"], "500.00");
    assert!(holds(&object, "Ready", "True") && holds(&object, "Stalled", "False"), "{object:#}");
    assert!(gateway.holds(&key("a")).is_some());
    // As kstatus reads it, and with it Flux, Argo CD and Helm: no finalizer holds a deletion up.
    cluster.kubectl(&["wait", "--for=condition=Ready", "aibudget/a", "--namespace=finance", "--timeout=10s"]);
    assert_eq!(object["metadata"]["finalizers"], Value::Null);
    let route = cluster.until_object("the route's status", "modelroutes", "finance/assistant", |object| {
        holds(object, "ResolvedRefs", "True")
    });
    assert!(holds(&route, "Accepted", "True"), "{route:#}");

    let before = gateway.holds(&key("a"));
    cluster.kubectl(&[
        "patch",
        "aibudget",
        "a",
        "--namespace=finance",
        "--type=json",
        r#"--patch=[{"op": "replace", "path": "/spec/limits/0/amount", "value": 600}]"#,
    ]);
    let status = cluster.until("the new amount", |status| amount(status, "a").as_deref() == Some("600.00"));
    assert_eq!(status["faults"], json!([]));
    cluster.until("the gateway has it", |_| gateway.holds(&key("a")) != before);
    let object = cluster.until_object("its status", "aibudgets", "finance/a", |object| {
        object["status"]["observedGeneration"] == 2
    });
    assert_eq!(object["status"]["limits"][0]["amount"], "600.00");

    cluster.kubectl(&["delete", "aibudget", "a", "--namespace=finance", "--timeout=10s"]);
    cluster.until("the gateway has let it go", |_| gateway.holds(&key("a")).is_none());
    assert!(!cluster.log().contains("sk-very-secret"));
}

#[test]
fn a_gitops_manager_keeps_its_fields_and_we_keep_the_status() {
    let cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    let apply = |manifest: &str| {
        let args = ["apply", "--server-side", "--field-manager=argocd-controller", "--filename", "-"];
        cluster.plane.kubectl(&args, manifest).unwrap()
    };
    apply(&budget("a", "500"));
    let enforced = |object: &Value| holds(object, "Enforced", "True");
    let object = cluster.until_object("the status", "aibudgets", "finance/a", enforced);
    let managers: Vec<(&str, &str, bool)> = object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let fields = entry["fieldsV1"].as_object().unwrap();
            let subresource = entry["subresource"].as_str().unwrap_or_default();
            (entry["manager"].as_str().unwrap(), subresource, fields.contains_key("f:spec"))
        })
        .collect();
    assert_eq!(managers.len(), 2, "{managers:?}");
    assert!(managers.contains(&("argocd-controller", "", true)), "{managers:?}");
    assert!(managers.contains(&("plimsoll-status", "status", false)), "{managers:?}");

    // The same again, as GitOps tools do every few minutes: nothing anywhere.
    cluster.until("all held", |_| gateway.count() == 1 + 4);
    let received = gateway.received();
    let published = cluster.metric("plimsoll_operator_policy_published_total");
    for _ in 0..3 {
        apply(&budget("a", "500"));
    }
    let again = cluster.object("aibudgets", "finance/a").unwrap();
    assert_eq!(again["metadata"]["generation"], 1);
    assert!(enforced(&again), "{again:#}");
    // No conflict with what we own, and a change takes.
    apply(&budget("a", "700"));
    cluster.until("the new amount", |status| amount(status, "a").as_deref() == Some("700.00"));
    cluster.until("the gateway has it", |_| gateway.received() > received);
    assert_eq!(gateway.received(), received + 1);
    assert_eq!(cluster.metric("plimsoll_operator_policy_published_total"), published + 1);
}

#[test]
fn kubectl_applied_twice_is_no_news_and_a_deleted_budget_that_returns_is_in_force_again() {
    let cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&(budget("a", "500") + &budget("b", "5")));
    cluster.until("all held", |_| gateway.count() == 2 + 4);
    let version = gateway.holds(&key("a"));
    let received = gateway.received();
    let said = cluster.apply(&(budget("a", "500") + &budget("b", "5")));
    assert_eq!(said.matches("unchanged").count(), 2, "{said}");
    // Labels and annotations make no other budget.
    cluster.kubectl(&["label", "aibudget", "a", "--namespace=finance", "team=x"]);
    cluster.kubectl(&["replace", "--force", "--filename", &file(&cluster, &budget("b", "5"))]);
    cluster.until("b is back", |_| gateway.holds(&key("b")).is_some());
    cluster.kubectl(&["delete", "aibudget", "a", "--namespace=finance"]);
    cluster.until("a is gone", |_| gateway.holds(&key("a")).is_none());
    cluster.apply(&budget("a", "500"));
    cluster.until("a is back", |_| gateway.holds(&key("a")).is_some());
    assert_eq!(gateway.holds(&key("a")), version, "it is the same policy");
    let received = gateway.received() - received;
    assert!(received <= 2, "{received} objects were sent for two that came back");
}

fn file(cluster: &Cluster, text: &str) -> String {
    let path = cluster.kubeconfig.with_file_name("manifest.yaml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_object_that_cannot_be_read_is_named_and_spares_the_others() {
    let mut cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&(budget("a", "500") + &budget("b", "5")));
    cluster.until("both budgets held", |_| gateway.holds(&key("a")).and(gateway.holds(&key("b"))).is_some());
    let version = gateway.holds(&key("a"));
    // A definition from another time lets in what this operator does not know.
    cluster.kubectl(&[
        "patch",
        "crd",
        "aibudgets.plimsoll.dev",
        "--type=json",
        r#"--patch=[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
            "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#,
    ]);
    let torn = |cluster: &Cluster| {
        let patch = r#"--patch=[{"op": "replace", "path": "/spec/limits", "value": "none"}]"#;
        let args = ["patch", "aibudget", "a", "--namespace=finance", "--type=json", patch];
        cluster.plane.kubectl(&args, "").map_err(|error| error.to_string())
    };
    // The new definition takes a moment to be served.
    plimsoll_sim::harness::wait_until("the change", cluster::PATIENCE, || torn(&cluster).map(drop)).unwrap();
    let fault = |status: &Value| {
        let faults = status["faults"].as_array().unwrap().clone();
        faults.into_iter().find(|fault| fault["object"] == "AIBudget finance/a")
    };
    let status = cluster.until("the fault", |status| fault(status).is_some());
    let message = fault(&status).unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("can't be read: "), "{message}");
    assert_eq!(gateway.holds(&key("a")), version, "it stays in force");
    cluster.apply(&budget("b", "6"));
    cluster.until("b changes", |status| amount(status, "b").as_deref() == Some("6.00"));

    // A restart knows of it only from memory, and holds on to it until it can be read, or is gone.
    cluster.kill_operator();
    cluster.spawn_operator();
    cluster.ready();
    cluster.until("the fault again", |status| fault(status).is_some());
    cluster.until("the gateway is back", |_| gateway.seen.lock().unwrap().connections == 2);
    assert_eq!(gateway.holds(&key("a")), version);
    assert_eq!(gateway.seen.lock().unwrap().removed, 0);
    cluster.kubectl(&["delete", "aibudget", "a", "--namespace=finance"]);
    cluster.until("a is gone", |_| gateway.holds(&key("a")).is_none());
    cluster.until("no fault", |status| fault(status).is_none());
}
