//! From an object applied to an API server to its effect at every gateway, as a client sees it.
//!
//! A budget of next to nothing is pointed at the probe's feature and away again, by server-side apply; each
//! gateway is asked every few milliseconds until it refuses, or serves, as the budget says. The clock starts
//! before the request leaves. No status is believed.

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use plimsoll::kubernetes::{Access, Requests};
use plimsoll_api::AIBudget;
use plimsoll_sim::harness::http;
use plimsoll_sim::harness::kubernetes::ControlPlane;
use plimsoll_sim::harness::stack::Stack;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Changes of each size; the 99th percentile of so few is near their maximum.
const CHANGES: usize = 40;

/// Whether every budget is in force at every gateway.
pub fn enforced(status: &Value) -> Result<(), String> {
    let budgets = status["budgets"].as_object().filter(|all| !all.is_empty()).ok_or("no budgets")?;
    let held = |budget: &Value| {
        budget["gateways"]["total"] != 0 && budget["gateways"]["enforcing"] == budget["gateways"]["total"]
    };
    match budgets.iter().filter(|(_, budget)| !held(budget)).count() {
        0 => Ok(()),
        missing => Err(format!("{missing} of {} budgets are not in force everywhere", budgets.len())),
    }
}

/// An API server, an operator on it, and gateways.
pub struct Cluster {
    stack: Stack,
    budgets: Api<AIBudget>,
    runtime: tokio::runtime::Runtime,
    _plane: ControlPlane,
}

/// What one size cost.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    /// Median and 99th percentile, in milliseconds.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// The operator's CPU for one change, in milliseconds.
    pub cpu_ms: f64,
    /// The operator's resident memory, in MiB.
    pub rss_mib: u64,
}

impl Cluster {
    /// Starts all with what is in `objects`.
    pub fn start(root: &Path, mut stack: Stack, dir: &Path, objects: &str) -> anyhow::Result<Self> {
        let plane = ControlPlane::start(dir)?;
        let operator = plane.install(root)?;
        plane.kubectl(&["create", "namespace", "finance"], "")?;
        plane.kubectl(&["apply", "--filename", "-"], objects)?;
        stack.use_api_server(&operator);
        stack.start_operator()?;
        stack.start_gateways()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let access = Access { kubeconfig: Some(plane.kubeconfig().to_owned()), context: None };
        let client: Client = runtime.block_on(access.client(&Requests::default()))?;
        let budgets = Api::namespaced(client, "finance");
        Ok(Self { stack, budgets, runtime, _plane: plane })
    }

    /// What changes cost with `budgets` budgets loaded; those that are there stay.
    pub fn measure(&mut self, budgets: usize) -> anyhow::Result<Applied> {
        self.point_at("nobody")?;
        self.load(budgets - 1)?;
        self.stack.wait_status("the budgets in force", |status| {
            let loaded = status["budgets"].as_object().map_or(0, serde_json::Map::len);
            if loaded == budgets { enforced(status) } else { Err(format!("{loaded} of {budgets} budgets")) }
        })?;
        self.until(200)?;
        let before = self.cpu_us()?;
        let mut took = Vec::new();
        for change in 0..CHANGES {
            let (feature, status) = if change % 2 == 0 { ("probe", 429) } else { ("nobody", 200) };
            let began = Instant::now();
            self.point_at(feature)?;
            self.until(status)?;
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        let cpu_us = self.cpu_us()? - before;
        took.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| took[(took.len() * percent).div_ceil(100) - 1];
        let rounded = |ms: f64| (ms * 10.0).round() / 10.0;
        let operator = self.stack.operator().context("no operator")?;
        Ok(Applied {
            p50_ms: rounded(at(50)),
            p99_ms: rounded(at(99)),
            cpu_ms: rounded(cpu_us as f64 / 1000.0 / CHANGES as f64),
            rss_mib: operator.rss_kib().context("no memory")? / 1024,
        })
    }

    /// Seconds from the operator's start, with everything there, until both gateways hold all of it.
    pub fn restart(&mut self) -> anyhow::Result<f64> {
        self.stack.kill_operator();
        let began = Instant::now();
        self.stack.start_operator()?;
        self.stack.wait_status("all policy held", |status| {
            let gateways = status["gateways"].as_object().filter(|all| all.len() == 2).ok_or("not both")?;
            let holds =
                |gateway: &Value| gateway["ledger"] == true && gateway["policy"] == gateway["policyTotal"];
            if gateways.values().all(holds) { enforced(status) } else { Err(format!("{gateways:?}")) }
        })?;
        Ok((began.elapsed().as_secs_f64() * 10.0).round() / 10.0)
    }

    fn cpu_us(&mut self) -> anyhow::Result<u64> {
        self.stack.operator().and_then(|operator| operator.cpu_us()).context("no operator")
    }

    /// Creates what is missing of so many budgets that match nothing.
    fn load(&self, count: usize) -> anyhow::Result<()> {
        let budget = |number: usize| -> anyhow::Result<AIBudget> {
            let name = format!("bulk-{number}");
            let spec = json!({"match": {"features": [name]}, "limits": [{"name": "month", "amount": 100}]});
            Ok(AIBudget::new(&name, serde_json::from_value(spec)?))
        };
        let params = &PostParams::default();
        let created = futures::stream::iter(0..count).map(|number| async move {
            match self.budgets.create(params, &budget(number)?).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                other => Ok::<_, anyhow::Error>(other.map(drop)?),
            }
        });
        self.runtime.block_on(created.buffer_unordered(16).try_collect())
    }

    fn point_at(&self, feature: &str) -> anyhow::Result<()> {
        let probe = json!({
            "apiVersion": "plimsoll.dev/v1alpha1", "kind": "AIBudget", "metadata": {"name": "probe"},
            "spec": {"match": {"features": [feature]}, "limits": [{"name": "month", "amount": "0.000000001"}]},
        });
        let params = PatchParams::apply("bench").force();
        self.runtime.block_on(self.budgets.patch("probe", &params, &Patch::Apply(&probe)))?;
        Ok(())
    }

    /// Asks every gateway until it answers with `status`.
    fn until(&self, status: u16) -> anyhow::Result<()> {
        let body = br#"{"model":"assistant","max_tokens":1,"messages":[{"role":"user","content":"ready?"}]}"#;
        let headers = [("content-type", "application/json"), ("x-plimsoll-feature", "probe")];
        for gateway in self.stack.gateways() {
            let started = Instant::now();
            loop {
                let page = http::request(
                    ("127.0.0.1", gateway.port),
                    "POST",
                    "/v1/chat/completions",
                    &headers,
                    body,
                )?;
                if page.status == status {
                    break;
                }
                anyhow::ensure!(
                    started.elapsed() < Duration::from_secs(30),
                    "{} still answers {} and not {status}: {}",
                    gateway.id,
                    page.status,
                    page.body
                );
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }
}
