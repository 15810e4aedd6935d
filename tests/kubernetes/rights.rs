//! Rights that are missing: each is named, with whom to grant it to, and nothing else suffers.

use super::cluster::{Cluster, amount, budget, condition};
use super::{OBJECTS, holds};
use plimsoll_sim::harness::{http, wait_until};

const ACCOUNT: &str = "ServiceAccount plimsoll-system/plimsoll";

#[test]
fn without_rights_it_waits_and_says_which_it_needs() {
    let mut cluster = Cluster::new("");
    cluster.apply(OBJECTS);
    let role = cluster.kubectl(&["get", "clusterrole", "plimsoll", "--output", "json"]);
    cluster.kubectl(&["delete", "clusterrole", "plimsoll"]);
    cluster.spawn_operator();
    let wanted = ["aibudgets in API group plimsoll.dev", "namespaces in the core API group"];
    wait_until("the missing rights", super::cluster::PATIENCE, || {
        let page = http::get(("127.0.0.1", cluster.http), "/readyz").map_err(|error| error.to_string())?;
        let named =
            wanted.iter().all(|what| page.body.contains(&format!("grant list on {what} to {ACCOUNT}")));
        if page.status == 503 && named { Ok(()) } else { Err(page.body) }
    })
    .unwrap();
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
}
