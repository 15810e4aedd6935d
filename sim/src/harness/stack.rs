//! The whole of Plimsoll on one machine: an operator on a directory of manifests or an API server, and
//! gateways.
//!
//! Ports are picked once, so that what is killed can be started again at the same place, with the same
//! ledger and the same logs. Mutual TLS always, with certificates of an authority made for the purpose.

use super::certs::{Authority, Pair};
use super::envoy::{self, Envoy};
use super::{Built, HarnessError, Process, at, free_port, http, wait_until};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What the stack is made of.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// Where everything is kept; it must exist.
    pub dir: &'a Path,
    /// The operator's binary and the filter.
    pub built: &'a Built,
    /// The gateways' bootstrap, with placeholders.
    pub template: &'a str,
    /// How many gateways.
    pub gateways: usize,
    /// Worker threads of each gateway.
    pub concurrency: u32,
    /// More lines of the operator's settings file, YAML, say `mode: Observe`.
    pub config: &'a str,
}

/// An operator and its gateways. Dropping it kills them all.
#[derive(Debug)]
pub struct Stack {
    dir: PathBuf,
    built: Built,
    template: String,
    concurrency: u32,
    authority: Authority,
    grpc: u16,
    http: u16,
    /// The operator's; absent: it reads [`Stack::manifests`].
    kubeconfig: Option<PathBuf>,
    operator: Option<Process>,
    gateways: Vec<Gateway>,
}

/// One gateway: its place, and its Envoy while it runs.
#[derive(Debug)]
pub struct Gateway {
    /// Its id.
    pub id: String,
    /// Where clients call.
    pub port: u16,
    /// Envoy's admin page.
    pub admin: u16,
    /// The filter's metrics.
    pub metrics: u16,
    /// Its log directory.
    pub log_dir: PathBuf,
    pair: Pair,
    envoy: Option<Envoy>,
}

impl Gateway {
    /// Where clients call, `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The running Envoy.
    pub fn envoy(&mut self) -> Option<&mut Envoy> {
        self.envoy.as_mut()
    }

    /// SIGKILL. Its log stays.
    pub fn kill(&mut self) {
        drop(self.envoy.take());
    }
}

/// How long anything may take to be ready: long, because a build may run beside it.
const READY: Duration = Duration::from_secs(60);

impl Stack {
    /// Places for an operator and gateways, and their settings. Nothing runs yet.
    ///
    /// # Errors
    /// When files can't be written or ports can't be had.
    pub fn new(settings: &Settings<'_>) -> Result<Self, HarnessError> {
        let dir = settings.dir.to_owned();
        let port = || free_port().map_err(at(Path::new("a free port")));
        let authority = Authority::new(&dir.join("tls"))?;
        let operator = authority.issue("operator", &["localhost", "127.0.0.1"])?;
        let (grpc, http) = (port()?, port()?);
        let manifests = dir.join("manifests");
        std::fs::create_dir_all(&manifests).map_err(at(&manifests))?;
        let config = format!(
            "ledger: {{sqlite: {{path: {}}}}}\n\
             listen: {{grpc: \"127.0.0.1:{grpc}\", http: \"127.0.0.1:{http}\"}}\n\
             tls: {{ca: {}, cert: {}, key: {}}}\n{}\n",
            dir.join("ledger.db").display(),
            authority.ca.display(),
            operator.cert.display(),
            operator.key.display(),
            settings.config,
        );
        let path = dir.join("plimsoll.yaml");
        std::fs::write(&path, config).map_err(at(&path))?;
        let mut stack = Self {
            built: settings.built.clone(),
            template: settings.template.to_owned(),
            concurrency: settings.concurrency,
            authority,
            grpc,
            http,
            kubeconfig: None,
            operator: None,
            gateways: Vec::new(),
            dir,
        };
        for number in 1..=settings.gateways {
            let id = format!("gateway-{number}");
            let log_dir = stack.dir.join(&id);
            std::fs::create_dir_all(&log_dir).map_err(at(&log_dir))?;
            let pair = stack.authority.issue(&id, &["localhost", "127.0.0.1"])?;
            let (port, admin, metrics) = (port()?, port()?, port()?);
            stack.gateways.push(Gateway { id, port, admin, metrics, log_dir, pair, envoy: None });
        }
        Ok(stack)
    }

