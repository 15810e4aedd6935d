//! Statuses and Events on a real API server: who owns them, how often they are written, what happens when
//! somebody else writes, refuses or is away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use k8s_openapi::api::events::v1::Event as Note;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use plimsoll::kubernetes::{Fingerprint, Kubernetes, Requests, Stored, Tasks, Writer};
use plimsoll::report::{Report, Sink, Standing};
use plimsoll::source::{Batch, Change, Fault, Source};
use plimsoll_api::{AIBudget, AIBudgetStatus, ModelBackend, ModelRoute, ObjectId};
use plimsoll_core::ids::ObjectName;
use plimsoll_plan::{Event, EventKind, Settings};
use plimsoll_sim::harness::kubernetes::ControlPlane;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tower::util::MapRequestLayer;

const PATIENCE: Duration = Duration::from_secs(120);

/// The rules under test.
const EVERY: Duration = Duration::from_secs(10);
const MOST: usize = 20;

/// Between the queue's decision and the request on the wire.
const SLACK: Duration = Duration::from_millis(250);

struct Cluster {
    plane: ControlPlane,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plane = ControlPlane::start(dir.path()).unwrap();
        let crds = json!({"apiVersion": "v1", "kind": "List", "items": plimsoll_api::crds()});
        plane.kubectl(&["apply", "--server-side", "-f", "-"], &crds.to_string()).unwrap();
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all"], "").unwrap();
        Self { plane, _dir: dir }
    }

    /// One for the tests that run at the same time.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    fn namespace(&self, name: &str) {
        self.plane.kubectl(&["create", "namespace", name], "").unwrap();
    }

    async fn client(&self) -> Client {
        client(self.plane.kubeconfig()).await.0
    }
}

/// When each status was sent, and whose.
type Sent = Arc<Mutex<Vec<(Instant, String)>>>;

async fn client(kubeconfig: &Path) -> (Client, Sent) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let sent = Sent::default();
    let into = Arc::clone(&sent);
    let layer = MapRequestLayer::new(move |request: http::Request<Body>| {
        if request.uri().path().ends_with("/status") {
            into.lock().unwrap().push((Instant::now(), request.uri().path().to_owned()));
        }
        request
    });
    (ClientBuilder::try_from(config).unwrap().with_layer(&layer).build(), sent)
}

