//! The API server away, back, and back without its memory of us.

use super::cluster::{Cluster, amount, budget, condition};
use super::gateway::Gateway;
use super::{OBJECTS, key};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    let conditions = |cluster: &Cluster| {
        let object = cluster.until_object("its status", "aibudgets", "finance/a", |object| {
            condition(object, "Enforced").is_some_and(|enforced| enforced["status"] == "True")
        });
        object["status"]["conditions"].clone()
    };
    let before = conditions(&cluster);
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
    // As for an upgrade: it closes its watches, each with an answer.
    cluster.plane.stop_api_server().unwrap();
    cluster.plane.start_api_server().unwrap();
    cluster.apply(&budget("b", "7"));
    cluster.until("the second change", |status| amount(status, "b").as_deref() == Some("7.00"));
    assert_eq!(gateway.holds(&key("a")), version);
    assert_eq!(conditions(&cluster), before, "nothing flaps");
    let seen = gateway.seen.lock().unwrap();
    assert_eq!((seen.received, seen.removed, seen.connections), (received + 2, 0, 1));
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

    // While the operator hears nothing, API server and etcd lose their memory: nothing can be resumed. Its
    // connections are cut first, or they would hold the news for it.
    cluster.operator.as_ref().unwrap().pause();
    cluster.plane.kill_api_server();
    cluster.plane.start_api_server().unwrap();
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
fn an_operator_that_starts_while_the_api_server_is_away_leaves_gateways_what_they_hold_and_lets_no_new_one_in()
 {
    let mut cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&budget("a", "500"));
    cluster.until("all held", |_| gateway.count() == 1 + 4);
    let received = gateway.received();
    cluster.kill_operator();
    cluster.plane.kill_api_server();
    cluster.spawn_operator();
    cluster.until_it_waits_for(&["the API server can't be reached"]);
    let connections = |gateway: &Gateway| gateway.seen.lock().unwrap().connections;
    cluster.until("the gateway is back", |_| connections(&gateway) == 2);
    let new = Gateway::start("gw-2", cluster.grpc);
    cluster.until("a new one is there", |_| connections(&new) == 1);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!((gateway.received(), new.received()), (received, 0));
    assert_eq!(gateway.seen.lock().unwrap().removed, 0);

    cluster.plane.start_api_server().unwrap();
    cluster.ready();
    let status = cluster.until("the budget", |status| amount(status, "a").is_some());
    assert_eq!(status["faults"], json!([]));
    cluster.until("the new one holds all", |_| new.count() == 1 + 4);
    assert_eq!(gateway.received(), received, "nothing is new to the other");
}

#[test]
fn an_api_server_that_answers_that_it_is_unavailable_is_named_at_once_and_not_asked_all_the_time() {
    let mut cluster = Cluster::new("");
    // What stands before an API server that is being upgraded.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _length = stream.read(&mut request);
            counted.fetch_add(1, Ordering::Relaxed);
            let _sent = stream.write_all(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\nconnection: close\r\n\r\nupstream",
            );
        }
    });
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    let path = cluster.kubeconfig.with_file_name("unavailable.kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    cluster.kubeconfig = path;
    cluster.spawn_operator();
    cluster.until_it_waits_for(&["the API server answers 503"]);
    // Five watches for more than the ten seconds until it was named, with pauses from half a second to eight.
    let asked = asked.load(Ordering::Relaxed);
    assert!((10..=60).contains(&asked), "it was asked {asked} times");
}

#[test]
fn a_budget_replaced_while_the_operator_heard_nothing_gets_a_status_of_its_own() {
    let cluster = Cluster::start("");
    let gateway = Gateway::start("gw-1", cluster.grpc);
    cluster.apply(OBJECTS);
    cluster.apply(&budget("a", "500"));
    cluster.until_object("the status", "aibudgets", "finance/a", |object| object["status"].is_object());
    // The deletion and the successor come to it in one breath.
    cluster.operator.as_ref().unwrap().pause();
    cluster.kubectl(&["delete", "aibudget", "a", "--namespace=finance"]);
    cluster.apply(&budget("a", "500"));
    cluster.operator.as_ref().unwrap().resume();
    cluster.until_object("its status", "aibudgets", "finance/a", |object| {
        condition(object, "Enforced").is_some_and(|enforced| enforced["status"] == "True")
    });
    assert!(gateway.holds(&key("a")).is_some());
}
