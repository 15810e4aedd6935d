//! What statuses say of gateways: which enforce, which lag and why, which won't.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use plimsoll_api::Object;
use plimsoll_api::shared::Condition;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::PolicyKey;
use plimsoll_plan::{Applied, Gateway, Instead, Link, Missing, Part, Planner, Settings, status};
use std::collections::BTreeMap;
use std::sync::Arc;

const NOW: UnixMs = UnixMs(1_795_521_600_000);
/// 2026-11-24T11:59:49.5Z
const THEN: UnixMs = UnixMs(1_795_521_589_500);
const DOWN: Link = Link::Down { since: THEN };
const CLUSTER: &str = "backend/a/own";

/// A budget, a route and a backend, as they were last told.
struct Scene {
    planner: Planner,
    applied: Applied,
    budget: Option<plimsoll_api::AIBudgetStatus>,
    route: Option<plimsoll_api::ModelRouteStatus>,
    backend: Option<plimsoll_api::ModelBackendStatus>,
}

fn objects(generation: i64) -> Vec<Object> {
    let head = |kind: &str, name: &str| {
        format!(
            "---\napiVersion: plimsoll.dev/v1alpha1\nkind: {kind}\n\
             metadata: {{name: {name}, namespace: a, generation: {generation}}}\n"
        )
    };
    support::objects(&format!(
        "{}spec: {{limits: [{{name: month, amount: {generation}}}]}}\n\
         {}spec: {{tiers: [{{name: only, backends: [{{backendRef: {{name: own}}, model: m}}]}}]}}\n\
         {}spec:\n  provider: {{api: OpenAI, baseURL: https://api.example.com/v{generation}}}\n  \
         models: [{{name: m, price: {{inputPerMillion: 1, outputPerMillion: 2}}}}]\n",
        head("AIBudget", "all"),
        head("ModelRoute", "r"),
        head("ModelBackend", "own"),
    ))
}

fn up() -> Gateway {
    Gateway { ledger: Link::Up, xds: Link::Up, ..Gateway::default() }
}

impl Scene {
    /// With these gateways, before anything was told.
    fn new(gateways: &[(&str, Gateway)]) -> Self {
        let mut planner = support::planner(Settings::default(), objects(1));
        planner.replan(NOW);
        let mut scene =
            Self { planner, applied: Applied::default(), budget: None, route: None, backend: None };
        gateways.iter().for_each(|(name, gateway)| scene.put(name, gateway.clone()));
        scene
    }

    fn put(&mut self, name: &str, gateway: Gateway) {
        self.applied.gateways.insert(name.to_owned(), gateway);
    }

    /// Each of the objects is changed.
    fn change(&mut self) {
        objects(2).into_iter().for_each(|object| self.planner.put(object));
        self.planner.replan(NOW);
    }

    /// `gateway` as it is with `instead` of all policy, and without this part of the cluster.
    fn lacking(&self, gateway: Gateway, instead: Instead, part: Part) -> Gateway {
        let policy = self.planner.plan().policy.keys();
        let missing = Missing { part, rejected: None };
        Gateway {
            lacks: Arc::new(policy.map(|key| (key.clone(), instead)).collect()),
            clusters: BTreeMap::from([(CLUSTER.to_owned(), missing)]),
            ..gateway
        }
    }

    fn look(&mut self) {
        let (world, plan) = (self.planner.world(), self.planner.plan());
        let name = |name: &str| ObjectName::new("a", name);
        let (all, r, own) = (name("all"), name("r"), name("own"));
        let budget = self.budget.as_ref();
        self.budget = Some(status::budget(&all, &world.budgets[&all], budget, plan, &self.applied, NOW));
        let route = self.route.as_ref();
        self.route = Some(status::route(&r, &world.routes[&r], route, plan, &self.applied, NOW));
        let backend = self.backend.as_ref();
        self.backend = Some(status::backend(&own, &world.backends[&own], backend, plan, &self.applied, NOW));
    }

    fn enforced(&self) -> String {
        told(&self.budget.as_ref().unwrap().conditions, "Enforced")
    }

    fn programmed(&self) -> String {
        told(&self.backend.as_ref().unwrap().conditions, "Programmed")
    }

    fn counted(&self) -> (u32, u32) {
        let counted = self.budget.as_ref().unwrap().gateways.unwrap();
        (counted.enforcing, counted.total)
    }

    /// Status and reason of Ready: budget, route, backend.
    fn ready(&self) -> [String; 3] {
        let budget = &self.budget.as_ref().unwrap().conditions;
        let route = &self.route.as_ref().unwrap().conditions;
        let backend = &self.backend.as_ref().unwrap().conditions;
        [budget, route, backend].map(|conditions| {
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
            format!("{} {}", ready.status, ready.reason)
        })
    }
}

/// `False Reason: message`.
fn told(conditions: &[Condition], kind: &str) -> String {
    let Condition { status, reason, message, .. } =
        conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    format!("{status} {reason}: {message}")
}