async fn until<T>(what: &str, mut ready: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ready().await {
            Ok(it) => return it,
            Err(last) => assert!(Instant::now() < end, "{what} did not happen: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The operator's way to the API server: real watches, a real writer; only the reports are made by hand.
struct Desk {
    client: Client,
    sent: Sent,
    writer: Writer,
    tasks: Tasks,
    metrics: Registry,
    faults: watch::Receiver<Vec<Fault>>,
    stored: Arc<Stored>,
    report: Report,
    source: JoinSet<()>,
}

impl Desk {
    async fn open(kubeconfig: &Path) -> Self {
        let mut desk = Self::blind(kubeconfig).await;
        let (into, mut batches) = mpsc::channel::<Batch>(16);
        let source = Kubernetes::new(desk.client.clone(), Arc::clone(&desk.stored), Requests::default());
        let (ready, is_ready) = oneshot::channel();
        desk.source.spawn(async move {
            let (_settings, told) = watch::channel(Settings::default());
            let mut ready = Some(ready);
            let read = async {
                while let Some(batch) = batches.recv().await {
                    if !matches!(&*batch, [Change::Waiting(_)]) {
                        ready.take().map(|ready| ready.send(()));
                    }
                }
            };
            let (ended, ()) = tokio::join!(source.run(into, told), read);
            ended.unwrap();
        });
        is_ready.await.unwrap();
        desk
    }

    /// Without watches.
    async fn blind(kubeconfig: &Path) -> Self {
        let (client, sent) = client(kubeconfig).await;
        let stored = Arc::new(Stored::default());
        let (writer, tasks) = Writer::start(client.clone(), Arc::clone(&stored), Requests::default());
        let mut metrics = Registry::default();
        writer.register(&mut metrics);
        let faults = writer.faults();
        let source = JoinSet::new();
        Self { client, sent, writer, tasks, metrics, faults, stored, report: Report::default(), source }
    }

    fn budget(&mut self, object: &AIBudget, status: AIBudgetStatus) {
        let name = ObjectName::new(object.namespace().unwrap(), object.name_any());
        let before = self.report.budgets.get(&name);
        let standing = Standing::new(object.uid().as_deref(), status, before);
        self.report.budgets.insert(name, standing);
    }

    fn put(&mut self) {
        self.writer.put(&Arc::new(self.report.clone()));
    }

    /// How often a status of an object was sent.
    fn sent(&self, part: &str) -> usize {
        self.sent.lock().unwrap().iter().filter(|(_, path)| path.contains(part)).count()
    }

    fn metric(&self, name: &str) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_default().to_owned()
    }

    /// Waits until the watches have told of `budget`.
    async fn saw(&self, budget: &AIBudget) {
        let id = id(&budget.namespace().unwrap(), &budget.name_any());
        until("the budget is seen", async || {
            let entry = self.stored.get(&id).filter(|entry| Some(&*entry.uid) == budget.uid().as_deref());
            entry.map(|_| ()).ok_or_else(String::new)
        })
        .await;
    }

    /// Waits until the API server has this status.
    async fn arrived(&self, object: &AIBudget, status: &AIBudgetStatus) -> AIBudget {
        let api = Api::<AIBudget>::namespaced(self.client.clone(), &object.namespace().unwrap());
        until("the status in the API server", async || {
            let now = api.get(&object.name_any()).await.map_err(|error| error.to_string())?;
            let same = now.status.as_ref().map(Fingerprint::of) == Some(Fingerprint::of(status));
            if same { Ok(now) } else { Err(format!("{:?}", now.status)) }
        })
        .await
    }

    /// As the operator ends.
    async fn close(self) {
        let Self { writer, tasks, source, .. } = self;
        drop((writer, source));
        tasks.end().await;
    }
}

async fn create(client: &Client, namespace: &str, name: &str) -> AIBudget {
    let spec = json!({"limits": [{"name": "month", "amount": 500}]});
    let budget = AIBudget::new(name, serde_json::from_value(spec).unwrap());
    let by = PostParams { field_manager: Some("people".to_owned()), ..PostParams::default() };
    Api::namespaced(client.clone(), namespace).create(&by, &budget).await.unwrap()
}

const SINCE: &str = "2026-11-24T12:00:00Z";

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
        "lastTransitionTime": SINCE})
}

/// As the planner makes them.
fn status(spent: u64) -> AIBudgetStatus {
    let conditions: Vec<Value> =
        AIBudgetStatus::CONDITIONS.iter().map(|kind| condition(kind, "True", "InForce")).collect();
    serde_json::from_value(json!({
        "observedGeneration": 1,
        "conditions": conditions,
        "limits": [{"name": "month", "window": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
            "amount": "500.00", "spent": format!("{spent}.00"), "usedPercent": "2.5"}],
        "gateways": {"enforcing": 1, "total": 1},
    }))
    .unwrap()
}

fn blocked(spent: u64) -> AIBudgetStatus {
    let mut status = status(spent);
    let stage = json!({"trigger": "Used", "percent": 100, "action": "Block"});
    status.limits[0].stages = vec![serde_json::from_value(stage).unwrap()];
    status
}

