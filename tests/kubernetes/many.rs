//! 10,000 budgets and 1,000 routes: first start, restart, and a list that is made anew.

use super::cluster::{Cluster, amount};
use super::gateway::Gateway;
use super::{OBJECTS, key};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, PostParams};
use plimsoll_api::{AIBudget, ModelRoute};
use serde_json::json;
use std::time::Instant;

const BUDGETS: usize = 10_000;
const ROUTES: usize = 1_000;

fn budget(number: usize) -> AIBudget {
    let name = format!("b-{number}");
    let spec = json!({"match": {"features": [name]}, "limits": [{"name": "month", "amount": 100}]});
    AIBudget::new(&name, serde_json::from_value(spec).unwrap())
}

fn route(number: usize) -> ModelRoute {
    let backends = json!([{"backendRef": {"name": "openai", "namespace": "plimsoll-system"}, "model": "m"}]);
    let spec = json!({"tiers": [{"name": "only", "backends": backends}]});
    ModelRoute::new(&format!("r-{number}"), serde_json::from_value(spec).unwrap())
}

fn create(cluster: &Cluster) {
    let client = cluster.client.clone();
    cluster.runtime.block_on(async {
        let budgets = Api::<AIBudget>::namespaced(client.clone(), "finance");
        let routes = Api::<ModelRoute>::namespaced(client, "finance");
        let params = &PostParams::default();
        let (budgets, routes) = (&budgets, &routes);
        let some = futures::stream::iter(0..BUDGETS)
            .map(|number| async move { budgets.create(params, &budget(number)).await.map(drop) })
            .buffer_unordered(32)
            .try_collect::<()>();
        some.await.unwrap();
        let others = futures::stream::iter(0..ROUTES)
            .map(|number| async move { routes.create(params, &route(number)).await.map(drop) })
            .buffer_unordered(32)
            .try_collect::<()>();
        others.await.unwrap();
    });
}

#[test]
fn ten_thousand_budgets_and_a_thousand_routes_start_and_restart_without_a_storm() {
    let mut cluster = Cluster::new("");
    cluster.apply(OBJECTS);
    let began = Instant::now();
    create(&cluster);
    println!("{BUDGETS} budgets and {ROUTES} routes created in {:.1?}", began.elapsed());

    let gateways = ["gw-1", "gw-2"].map(|id| Gateway::start(id, cluster.grpc));
    let acknowledged = |cluster: &Cluster| {
        cluster.until("all acknowledged by both gateways", |status| {
            let held = |id: &str| &status["gateways"][id];
            ["gw-1", "gw-2"].iter().all(|id| {
                held(id)["policy"].as_u64().is_some_and(|held| held > (BUDGETS + ROUTES) as u64)
                    && held(id)["policy"] == held(id)["policyTotal"]
            })
        });
    };
    for start in ["first start", "restart"] {
        let began = Instant::now();
        cluster.kill_operator();
        cluster.spawn_operator();
        cluster.ready();
        acknowledged(&cluster);
        let memory = cluster.operator.as_ref().unwrap().rss_kib().unwrap_or_default();
        println!("{start} to all acknowledged in {:.1?}, {} MiB resident", began.elapsed(), memory >> 10);
    }
    let received = Gateway::received;
    let before = gateways.each_ref().map(received);
    // The API server comes back: lists may be made anew, and say nothing new.
    cluster.plane.kill_api_server();
    cluster.plane.start_api_server().unwrap();
    cluster.apply(&super::budget("b-7", "101"));
    cluster.until("the change", |status| amount(status, "b-7").as_deref() == Some("101.00"));
    cluster.until("held", |_| {
        gateways.iter().all(|gateway| received(gateway) > 0 && gateway.holds(&key("b-7")).is_some())
    });
    cluster.until("told once", |_| gateways.each_ref().map(received) == before.map(|count| count + 1));
    for gateway in &gateways {
        assert_eq!(gateway.seen.lock().unwrap().removed, 0);
    }
}
