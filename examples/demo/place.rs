//! Where the demo's objects are, and where statuses are told: manifests and a page, or an API server.

use crate::table::{self, Row};
use anyhow::Context;
use futures::StreamExt;
use kube::Api;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use plimsoll::kubernetes::{Access, Requests};
use plimsoll::ledger::Clock;
use plimsoll_api::AIBudget;
use plimsoll_core::ids::UnixMs;
use plimsoll_sim::harness::http;
use plimsoll_sim::harness::kubernetes::ControlPlane;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where they are.
#[derive(Clone)]
pub enum Place {
    /// The operator watches a directory, and serves statuses at this address.
    Files(String),
    /// kubectl writes to an API server, the operator watches it, and statuses are in the objects.
    Cluster(Arc<Cluster>),
}

impl Place {
    /// The table's rows; none while they can't be had.
    pub fn rows(&self) -> Option<Vec<Row>> {
        match self {
            Self::Files(operator) => {
                let page = http::get(operator, "/status").ok()?;
                table::of_page(&serde_json::from_str(&page.body).ok()?)
            }
            Self::Cluster(cluster) => Some(cluster.rows()),
        }
    }
}

/// An API server, and what its AIBudgets say.
pub struct Cluster {
    plane: Mutex<ControlPlane>,
    budgets: Store<AIBudget>,
    declared: Arc<Mutex<Vec<(UnixMs, AIBudget)>>>,
}

/// The namespace and the name of the operator's ServiceAccount, as examples/install/rbac.yaml has them.
const OPERATOR: (&str, &str) = ("plimsoll-system", "plimsoll");

impl Cluster {
    /// Starts an API server in `dir` and gives it what a user would: CRDs, RBAC, and the manifests in
    /// `manifests`. Each thing that was done is told to `step`.
    pub async fn start(
        dir: &Path,
        plimsoll: &Path,
        root: &Path,
        manifests: &Path,
        step: &dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let plane = ControlPlane::start(dir)?;
        let version = plane.kubectl(&["get", "--raw", "/version"], "")?;
        let version: serde_json::Value =
            serde_json::from_str(&version).context("the API server's version")?;
        step(&format!(
            "etcd and kube-apiserver {} at {}",
            version["gitVersion"].as_str().unwrap_or("(unknown)"),
            plane.url()
        ));
        let crds = Command::new(plimsoll).arg("crds").output().context("plimsoll crds")?;
        anyhow::ensure!(crds.status.success(), "plimsoll crds: {}", String::from_utf8_lossy(&crds.stderr));
        plane.kubectl(&["apply", "--server-side", "-f", "-"], &String::from_utf8_lossy(&crds.stdout))?;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all"], "")?;
        step("plimsoll crds | kubectl apply --server-side -f -");
        let apply = |path: &Path, what: &str| {
            plane.kubectl(&["apply", "-f", &path.display().to_string()], "")?;
            step(&format!("kubectl apply -f {}{what}", crate::shown(path)));
            anyhow::Ok(())
        };
        apply(&root.join("examples/install/rbac.yaml"), "")?;
        apply(manifests, "   (examples/, with the address of this provider)")?;
        let access = Access { kubeconfig: Some(plane.kubeconfig().to_owned()), context: None };
        let budgets = Api::<AIBudget>::all(access.client(&Requests::default()).await?);
        let (store, writer) = reflector::store();
        let declared = Arc::default();
        let watch = watcher(budgets, watcher::Config::default()).default_backoff().reflect(writer);
        let seen = Arc::clone(&declared);
        tokio::spawn(watch.for_each(move |event| {
            if let Ok(watcher::Event::Apply(budget) | watcher::Event::InitApply(budget)) = event {
                note(&seen, budget);
            }
            std::future::ready(())
        }));
        Ok(Self { plane: Mutex::new(plane), budgets: store, declared })
    }

    /// The API server; one at a time uses it.
    pub fn plane(&self) -> MutexGuard<'_, ControlPlane> {
        self.plane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kubeconfig with which the operator is its own ServiceAccount.
    pub fn operator(&self) -> anyhow::Result<PathBuf> {
        Ok(self.plane().service_account(OPERATOR.0, OPERATOR.1)?)
    }

    /// A budget as the API server has it, `namespace` and `name`.
    pub fn budget(&self, namespace: &str, name: &str) -> Option<Arc<AIBudget>> {
        self.budgets.get(&ObjectRef::new(name).within(namespace))
    }

    /// Every budget that was declared so far, whoever did it, and when the API server told.
    pub fn declared(&self) -> Vec<(UnixMs, AIBudget)> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn rows(&self) -> Vec<Row> {
        let mut budgets = self.budgets.state();
        budgets
            .sort_by_cached_key(|budget| budget.metadata.namespace.clone().zip(budget.metadata.name.clone()));
        budgets.iter().flat_map(|budget| table::of_budget(budget)).collect()
    }
}

/// Adds `budget` if it is another one than was declared before; most events are about its status.
fn note(declared: &Mutex<Vec<(UnixMs, AIBudget)>>, budget: AIBudget) {
    let mut declared = declared.lock().unwrap_or_else(PoisonError::into_inner);
    let name = |budget: &AIBudget| (budget.metadata.namespace.clone(), budget.metadata.name.clone());
    let before = declared.iter().rev().find(|(_, before)| name(before) == name(&budget));
    if before.is_none_or(|(_, before)| before.spec != budget.spec) {
        declared.push((Clock::new(UnixMs(0)).now(), budget));
    }
}