    /// The directory that the operator watches.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// The ledger's file.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.dir.join("ledger.db")
    }

    /// Writes a manifest, at once: the operator never sees half of it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, name: &str, text: &str) -> Result<(), HarnessError> {
        let path = self.manifests().join(name);
        // A leading dot: not a manifest yet.
        let new = self.manifests().join(format!(".{name}.new"));
        std::fs::write(&new, text).map_err(at(&new))?;
        std::fs::rename(&new, &path).map_err(at(&path))
    }

    /// The operator's pages: `127.0.0.1:PORT`.
    #[must_use]
    pub fn operator_address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    /// A page of the operator.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn page(&self, path: &str) -> std::io::Result<http::Page> {
        http::get(self.operator_address(), path)
    }

    /// The operator's process while it runs.
    pub fn operator(&mut self) -> Option<&mut Process> {
        self.operator.as_mut()
    }

    /// SIGKILL to the operator.
    pub fn kill_operator(&mut self) {
        drop(self.operator.take());
    }

    /// From its next start on the operator reads objects from this API server, and not from manifests.
    pub fn use_api_server(&mut self, kubeconfig: &Path) {
        self.kubeconfig = Some(kubeconfig.to_owned());
    }

    /// Starts the operator and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with the end of its log.
    pub fn start_operator(&mut self) -> Result<(), HarnessError> {
        self.spawn_operator()?;
        let address = self.operator_address();
        let Some(process) = &mut self.operator else { return Ok(()) };
        process.wait_ready("the operator's readiness", READY, || {
            let page = http::get(&address, "/readyz").map_err(|error| error.to_string())?;
            if page.status == 200 { Ok(()) } else { Err(format!("/readyz says {}", page.body.trim())) }
        })
    }

    /// Starts the operator; it may not be ready when this returns.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_operator(&mut self) -> Result<(), HarnessError> {
        let mut command = Command::new(&self.built.plimsoll);
        command.arg("operator").arg("--config").arg(self.dir.join("plimsoll.yaml"));
        match &self.kubeconfig {
            Some(kubeconfig) => command.arg("--kubeconfig").arg(kubeconfig),
            None => command.arg("--manifests").arg(self.manifests()),
        };
        self.operator = Some(Process::spawn("operator", command, &self.dir.join("operator.log"))?);
        Ok(())
    }

    /// The gateways.
    #[must_use]
    pub fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// One gateway.
    pub fn gateway(&mut self, index: usize) -> Option<&mut Gateway> {
        self.gateways.get_mut(index)
    }

    /// Where clients call, in order.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(Gateway::url).collect()
    }

    /// Starts one gateway's Envoy; it may not be ready when this returns.
    ///
    /// # Errors
    /// When there is no such gateway, no Envoy, or the template names an unknown placeholder.
    pub fn spawn_gateway(&mut self, index: usize) -> Result<(), HarnessError> {
        let bootstrap = self.bootstrap(index)?;
        let gateway = self.gateways.get_mut(index).ok_or_else(|| no_gateway(index))?;
        gateway.envoy = Some(Envoy::spawn(&envoy::Start {
            name: &gateway.id,
            bootstrap: &bootstrap,
            dir: &self.dir,
            admin: gateway.admin,
            concurrency: self.concurrency,
        })?);
        Ok(())
    }

    /// Waits until one gateway's Envoy and filter are ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with the end of its log.
    pub fn wait_gateway(&mut self, index: usize) -> Result<(), HarnessError> {
        let gateway = self.gateways.get_mut(index).ok_or_else(|| no_gateway(index))?;
        let metrics = gateway.metrics;
        let envoy = gateway.envoy().ok_or_else(|| no_gateway(index))?;
        envoy.wait_ready(READY)?;
        envoy.process.wait_ready("the filter's readiness", READY, || {
            let page = http::get(("127.0.0.1", metrics), "/ready").map_err(|error| error.to_string())?;
            if page.status == 200 { Ok(()) } else { Err(format!("/ready says {}", page.body.trim())) }
        })
    }

    /// Starts all gateways and waits until all are ready.
    ///
    /// # Errors
    /// As the two it is made of.
    pub fn start_gateways(&mut self) -> Result<(), HarnessError> {
        for index in 0..self.gateways.len() {
            self.spawn_gateway(index)?;
        }
        (0..self.gateways.len()).try_for_each(|index| self.wait_gateway(index))
    }

    /// Waits until `done` says so of the operator's `/status`.
    ///
    /// # Errors
    /// `Late`, with what `done` said last.
    pub fn wait_status(
        &self,
        what: &str,
        mut done: impl FnMut(&serde_json::Value) -> Result<(), String>,
    ) -> Result<(), HarnessError> {
        wait_until(what, READY, || {
            let page = self.page("/status").map_err(|error| error.to_string())?;
            let status =
                serde_json::from_str(&page.body).map_err(|error| format!("/status is no JSON: {error}"))?;
            done(&status)
        })
    }

    /// SIGTERM to all. Gateways first: they settle and close their epochs while the operator still answers.
    pub fn stop(&mut self) {
        for gateway in &mut self.gateways {
            if let Some(mut envoy) = gateway.envoy.take() {
                // Too slow is no reason to fail here: it was killed.
                let _status = envoy.process.terminate(Duration::from_secs(5));
            }
        }
        if let Some(mut operator) = self.operator.take() {
            let _status = operator.terminate(Duration::from_secs(5));
        }
    }

    /// A gateway's bootstrap, filled in.
    fn bootstrap(&self, index: usize) -> Result<String, HarnessError> {
        let gateway = self.gateways.get(index).ok_or_else(|| no_gateway(index))?;
        let path = |path: &Path| path.display().to_string();
        let values = BTreeMap::from([
            ("GATEWAY_ID", gateway.id.clone()),
            ("LISTEN_PORT", gateway.port.to_string()),
            ("ADMIN_PORT", gateway.admin.to_string()),
            ("METRICS_PORT", gateway.metrics.to_string()),
            ("OPERATOR_HOST", "127.0.0.1".to_owned()),
            ("OPERATOR_PORT", self.grpc.to_string()),
            ("FILTER", path(&self.built.filter)),
            ("LOG_DIR", path(&gateway.log_dir)),
            ("CA", path(&self.authority.ca)),
            ("CERT", path(&gateway.pair.cert)),
            ("KEY", path(&gateway.pair.key)),
        ]);
        envoy::fill(&self.template, &values)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.stop();
    }
}

fn no_gateway(index: usize) -> HarnessError {
    HarnessError::Missing(format!("gateway {index} does not run"))
}
