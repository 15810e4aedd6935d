//! The API server away, back, and back without its memory of us.

use super::cluster::{Cluster, amount, budget};
use super::gateway::Gateway;
use super::{OBJECTS, key};
use serde_json::{Value, json};

fn away(status: &Value) -> bool {
    let faults = status["faults"].as_array().unwrap();
    faults
        .iter()
        .any(|fault| fault["message"].as_str().is_some_and(|it| it.contains("The last state stays in force")))
}

#[test]
fn an_api_server_that_is_away_is_named_changes_nothing_and_is_caught_up_with() {
    let mut cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&(budget("a", "500") + &budget("b", "5")));
    cluster.until("all held", |_| gateway.count() == 2 + 4);
    let received = gateway.received();
    let version = gateway.holds(&key("a"));

    cluster.plane.kill_api_server();
    let status = cluster.until("the fault", away);
    assert_eq!(status["faults"].as_array().unwrap().len(), 1, "{status:#}");
    assert_eq!(status["faults"][0]["place"], "API server");
    assert_eq!(cluster.page("/readyz").status, 200, "gateways are served all the same");
    {
        let seen = gateway.seen.lock().unwrap();
        assert_eq!((seen.received, seen.removed, seen.connections), (received, 0, 1));
    }
    cluster.plane.start_api_server().unwrap();
    cluster.apply(&budget("b", "6"));
    cluster.until("the change", |status| amount(status, "b").as_deref() == Some("6.00"));
    cluster.until("no fault", |status| status["faults"] == json!([]));
    assert_eq!(gateway.holds(&key("a")), version);
    let seen = gateway.seen.lock().unwrap();
    assert_eq!((seen.received, seen.removed, seen.connections), (received + 1, 0, 1));
}

#[test]
fn what_happened_while_a_watch_had_expired_is_caught_up_with() {
    let mut cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&(budget("kept", "500") + &budget("changed", "5") + &budget("deleted", "7")));
    cluster.until("all held", |_| gateway.count() == 3 + 4);
    let received = gateway.received();
    let version = gateway.holds(&key("kept"));

    // While the operator hears nothing, API server and etcd lose their memory: nothing can be resumed.
    cluster.operator.as_ref().unwrap().pause();
    cluster.apply(&budget("changed", "6"));
    cluster.kubectl(&["delete", "aibudget", "deleted", "--namespace=finance"]);
    cluster.apply(&budget("new", "8"));
    cluster.plane.kill_api_server();
    cluster.plane.compact().unwrap();
    cluster.plane.start_api_server().unwrap();
    cluster.operator.as_ref().unwrap().resume();

    cluster.until("the new one", |_| gateway.holds(&key("new")).is_some());
    cluster.until("the deletion", |_| gateway.holds(&key("deleted")).is_none());
    cluster.until("the change", |status| amount(status, "changed").as_deref() == Some("6.00"));
    // A watch that was resumed would prove nothing.
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]);
    let listed = |line: &&str| line.contains("resource=\"aibudgets\"") && line.contains("verb=\"LIST\"");
    let mut requests = metrics.lines().filter(|line| line.starts_with("apiserver_request_total"));
    assert!(requests.any(|line| listed(&line)), "the budgets were not listed anew");
    assert_eq!(gateway.holds(&key("kept")), version);
    let seen = gateway.seen.lock().unwrap();
    assert_eq!((seen.received, seen.removed), (received + 2, 1), "only what differs is sent");
}

#[test]
fn an_operator_that_starts_while_the_api_server_is_away_lets_nobody_in_and_then_goes_on() {
    let mut cluster = Cluster::start("");
    cluster.apply(OBJECTS);
    cluster.apply(&budget("a", "500"));
    cluster.until("the budget", |status| amount(status, "a").is_some());
    cluster.kill_operator();
    cluster.plane.kill_api_server();
    cluster.spawn_operator();
    plimsoll_sim::harness::wait_until("what it waits for", super::cluster::PATIENCE, || {
        let address = ("127.0.0.1", cluster.http);
        let page = plimsoll_sim::harness::http::get(address, "/readyz").map_err(|error| error.to_string())?;
        let waits = page.status == 503 && page.body.contains("the API server can't be reached");
        if waits { Ok(()) } else { Err(page.body) }
    })
    .unwrap();
    cluster.plane.start_api_server().unwrap();
    cluster.ready();
    let status = cluster.until("the budget", |status| amount(status, "a").is_some());
    assert_eq!(status["faults"], json!([]));
}