#[test]
fn each_gateway_that_lags_is_named_with_its_reason_and_the_remedy() {
    let scene = Scene::new(&[]);
    let policy = |ledger, instead| Gateway { ledger, ..scene.lacking(up(), instead, Part::Cluster) };
    let clusters = |xds, part| {
        let Gateway { clusters, .. } = scene.lacking(up(), Instead::Nothing, part);
        Gateway { xds, clusters, ..up() }
    };
    let no_filter = Gateway { ledger: Link::Never, ..up() };
    let no_xds = Gateway { xds: Link::Never, ..up() };
    let expected = Gateway { ledger: Link::Expected, ..up() };
    let cases = [
        (
            policy(Link::Up, Instead::Nothing),
            "False WaitingForGateways: not yet acknowledged: gw-1",
            "False WaitingForGateways: not yet acknowledged: gw-1",
        ),
        (
            policy(Link::Up, Instead::Before),
            "False WaitingForGateways: not yet acknowledged, the version before is in force: gw-1",
            "False WaitingForGateways: not yet acknowledged, the version before is in force: gw-1",
        ),
        (
            policy(DOWN, Instead::Before),
            "False GatewayDisconnected: no ledger stream since 2026-11-24T11:59:49Z, the version before is in force: \
             gw-1. See whether it runs and reaches the operator; gone for good, it counts no more after 10 min.",
            "",
        ),
        (
            policy(DOWN, Instead::Nothing),
            "False GatewayDisconnected: no ledger stream since 2026-11-24T11:59:49Z: gw-1. See whether it runs and \
             reaches the operator; gone for good, it counts no more after 10 min.",
            "",
        ),
        (
            no_filter,
            "False GatewayDisconnected: no ledger stream, Envoy alone is connected: gw-1. Configure the Plimsoll \
             filter in that Envoy's listener, or see \"plimsoll:\" in its log.",
            "",
        ),
        (
            expected,
            "False WaitingForGateways: not back since the operator started: gw-1",
            "False WaitingForGateways: not back since the operator started: gw-1",
        ),
        (
            no_xds,
            "True Enforced: every gateway enforces it",
            "False GatewayDisconnected: no xDS stream, the filter alone is connected: gw-1. See ads_config in Envoy's \
             bootstrap, and whether it reaches the operator.",
        ),
        (
            clusters(DOWN, Part::Cluster),
            "True Enforced: every gateway enforces it",
            "False GatewayDisconnected: no xDS stream since 2026-11-24T11:59:49Z: gw-1. See ads_config in Envoy's \
             bootstrap, and whether it reaches the operator.",
        ),
        (
            clusters(Link::Up, Part::Cluster),
            "True Enforced: every gateway enforces it",
            "False WaitingForGateways: Envoy has not yet acknowledged the cluster: gw-1",
        ),
        (
            clusters(Link::Up, Part::Key),
            "True Enforced: every gateway enforces it",
            "False WaitingForGateways: Envoy has not yet acknowledged the key: gw-1",
        ),
    ];
    for (gateway, enforced, programmed) in cases {
        let holds = enforced.starts_with("True");
        let mut scene = Scene::new(&[("gw-0", up()), ("gw-1", gateway)]);
        scene.look();
        assert_eq!(scene.enforced(), enforced);
        let programmed = if programmed.is_empty() { enforced } else { programmed };
        assert_eq!(scene.programmed(), programmed);
        assert_eq!(scene.counted(), (1 + u32::from(holds), 2), "{enforced}");
    }
}

#[test]
fn what_an_unreachable_gateway_holds_already_it_enforces() {
    let mut scene = Scene::new(&[("gw-1", Gateway { ledger: DOWN, xds: DOWN, ..Gateway::default() })]);
    scene.look();
    assert_eq!(scene.enforced(), "True Enforced: every gateway enforces it");
    assert_eq!(scene.programmed(), "True Programmed: ");
    assert_eq!(scene.counted(), (1, 1));
}

#[test]
fn many_gateways_make_a_short_message_with_those_first_that_need_somebody() {
    let mut scene = Scene::new(&[]);
    let waiting = scene.lacking(up(), Instead::Nothing, Part::Cluster);
    for n in 0..198 {
        scene.put(&format!("gateway-{n:03}"), waiting.clone());
    }
    let lost = Gateway { ledger: DOWN, ..waiting };
    scene.put("lost-1", lost.clone());
    scene.put(&"n".repeat(256), lost);
    scene.look();
    let cut = format!("{}…", "n".repeat(62));
    let expected = format!(
        "False GatewayDisconnected: no ledger stream since 2026-11-24T11:59:49Z: lost-1, {cut}; not yet acknowledged: \
         gateway-000 and 197 more. See whether it runs"
    );
    assert!(scene.enforced().starts_with(&expected), "{}", scene.enforced());
    let rejected = BTreeMap::from([(PolicyKey::Budget(ObjectName::new("a", "all")), "w".repeat(1_024))]);
    for gateway in scene.applied.gateways.values_mut().skip(50) {
        gateway.rejected.clone_from(&rejected);
    }
    scene.look();
    let told = scene.enforced();
    assert!(
        told.starts_with("False RejectedByGateway: gateway-050, gateway-051, gateway-052 and 147 more"),
        "{told}"
    );
    assert!(told.contains(". Update the gateway. Beside that, not yet acknowledged: gateway-000"), "{told}");
    for status in [&scene.budget.unwrap().conditions, &scene.backend.unwrap().conditions] {
        assert!(status.iter().all(|condition| condition.message.chars().count() <= 1_024));
    }
}