/// The fields that `manager` owns by `operation` on `subresource`.
fn owned(object: &AIBudget, manager: &str, operation: &str, subresource: Option<&str>) -> Vec<String> {
    let entries = object.metadata.managed_fields.iter().flatten();
    let mut entries = entries.filter(|entry| {
        entry.manager.as_deref() == Some(manager)
            && entry.operation.as_deref() == Some(operation)
            && entry.subresource.as_deref() == subresource
    });
    let fields = entries.next().and_then(|entry| entry.fields_v1.clone());
    assert!(entries.next().is_none());
    fields.map_or(vec![], |fields| fields.0.as_object().unwrap().keys().cloned().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_ours_alone_and_a_restart_writes_nothing_that_is_there() {
    let cluster = Cluster::shared();
    cluster.namespace("finance");
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    let all = create(&desk.client, "finance", "all").await;
    let other = create(&desk.client, "finance", "other").await;
    desk.budget(&all, status(1));
    desk.budget(&other, status(1));
    let manifests = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelRoute
metadata: {name: assistant, namespace: finance}
spec: {tiers: [{name: all, backends: [{backendRef: {name: openai}, model: m}]}]}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {name: openai, namespace: finance}
spec: {provider: {api: OpenAI, baseURL: 'https://api.openai.com/v1'}, models: [{name: m}]}
";
    cluster.plane.kubectl(&["apply", "-f", "-"], manifests).unwrap();
    let routes = Api::<ModelRoute>::namespaced(desk.client.clone(), "finance");
    let backends = Api::<ModelBackend>::namespaced(desk.client.clone(), "finance");
    let (route, backend) = (routes.get("assistant").await.unwrap(), backends.get("openai").await.unwrap());
    let conditions = json!({"conditions": [condition("Ready", "True", "InForce")], "observedGeneration": 1});
    let route_status = serde_json::from_value(conditions.clone()).unwrap();
    let standing = Standing::new(route.uid().as_deref(), route_status, None);
    desk.report.routes.insert(ObjectName::new("finance", "assistant"), standing);
    let backend_status = serde_json::from_value(conditions).unwrap();
    let standing = Standing::new(backend.uid().as_deref(), backend_status, None);
    desk.report.backends.insert(ObjectName::new("finance", "openai"), standing);
    desk.put();

    let there = desk.arrived(&all, &status(1)).await;
    desk.arrived(&other, &status(1)).await;
    until("the other kinds' statuses", async || {
        let (route, backend) =
            (routes.get("assistant").await.unwrap(), backends.get("openai").await.unwrap());
        (route.status.is_some() && backend.status.is_some()).then_some(()).ok_or_else(String::new)
    })
    .await;
    assert_eq!(owned(&there, "plimsoll-status", "Apply", Some("status")), ["f:status"]);
    assert!(owned(&there, "people", "Update", None).contains(&"f:spec".to_owned()));
    assert_eq!(there.metadata.generation, Some(1));
    assert_eq!(desk.metric("plimsoll_kubernetes_status_writes_total"), "4");
    let report = desk.report.clone();
    desk.close().await;

    // The next process.
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    let opened = Instant::now();
    desk.report = report;
    desk.budget(&other, status(2));
    desk.put();
    desk.arrived(&other, &status(2)).await;
    // The process before may have written just then.
    assert!(opened.elapsed() >= EVERY - SLACK, "{:?}", opened.elapsed());
    assert_eq!(desk.sent("/namespaces/finance/"), 1, "{:?}", desk.sent);

    // A stage change that is known when the operator ends is written, whatever else waits.
    desk.budget(&all, blocked(500));
    desk.budget(&other, status(3));
    desk.put();
    let (watcher, _) = client(cluster.plane.kubeconfig()).await;
    desk.close().await;
    let budgets = Api::<AIBudget>::namespaced(watcher, "finance");
    let now = budgets.get("all").await.unwrap().status.unwrap();
    assert_eq!(now.limits[0].stages.len(), 1, "{now:?}");
    assert_eq!(budgets.get("other").await.unwrap().status.unwrap().limits[0].spent, "2.00");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_condition_stays_and_what_is_overwritten_is_written_back() {
    let cluster = Cluster::shared();
    cluster.namespace("shared");
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    let budget = create(&desk.client, "shared", "all").await;
    desk.budget(&budget, status(1));
    desk.put();
    desk.arrived(&budget, &status(1)).await;

    let api = Api::<AIBudget>::namespaced(desk.client.clone(), "shared");
    let audited = json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "AIBudget", "metadata": {"name": "all"},
        "status": {"conditions": [condition("example.com/Audited", "True", "Done")]}});
    // By another client: what ours sends is counted.
    let auditor = Api::<AIBudget>::namespaced(cluster.client().await, "shared");
    auditor.patch_status("all", &PatchParams::apply("auditor"), &Patch::Apply(&audited)).await.unwrap();
    // Numbers: written when ten seconds have passed, as a needless write would have been before.
    desk.budget(&budget, status(2));
    desk.put();
    let now = desk.arrived(&budget, &status(2)).await;
    assert_eq!(desk.sent("/namespaces/shared/"), 2);
    let types = |budget: &AIBudget| {
        let conditions = &budget.status.as_ref().unwrap().conditions;
        conditions.iter().map(|condition| condition.type_.clone()).collect::<Vec<_>>()
    };
    assert!(types(&now).contains(&"example.com/Audited".to_owned()), "{:?}", types(&now));

    let tampered = json!({"status": {"limits": [{"name": "month", "window": {}, "amount": "500.00", "spent": "0.00",
        "usedPercent": "0.0"}], "gateways": {"enforcing": 9, "total": 9}}});
    let by = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
    let changed = auditor.patch_status("all", &by, &Patch::Merge(&tampered)).await.unwrap();
    assert_eq!(changed.status.unwrap().limits[0].spent, "0.00");
    let now = desk.arrived(&budget, &status(2)).await;
    assert!(types(&now).contains(&"example.com/Audited".to_owned()));

    // A status that another made part of, for good: it is not fought over.
    let limit =
        json!({"name": "theirs", "window": {}, "amount": "1.00", "spent": "0.00", "usedPercent": "0.0"});
    let theirs = json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "AIBudget", "metadata": {"name": "all"},
        "status": {"limits": [limit]}});
    auditor.patch_status("all", &PatchParams::apply("auditor"), &Patch::Apply(&theirs)).await.unwrap();
    let before = desk.sent("/namespaces/shared/");
    until("one attempt to put it right", async || {
        (desk.sent("/namespaces/shared/") == before + 1).then_some(()).ok_or_else(String::new)
    })
    .await;
    let now = api.get("all").await.unwrap().status.unwrap();
    assert_eq!(now.limits.len(), 2, "{now:?}");
    desk.budget(&budget, status(4));
    desk.put();
    until("what is ours is written on", async || {
        let now = api.get("all").await.unwrap().status.unwrap();
        (now.limits.iter().any(|limit| limit.spent == "4.00")).then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
    assert_eq!(desk.sent("/namespaces/shared/"), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_re_created_budget_does_not_get_its_predecessors_status() {
    let cluster = Cluster::shared();
    cluster.namespace("again");
    let client = cluster.client().await;
    let api = Api::<AIBudget>::namespaced(client.clone(), "again");
    let first = create(&client, "again", "all").await;
    api.delete("all", &DeleteParams::default()).await.unwrap();
    let second = create(&client, "again", "all").await;

    // A writer whose watches have not seen it yet.
    let mut blind = Desk::blind(cluster.plane.kubeconfig()).await;
    let id = id("again", "all");
    blind.stored.saw(&id, &first.uid().unwrap(), &first.resource_version().unwrap(), None);
    blind.budget(&first, status(1));
    blind.put();
    until("the refusal", async || {
        let conflicts = blind.metric("plimsoll_kubernetes_status_write_failures_total{why=\"conflict\"}");
        if conflicts.is_empty() {
            Err(blind.metric("plimsoll_kubernetes_status_writes_total"))
        } else {
            Ok(())
        }
    })
    .await;
    assert_eq!(api.get("all").await.unwrap().status, None);
    blind.stored.saw(&id, &second.uid().unwrap(), &second.resource_version().unwrap(), None);
    blind.budget(&second, status(2));
    blind.put();
    blind.arrived(&second, &status(2)).await;

    // One that sees all: deleted, created and told anew, it waits for nothing.
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    api.delete("all", &DeleteParams::default()).await.unwrap();
    let third = create(&client, "again", "all").await;
    desk.budget(&third, status(3));
    let created = Instant::now();
    desk.put();
    desk.arrived(&third, &status(3)).await;
    assert!(created.elapsed() < EVERY, "{:?}", created.elapsed());
    assert_eq!(desk.sent("/namespaces/again/"), 1);
}

const ACCOUNT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: plimsoll, namespace: plimsoll-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: plimsoll}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: plimsoll}
subjects: [{kind: ServiceAccount, name: plimsoll, namespace: plimsoll-system}]
";

const SOME_RIGHTS: [(&str, &str, &[&str]); 3] = [
    ("plimsoll.dev", "*", &["get", "list", "watch"]),
    ("", "*", &["get", "list", "watch"]),
    ("plimsoll.dev", "aibudgets/status", &["patch"]),
];

const MISSING: [(&str, &str, &[&str]); 2] =
    [("plimsoll.dev", "modelroutes/status", &["patch"]), ("events.k8s.io", "events", &["create", "patch"])];

fn role(rights: &[(&str, &str, &[&str])]) -> String {
    let rules = rights.iter().map(
        |(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs}),
    );
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "plimsoll"},
        "rules": rules.collect::<Vec<_>>()})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named_holds_up_nothing_else_and_is_not_asked_for_all_the_time() {
    let cluster = Cluster::start();
    cluster.namespace("plimsoll-system");
    cluster.namespace("denied");
    cluster.plane.kubectl(&["apply", "-f", "-"], ACCOUNT).unwrap();
    cluster.plane.kubectl(&["apply", "-f", "-"], &role(&SOME_RIGHTS)).unwrap();
    let account = cluster.plane.service_account("plimsoll-system", "plimsoll").unwrap();
    let admin = cluster.client().await;
    let mut desk = Desk::open(&account).await;
    let routes = Api::<ModelRoute>::namespaced(admin.clone(), "denied");
    for number in 0..40 {
        let name = format!("route-{number}");
        let spec =
            json!({"tiers": [{"name": "all", "backends": [{"backendRef": {"name": "b"}, "model": "m"}]}]});
        let route = ModelRoute::new(&name, serde_json::from_value(spec).unwrap());
        let route = routes.create(&PostParams::default(), &route).await.unwrap();
        let status = json!({"conditions": [condition("Ready", "True", "InForce")], "observedGeneration": 1});
        let standing = Standing::new(route.uid().as_deref(), serde_json::from_value(status).unwrap(), None);
        desk.report.routes.insert(ObjectName::new("denied", name), standing);
    }
    desk.put();
    let budget = create(&admin, "denied", "all").await;
    desk.saw(&budget).await;
    desk.writer.tell(&id("denied", "all"), &event("StageReached", 80));
    let denied = "to ServiceAccount plimsoll-system/plimsoll (asked for in namespace denied)";
    let status_denied = format!(
        "statuses of ModelRoutes can't be written: grant patch on modelroutes/status in API group plimsoll.dev {denied}"
    );
    let events_denied =
        format!("Events can't be written: grant create on events in API group events.k8s.io {denied}");
    let messages =
        |faults: &[Fault]| -> Vec<String> { faults.iter().map(|fault| fault.message.clone()).collect() };
    let mut faults = desk.faults.clone();
    let both = [status_denied, events_denied];
    let named = faults.wait_for(|faults| messages(faults) == both);
    tokio::time::timeout(PATIENCE, named).await.unwrap().unwrap();

    desk.budget(&budget, status(1));
    desk.put();
    desk.arrived(&budget, &status(1)).await;
    let asked = desk.sent("/modelroutes/");
    assert!(asked <= 8, "{asked} of 40 were tried at once");

    let rights = [SOME_RIGHTS.as_slice(), &MISSING].concat();
    cluster.plane.kubectl(&["apply", "-f", "-"], &role(&rights)).unwrap();
    tokio::time::timeout(PATIENCE, faults.wait_for(Vec::is_empty)).await.unwrap().unwrap();
    assert!(desk.sent("/modelroutes/") <= asked + 8 + 40);
    until("all routes' statuses", async || {
        let routes = routes.list(&ListParams::default()).await.unwrap();
        let missing = routes.iter().filter(|route| route.status.is_none()).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
    })
    .await;
    until("the Event", async || {
        let notes =
            Api::<Note>::namespaced(admin.clone(), "denied").list(&ListParams::default()).await.unwrap();
        notes
            .iter()
            .find(|note| note.reason.as_deref() == Some("StageReached"))
            .map(|_| ())
            .ok_or_else(String::new)
    })
    .await;
    assert_eq!(desk.metric("plimsoll_kubernetes_status_pending"), "0");
}

