//! Rights that are missing: each is named, with whom to grant it to, and nothing else suffers.

use super::cluster::{Cluster, amount, budget, condition};
use super::gateway::Gateway;
use super::{OBJECTS, holds};
use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::PolicyKey;

const ACCOUNT: &str = "ServiceAccount plimsoll-system/plimsoll";

#[test]
fn without_rights_it_waits_and_says_which_it_needs() {
    let mut cluster = Cluster::new("");
    cluster.apply(OBJECTS);
    let role = cluster.kubectl(&["get", "clusterrole", "plimsoll", "--output", "json"]);
    cluster.kubectl(&["delete", "clusterrole", "plimsoll"]);
    cluster.spawn_operator();
    let wanted = ["aibudgets in API group plimsoll.dev", "namespaces in the core API group"];
    let wanted = wanted.map(|what| format!("grant list on {what} to {ACCOUNT}"));
    cluster.until_it_waits_for(&wanted.each_ref().map(String::as_str));
    cluster.plane.kubectl(&["apply", "--filename", "-"], &role).unwrap();
    cluster.ready();
}

#[test]
fn secrets_that_may_not_be_read_are_a_condition_of_the_backend_that_needs_one() {
    let mut cluster = Cluster::new("");
    cluster.apply(OBJECTS);
    cluster.apply(&budget("a", "5"));
    let role = cluster.kubectl(&[
        "get",
        "role",
        "plimsoll-secrets",
        "--namespace=plimsoll-system",
        "--output",
        "json",
    ]);
    cluster.kubectl(&["delete", "role", "plimsoll-secrets", "--namespace=plimsoll-system"]);
    cluster.spawn_operator();
    cluster.ready();
    let backend =
        cluster.until_object("the condition", "modelbackends", "plimsoll-system/openai", |object| {
            holds(object, "ResolvedRefs", "False")
        });
    let resolved = condition(&backend, "ResolvedRefs").unwrap();
    assert_eq!(resolved["reason"], "SecretForbidden");
    let message = resolved["message"].as_str().unwrap();
    let grant = format!("grant list on secrets in the core API group to {ACCOUNT}");
    assert!(
        message.contains("Secret plimsoll-system/openai can't be read") && message.contains(&grant),
        "{message}"
    );
    let status = cluster.until("the budget", |status| amount(status, "a").is_some());
    assert!(
        status["faults"].to_string().contains("Secrets of namespace plimsoll-system can't be read"),
        "{status:#}"
    );
    cluster.plane.kubectl(&["apply", "--filename", "-"], &role).unwrap();
    cluster.until_object("the key is found", "modelbackends", "plimsoll-system/openai", |object| {
        holds(object, "ResolvedRefs", "True")
    });
    cluster.until("no fault", |status| status["faults"] == serde_json::json!([]));

    // A restart without the right knows no key; gateways have it, and go on.
    let gateway = Gateway::start("gw-1", cluster.grpc);
    let backend = PolicyKey::Backend(ObjectName::new("plimsoll-system", "openai"));
    cluster.until("the backend at the gateway", |_| gateway.holds(&backend).is_some());
    cluster.kubectl(&["delete", "role", "plimsoll-secrets", "--namespace=plimsoll-system"]);
    cluster.kill_operator();
    cluster.spawn_operator();
    cluster.ready();
    cluster.until_object("the condition", "modelbackends", "plimsoll-system/openai", |object| {
        holds(object, "ResolvedRefs", "False")
    });
    cluster.until("the gateway is back", |status| status["gateways"]["gw-1"]["ledger"] == true);
    assert!(gateway.holds(&backend).is_some());
    assert_eq!(gateway.seen.lock().unwrap().removed, 0);
}

#[test]
fn secrets_are_read_where_the_settings_say_while_they_say_so() {
    let cluster = Cluster::start("");
    cluster.apply(OBJECTS);
    cluster.apply(
        r#"
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: team}
stringData: {key: sk-of-the-team}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {name: own, namespace: team}
spec:
  provider: {api: OpenAI, baseURL: "https://api.openai.com/v1", apiKeySecretRef: {name: key, key: key}}
  models: [{name: m, contextTokens: 1000, maxOutputTokens: 100}]
"#,
    );
    let reason = |wanted: &str| {
        cluster.until_object(wanted, "modelbackends", "team/own", |object| {
            condition(object, "ResolvedRefs").is_some_and(|resolved| resolved["reason"] == wanted)
        })
    };
    reason("SecretNotPermitted");
    cluster.configure("secretNamespaces: [team]");
    reason("SecretForbidden");
    cluster.apply(
        r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: plimsoll-secrets, namespace: team}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: plimsoll-secrets, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: plimsoll-secrets}
subjects: [{kind: ServiceAccount, name: plimsoll, namespace: plimsoll-system}]
"#,
    );
    reason("ResolvedRefs");
    cluster.configure("");
    reason("SecretNotPermitted");
    cluster.until("no fault", |status| status["faults"] == serde_json::json!([]));
    assert!(!cluster.log().contains("sk-of-the-team"));
}

#[test]
fn without_our_definitions_it_waits_and_says_how_to_install_them() {
    let mut cluster = Cluster::new("");
    cluster.kubectl(&["delete", "crd", "aibudgets.plimsoll.dev"]);
    cluster.spawn_operator();
    let missing = "the API server has no aibudgets.plimsoll.dev; install it: plimsoll crds | kubectl apply";
    cluster.until_it_waits_for(&[missing]);
    cluster.plane.install(std::path::Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    cluster.ready();
}