#[test]
fn a_gateway_that_is_not_there_keeps_no_change_from_being_ready() {
    let mut scene = Scene::new(&[("gw-1", up()), ("gw-2", up())]);
    scene.look();
    scene.change();
    scene.put("gw-1", scene.lacking(up(), Instead::Before, Part::Cluster));
    scene.put(
        "gw-2",
        scene.lacking(Gateway { ledger: DOWN, xds: DOWN, ..up() }, Instead::Before, Part::Cluster),
    );
    scene.look();
    assert_eq!(scene.ready(), ["False WaitingForGateways"; 3], "gw-1 is about to answer");
    scene.put("gw-1", up());
    scene.look();
    assert_eq!(scene.ready(), ["True InForce"; 3]);
    assert!(scene.enforced().starts_with("False GatewayDisconnected: no ledger stream since"));
    scene.put("gw-2", scene.lacking(up(), Instead::Before, Part::Cluster));
    scene.look();
    assert_eq!(scene.ready(), ["True InForce"; 3], "it comes back, and is told");
}

#[test]
fn an_envoy_that_refuses_a_cluster_is_quoted_in_its_backend_alone() {
    let words = "Invalid path: /etc/ssl/certs/none.crt";
    let rejects = Gateway {
        clusters: BTreeMap::from([(
            CLUSTER.to_owned(),
            Missing { part: Part::Cluster, rejected: Some(words.to_owned()) },
        )]),
        ..up()
    };
    let mut scene = Scene::new(&[("gw-1", rejects.clone())]);
    scene.look();
    assert_eq!(
        scene.programmed(),
        "False RejectedByGateway: Envoy of gw-1 rejects the cluster: Invalid path: /etc/ssl/certs/none.crt. Mend what \
         it names; a file must be on the gateway when it starts (providerCAFile in the operator's settings)."
    );
    assert_eq!(
        scene.ready(),
        ["True InForce", "True InForce", "False RejectedByGateway"],
        "nobody can use it"
    );
    assert_eq!(
        told(&scene.backend.as_ref().unwrap().conditions, "Stalled").split(':').next(),
        Some("True RejectedByGateway")
    );
    assert_eq!(scene.enforced(), "True Enforced: every gateway enforces it");

    // Of several gateways one is an odd one: that is told, and nothing waits for it.
    scene.put("gw-2", up());
    scene.look();
    assert!(scene.programmed().starts_with("False RejectedByGateway: Envoy of gw-1 rejects"));
    assert_eq!(scene.ready(), ["True InForce"; 3]);
    scene.put("gw-2", rejects);
    scene.look();
    assert_eq!(scene.ready(), ["True InForce"; 3], "what was ready stays so: the version before is in force");
}

#[test]
fn a_restart_of_the_operator_changes_no_status_while_gateways_come_back() {
    let mut scene = Scene::new(&[("gw-1", up()), ("gw-2", up())]);
    scene.look();
    let before = (scene.budget.clone(), scene.route.clone(), scene.backend.clone());
    let expected = Gateway { ledger: Link::Expected, xds: Link::Expected, ..Gateway::default() };
    scene.put("gw-1", expected.clone());
    scene.put("gw-2", expected.clone());
    for (name, back) in [
        ("gw-1", expected.clone()),
        ("gw-1", Gateway { ledger: Link::Up, ..expected.clone() }),
        ("gw-2", up()),
        ("gw-1", up()),
    ] {
        scene.put(name, back);
        scene.look();
        assert_eq!((&scene.budget, &scene.route, &scene.backend), (&before.0, &before.1, &before.2));
    }

    // What was changed meanwhile is another generation: nobody has said anything about it.
    scene.put("gw-1", expected);
    scene.change();
    scene.look();
    assert_eq!(scene.enforced(), "False WaitingForGateways: not back since the operator started: gw-1");
    assert_eq!(scene.ready(), ["False WaitingForGateways"; 3]);
    // And one that came back with something else is believed.
    let mut scene = Scene::new(&[("gw-1", up())]);
    scene.look();
    scene
        .put("gw-1", Gateway { xds: Link::Expected, ..scene.lacking(up(), Instead::Nothing, Part::Cluster) });
    scene.look();
    assert_eq!(scene.enforced(), "False WaitingForGateways: not yet acknowledged: gw-1");
}
