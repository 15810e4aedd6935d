//! A real API server with an operator beside it, and what a person does with kubectl.

use ::http as http_types;
use plimsoll::kubernetes::{Access, Requests};
use plimsoll_sim::harness::kubernetes::ControlPlane;
use plimsoll_sim::harness::{self, Process, http, wait_until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(180);

/// One control plane at a time: two cores.
static TURN: Mutex<()> = Mutex::new(());

pub struct Cluster {
    /// The admin's.
    pub client: kube::Client,
    pub runtime: tokio::runtime::Runtime,
    pub operator: Option<Process>,
    pub plane: ControlPlane,
    pub http: u16,
    pub grpc: u16,
    /// The operator's: a ServiceAccount with the rights that we ship.
    pub kubeconfig: PathBuf,
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// The API server, our definitions and the operator's account; the operator is not started.
    pub fn new(settings: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let plane = ControlPlane::start(dir.path()).unwrap();
        let kubeconfig = plane.install(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let [http, grpc] = std::array::from_fn(|_| harness::free_port().unwrap());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let access = Access { kubeconfig: Some(plane.kubeconfig().to_owned()), context: None };
        let client = runtime.block_on(access.client(&Requests::default())).unwrap();
        let this = Self { client, runtime, operator: None, plane, http, grpc, kubeconfig, dir, _turn: turn };
        this.configure(settings);
        this
    }

    /// Writes the operator's settings anew: where it listens, and `settings`.
    pub fn configure(&self, settings: &str) {
        let Self { http, grpc, dir, .. } = self;
        let config = format!(
            "ledger: {{sqlite: {{path: {}/ledger.db}}}}\nplainText: true\n\
             listen: {{grpc: \"127.0.0.1:{grpc}\", http: \"127.0.0.1:{http}\"}}\n{settings}",
            dir.path().display()
        );
        std::fs::write(dir.path().join("plimsoll.yaml"), config).unwrap();
    }

    /// With the operator, ready.
    pub fn start(settings: &str) -> Self {
        let mut cluster = Self::new(settings);
        cluster.spawn_operator();
        cluster.ready();
        cluster
    }

    pub fn spawn_operator(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.arg("operator").arg("--config").arg(self.dir.path().join("plimsoll.yaml"));
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        let log = self.dir.path().join("operator.log");
        self.operator = Some(Process::spawn("operator", command, &log).unwrap());
    }

    pub fn ready(&mut self) {
        let http = self.http;
        let operator = self.operator.as_mut().unwrap();
        let ready = || match http::get(("127.0.0.1", http), "/readyz") {
            Ok(page) if page.status == 200 => Ok(()),
            Ok(page) => Err(page.body),
            Err(error) => Err(error.to_string()),
        };
        operator.wait_ready("the operator's readiness", PATIENCE, ready).unwrap();
    }

    /// Waits until `/readyz` says that it is not ready, and all of `words`.
    pub fn until_it_waits_for(&self, words: &[&str]) {
        wait_until("what it waits for", PATIENCE, || {
            let page = http::get(("127.0.0.1", self.http), "/readyz").map_err(|error| error.to_string())?;
            let waits = page.status == 503 && words.iter().all(|words| page.body.contains(words));
            if waits { Ok(()) } else { Err(page.body) }
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    /// SIGKILL.
    pub fn kill_operator(&mut self) {
        drop(self.operator.take());
    }

    pub fn page(&self, path: &str) -> http::Page {
        http::get(("127.0.0.1", self.http), path).unwrap()
    }

    pub fn metric(&self, name: &str) -> u64 {
        let page = self.page("/metrics").body;
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("operator.log")).unwrap()
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        self.plane.kubectl(args, "").unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn apply(&self, manifests: &str) -> String {
        self.plane.kubectl(&["apply", "--filename", "-"], manifests).unwrap_or_else(|error| panic!("{error}"))
    }

    /// An object as the API server has it, say `aibudgets`; `None`: there is none. Not by kubectl, which costs
    /// more than all else here when it is asked again and again.
    pub fn object(&self, plural: &str, name: &str) -> Option<Value> {
        let (namespace, name) = name.split_once('/').unwrap();
        let path = format!("/apis/plimsoll.dev/v1alpha1/namespaces/{namespace}/{plural}/{name}");
        let request = http_types::Request::get(path).body(vec![]).unwrap();
        let answer = self.runtime.block_on(self.client.request::<Value>(request));
        match answer {
            Ok(object) => Some(object),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{plural} {name}: {error}"),
        }
    }

    /// Waits until the operator's `/status` says so.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait_until(what, PATIENCE, || {
            let page = http::get(("127.0.0.1", self.http), "/status").map_err(|error| error.to_string())?;
            last = serde_json::from_str(&page.body).map_err(|error| error.to_string())?;
            if holds(&last) { Ok(()) } else { Err(String::new()) }
        })
        .unwrap_or_else(|error| panic!("{error}; status: {last:#}\n{}", self.log()));
        last
    }

    /// Waits until the API server's object says so.
    pub fn until_object(
        &self,
        what: &str,
        kind: &str,
        name: &str,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        wait_until(what, PATIENCE, || {
            last = self.object(kind, name).unwrap_or_default();
            if holds(&last) { Ok(()) } else { Err(String::new()) }
        })
        .unwrap_or_else(|error| panic!("{error}; {kind} {name}: {last:#}\n{}", self.log()));
        last
    }
}

/// A budget of one limit, a month's.
pub fn budget(name: &str, amount: &str) -> String {
    format!(
        "---\napiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {{name: {name}, namespace: finance}}\n\
         spec: {{match: {{features: [{name}]}}, limits: [{{name: month, amount: \"{amount}\"}}]}}\n"
    )
}

/// A condition of an object or a status.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let status = if object["status"].is_object() { &object["status"] } else { object };
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// The amount of a budget's first limit in `/status`.
pub fn amount(status: &Value, budget: &str) -> Option<String> {
    status["budgets"][format!("finance/{budget}")]["limits"][0]["amount"].as_str().map(str::to_owned)
}