fn id(namespace: &str, name: &str) -> ObjectId {
    ObjectId { kind: "AIBudget".to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

fn event(reason: &'static str, percent: u32) -> Event {
    Event {
        kind: EventKind::Warning,
        reason,
        action: format!("Notify/month/{percent}"),
        message: format!("limit month: {percent} percent of 500.00 used"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_stand_at_the_budget_and_what_happens_again_is_counted() {
    let cluster = Cluster::shared();
    cluster.namespace("told");
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    let budget = create(&desk.client, "told", "all").await;
    desk.saw(&budget).await;
    desk.writer.tell(&id("told", "all"), &event("StageReached", 80));
    desk.writer.tell(&id("told", "all"), &event("StageReached", 90));
    desk.writer.tell(&id("told", "all"), &event("StageReached", 80));
    // Of an object that is not there.
    desk.writer.tell(&id("told", "nobody"), &event("StageReached", 80));
    let notes = Api::<Note>::namespaced(desk.client.clone(), "told");
    let seen = until("the Events", async || {
        let seen = notes.list(&ListParams::default()).await.unwrap().items;
        let counted = seen.iter().any(|note| note.series.as_ref().is_some_and(|series| series.count == 2));
        if counted { Ok(seen) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let texts: BTreeMap<String, i32> = seen
        .iter()
        .map(|note| (note.note.clone().unwrap(), note.series.as_ref().map_or(1, |series| series.count)))
        .collect();
    let percent = |percent: u32| format!("limit month: {percent} percent of 500.00 used");
    assert_eq!(texts, BTreeMap::from([(percent(80), 2), (percent(90), 1)]));
    for note in &seen {
        assert_eq!(note.regarding.as_ref().unwrap().uid, budget.uid());
        assert_eq!(note.type_.as_deref(), Some("Warning"));
        assert_eq!(note.reporting_controller.as_deref(), Some("plimsoll.dev/operator"));
    }
    let described = cluster.plane.kubectl(&["describe", "aib", "all", "--namespace", "told"], "").unwrap();
    assert!(described.contains("limit month: 90 percent of 500.00 used"), "{described}");
    assert_eq!(desk.metric("plimsoll_kubernetes_events_total"), "3");
    assert_eq!(desk.metric("plimsoll_kubernetes_events_dropped_total"), "1");

    // A namespace that ends takes no more Events: that is no missing right, and holds up nobody.
    cluster.namespace("ending");
    let doomed = create(&desk.client, "ending", "all").await;
    desk.saw(&doomed).await;
    cluster.plane.kubectl(&["delete", "namespace", "ending", "--wait=false"], "").unwrap();
    desk.writer.tell(&id("ending", "all"), &event("StageReached", 80));
    desk.writer.tell(&id("told", "all"), &event("StageReached", 95));
    until("the Event after it", async || {
        let sent = desk.metric("plimsoll_kubernetes_events_total");
        if sent == "4" { Ok(()) } else { Err(sent) }
    })
    .await;
    assert_eq!(desk.metric("plimsoll_kubernetes_events_dropped_total"), "2");
    assert!(desk.faults.borrow().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_after_the_api_server_was_killed_in_the_middle() {
    let mut cluster = Cluster::start();
    cluster.namespace("away");
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    let mut budgets = Vec::new();
    for number in 0..60 {
        budgets.push(create(&desk.client, "away", &format!("budget-{number}")).await);
    }
    for budget in &budgets {
        desk.budget(budget, status(1));
    }
    desk.put();
    until("a part is written", async || {
        if desk.sent("/away/") >= 30 { Ok(()) } else { Err(desk.sent("/away/").to_string()) }
    })
    .await;
    cluster.plane.kill_api_server();
    for budget in &budgets {
        desk.budget(budget, status(2));
    }
    desk.put();
    desk.writer.tell(&id("away", "budget-0"), &event("StageReached", 80));
    let mut faults = desk.faults.clone();
    let said =
        faults.wait_for(|faults| faults.iter().any(|fault| fault.message.contains("can't be reached")));
    tokio::time::timeout(PATIENCE, said).await.unwrap().unwrap();
    let tried = desk.sent("/away/");
    assert!(tried < 60 + 20, "{tried} requests to a server that is away");
    cluster.plane.start_api_server().unwrap();
    for budget in &budgets {
        desk.arrived(budget, &status(2)).await;
    }
    tokio::time::timeout(PATIENCE, faults.wait_for(Vec::is_empty)).await.unwrap().unwrap();
    until("the Event", async || {
        let sent = desk.metric("plimsoll_kubernetes_events_total");
        if sent == "1" { Ok(()) } else { Err(sent) }
    })
    .await;
}

/// `PLIMSOLL_TEST_STATUSES=2000` for as many budgets as an installation may have.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_twenty_statuses_a_second_and_one_in_ten_seconds_of_an_object() {
    let count: usize = std::env::var("PLIMSOLL_TEST_STATUSES").map_or(120, |count| count.parse().unwrap());
    let cluster = Cluster::start();
    cluster.namespace("many");
    let mut desk = Desk::open(cluster.plane.kubeconfig()).await;
    let mut budgets = Vec::new();
    for number in 0..count {
        budgets.push(create(&desk.client, "many", &format!("budget-{number}")).await);
    }
    // Every number changes in every report, until each object was written twice.
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut spent = 0;
    while desk.sent("/many/") < 2 * count {
        ticks.tick().await;
        spent += 1;
        for budget in &budgets {
            desk.budget(budget, status(spent));
        }
        desk.put();
        assert!(
            started.elapsed() < PATIENCE + SLACK * u32::try_from(count).unwrap(),
            "{}",
            desk.sent("/many/")
        );
    }
    for budget in &budgets {
        desk.arrived(budget, &status(spent)).await;
    }
    let sent = desk.sent.lock().unwrap().clone();
    eprintln!("{} writes of {count} objects in {:?}", sent.len(), started.elapsed());
    for some in sent.windows(MOST + 1) {
        let took = some[MOST].0 - some[0].0;
        assert!(took >= Duration::from_secs(1) - SLACK, "{} writes in {took:?}", MOST + 1);
    }
    let mut last: BTreeMap<&str, Instant> = BTreeMap::new();
    for (at, path) in &sent {
        if let Some(before) = last.insert(path, *at) {
            assert!(*at - before >= EVERY - SLACK, "{path} again after {:?}", *at - before);
        }
    }
    assert_eq!(last.len(), count);
    assert_eq!(desk.metric("plimsoll_kubernetes_status_writes_total"), sent.len().to_string());
}
