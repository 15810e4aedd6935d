//! A real control plane on this machine: etcd and kube-apiserver, and kubectl to talk to them.
//!
//! There are no nodes and no controllers: objects, validation, RBAC, watches and ServiceAccount tokens are
//! real, and nothing runs pods or collects garbage.

use super::certs::{Authority, Pair, write_secret};
use super::{HarnessError, Process, at, cache_dir, free_port, http};
use rcgen::KeyPair;
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a part may take to be ready: long, because a build may run beside it.
const READY: Duration = Duration::from_secs(60);

/// Where the programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// kube-apiserver.
    pub api_server: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
}

/// `KUBEBUILDER_ASSETS`, else the PATH, else where `make kubernetes` puts them; kubectl from the PATH first.
///
/// # Errors
/// Says to run `make kubernetes`.
pub fn find() -> Result<Binaries, HarnessError> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    find_in(assets.as_deref(), &path, &cache_dir().join("kubernetes-1.34.4"))
}

fn find_in(assets: Option<&Path>, path: &[PathBuf], cache: &Path) -> Result<Binaries, HarnessError> {
    let inside = |dir: &Path, name: &str| Some(dir.join(name)).filter(|program| program.is_file());
    let on_path = |name: &str| path.iter().find_map(|dir| inside(dir, name));
    let both = |api_server: Option<PathBuf>, etcd: Option<PathBuf>| api_server.zip(etcd);
    let found = match assets {
        Some(dir) => both(inside(dir, "kube-apiserver"), inside(dir, "etcd")),
        None => both(on_path("kube-apiserver"), on_path("etcd"))
            .or_else(|| both(inside(cache, "kube-apiserver"), inside(cache, "etcd"))),
    };
    let Some((api_server, etcd)) = found else {
        let why = match assets {
            Some(dir) => format!(
                "KUBEBUILDER_ASSETS is {}, which has no kube-apiserver and etcd; unset it or let it name a \
                 directory that has both",
                dir.display()
            ),
            None => format!(
                "no kube-apiserver and etcd on the PATH or in {}; run `make kubernetes` (builds them once, about \
                 five minutes), or let KUBEBUILDER_ASSETS name a directory that has both",
                cache.display()
            ),
        };
        return Err(HarnessError::Missing(why));
    };
    let kubectl = on_path("kubectl")
        .or_else(|| assets.and_then(|dir| inside(dir, "kubectl")))
        .or_else(|| inside(cache, "kubectl"))
        .ok_or_else(|| {
            HarnessError::Missing("no kubectl on the PATH; install it, or run `make kubernetes`".into())
        })?;
    Ok(Binaries { api_server, etcd, kubectl })
}

/// etcd and an API server with RBAC. Dropping it kills both.
#[derive(Debug)]
pub struct ControlPlane {
    /// Before etcd: it goes first.
    api_server: Option<Process>,
    _etcd: Process,
    binaries: Binaries,
    dir: PathBuf,
    authority: Authority,
    serving: Pair,
    port: u16,
    etcd_url: String,
    admin: PathBuf,
}

impl ControlPlane {
    /// Starts both and waits until the API server is ready. Everything is kept below `dir`, which must exist:
    /// data, keys, kubeconfigs, logs, kubectl's cache.
    ///
    /// # Errors
    /// When a program is missing, ends, or is not ready in time; with the end of its log.
    pub fn start(dir: &Path) -> Result<Self, HarnessError> {
        let binaries = find()?;
        // Kubeconfigs name files, and may be read from anywhere.
        let dir = dir.canonicalize().map_err(at(dir))?;
        let authority = Authority::new(&dir.join("pki"))?;
        let serving = authority.issue("kube-apiserver", &["localhost", "127.0.0.1"])?;
        write_token_keys(&dir)?;
        let port = free_port().map_err(at(Path::new("a free port")))?;
        let (etcd, etcd_url) = start_etcd(&binaries, &dir)?;
        let mut plane = Self {
            api_server: None,
            _etcd: etcd,
            binaries,
            admin: dir.join("admin.kubeconfig"),
            dir,
            authority,
            serving,
            port,
            etcd_url,
        };
        let admin = plane.authority.identify("admin", "system:masters")?;
        plane.write_kubeconfig(
            &plane.admin,
            &json!({"client-certificate": admin.cert, "client-key": admin.key}),
        )?;
        plane.start_api_server()?;
        Ok(plane)
    }

    /// Where the API server answers, `https://127.0.0.1:PORT`; the same after a restart.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Who uses this kubeconfig may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// A kubeconfig with a token of this ServiceAccount, which must exist: who uses it may do what RBAC allows.
    ///
    /// # Errors
    /// When the API server issues none.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<PathBuf, HarnessError> {
        let token =
            self.kubectl(&["create", "token", name, "--namespace", namespace, "--duration", "24h"], "")?;
        let path = self.dir.join(format!("{namespace}.{name}.kubeconfig"));
        self.write_kubeconfig(&path, &json!({"token": token.trim()}))?;
        Ok(path)
    }

    /// Installs what `root`, the repository, ships for clusters: our definitions, and the operator's account
    /// and rights. Returns a kubeconfig with which the operator is that account.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn install(&self, root: &Path) -> Result<PathBuf, HarnessError> {
        let file = |name: &str| root.join(name).display().to_string();
        self.kubectl(&["apply", "--server-side", "--filename", &file("crds")], "")?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "")?;
        self.kubectl(&["apply", "--filename", &file("examples/install/rbac.yaml")], "")?;
        self.service_account("plimsoll-system", "plimsoll")
    }

    /// kubectl as the admin, with nothing read from or written to the user's home.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.binaries.kubectl);
        command.env("HOME", &self.dir).env("KUBECONFIG", &self.admin);
        command.arg("--cache-dir").arg(self.dir.join("kubectl-cache"));
        command
    }

    /// What `kubectl ARGS` printed; `input` is its standard input. `--request-timeout` is 60 s.
    ///
    /// # Errors
    /// `Failed`, with what it said, unless it exits with 0.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String, HarnessError> {
        let mut command = self.kubectl_command();
        command.arg("--request-timeout=60s").args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawn = |error| HarnessError::Spawn { program: "kubectl".into(), error };
        let mut child = command.spawn().map_err(spawn)?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|threads| {
            // Beside the reading: it answers to the first objects before it has read the last.
            threads.spawn(move || {
                // It may not want to read: then its own words count.
                let _broken = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
            });
            child.wait_with_output()
        });
        let output = output.map_err(spawn)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(HarnessError::Failed {
            command: format!("kubectl {}", args.join(" ")),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// The API server's process while it runs.
    pub fn api_server(&mut self) -> Option<&mut Process> {
        self.api_server.as_mut()
    }

    /// SIGKILL to the API server, and waits until it is gone. etcd keeps the data.
    pub fn kill_api_server(&mut self) {
        drop(self.api_server.take());
    }

    /// SIGTERM to the API server: it closes its watches and ends. etcd keeps the data.
    ///
    /// # Errors
    /// `Late` when it had to be killed.
    pub fn stop_api_server(&mut self) -> Result<(), HarnessError> {
        match self.api_server.take() {
            Some(mut process) => process.terminate(READY).map(|_status| ()),
            None => Ok(()),
        }
    }

    /// Starts the API server, at the same port and with the same data and keys as before, and waits until it
    /// is ready. One that still runs is killed first.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with the end of its log.
    pub fn start_api_server(&mut self) -> Result<(), HarnessError> {
        // Reaped before the new one binds: the port is free.
        self.kill_api_server();
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(&self.binaries.api_server);
        command
            .arg(format!("--etcd-servers={}", self.etcd_url))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--cert-dir={}", file("pki")))
            .arg(format!("--tls-cert-file={}", self.serving.cert.display()))
            .arg(format!("--tls-private-key-file={}", self.serving.key.display()))
            .arg(format!("--client-ca-file={}", self.authority.ca.display()))
            .arg("--authorization-mode=RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", file("pki/tokens.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("pki/tokens.key")))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            // A loopback address can't be an endpoint; nothing here looks for Service kubernetes.
            .arg("--advertise-address=127.0.0.1")
            .arg("--endpoint-reconciler-type=none")
            // So that SIGTERM ends watches with an answer, as in an upgrade, and does not wait a minute for them.
            .arg("--shutdown-watch-termination-grace-period=5s");
        let mut process = Process::spawn("kube-apiserver", command, &self.dir.join("kube-apiserver.log"))?;
        let port = self.port;
        process.wait_ready("the API server's readiness", READY, || {
            // Cheaper than a kubectl that finds nobody.
            TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
            let said = self.kubectl(&["get", "--raw", "/readyz"], "").map_err(|error| error.to_string())?;
            if said == "ok" { Ok(()) } else { Err(format!("/readyz says {said}")) }
        })?;
        self.api_server = Some(process);
        Ok(())
    }

    /// etcd forgets its history: no watch can be resumed from before now.
    ///
    /// # Errors
    /// When etcd does not answer, or refuses.
    pub fn compact(&self) -> Result<(), HarnessError> {
        let address = self.etcd_url.trim_start_matches("http://");
        let ask = |path: &str, body: serde_json::Value| {
            let headers = [("content-type", "application/json")];
            let page = http::request(address, "POST", path, &headers, body.to_string().as_bytes())
                .map_err(at(Path::new(&self.etcd_url)))?;
            match serde_json::from_str::<serde_json::Value>(&page.body) {
                Ok(answer) if page.status == 200 => Ok(answer),
                _ => Err(HarnessError::Failed { command: format!("etcd {path}"), said: page.body }),
            }
        };
        let now = ask("/v3/kv/range", json!({"key": "Lw=="}))?;
        ask("/v3/kv/compaction", json!({"revision": now["header"]["revision"], "physical": true})).map(drop)
    }

    /// JSON, which is YAML.
    fn write_kubeconfig(&self, path: &Path, user: &serde_json::Value) -> Result<(), HarnessError> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "plimsoll",
                "cluster": {"server": self.url(), "certificate-authority": self.authority.ca},
            }],
            "users": [{"name": "plimsoll", "user": user}],
            "contexts": [{"name": "plimsoll", "context": {"cluster": "plimsoll", "user": "plimsoll"}}],
            "current-context": "plimsoll",
        });
        write_secret(path, &format!("{config:#}\n"))
    }
}

/// The keys of ServiceAccount tokens.
fn write_token_keys(dir: &Path) -> Result<(), HarnessError> {
    let key = KeyPair::generate()?;
    write_secret(&dir.join("pki/tokens.key"), &key.serialize_pem())?;
    let public = dir.join("pki/tokens.pub");
    std::fs::write(&public, key.public_key_pem()).map_err(at(&public))
}

/// etcd, ready, and where it answers.
fn start_etcd(binaries: &Binaries, dir: &Path) -> Result<(Process, String), HarnessError> {
    let port = || free_port().map_err(at(Path::new("a free port")));
    let (client, peer) = (port()?, port()?);
    let url = format!("http://127.0.0.1:{client}");
    let peer_url = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new(&binaries.etcd);
    command
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"))
        .arg(format!("--listen-peer-urls={peer_url}"))
        .arg(format!("--initial-advertise-peer-urls={peer_url}"))
        .arg(format!("--initial-cluster=default={peer_url}"))
        // Only what a machine that loses its power would need.
        .arg("--unsafe-no-fsync");
    let mut process = Process::spawn("etcd", command, &dir.join("etcd.log"))?;
    process.wait_ready("etcd's readiness", READY, || {
        let page = http::get(("127.0.0.1", client), "/readyz").map_err(|error| error.to_string())?;
        if page.status == 200 { Ok(()) } else { Err(format!("/readyz says {}", page.body.trim())) }
    })?;
    Ok((process, url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(dir: &Path, names: &[&str]) {
        std::fs::create_dir_all(dir).unwrap();
        for name in names {
            std::fs::write(dir.join(name), "").unwrap();
        }
    }

    #[test]
    fn assets_come_before_the_path_and_the_path_before_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let [assets, path, cache] = ["assets", "path", "cache"].map(|name| dir.path().join(name));
        let of = |binaries: Binaries| {
            [binaries.api_server, binaries.etcd, binaries.kubectl]
                .map(|program| program.parent().unwrap().to_owned())
        };
        let one = std::slice::from_ref(&path);
        let error = find_in(None, one, &cache).unwrap_err().to_string();
        assert!(error.contains("make kubernetes"), "{error}");
        programs(&cache, &["kube-apiserver", "etcd", "kubectl"]);
        assert_eq!(of(find_in(None, one, &cache).unwrap()), [&cache, &cache, &cache].map(Clone::clone));
        // An API server alone is none: both come from one place.
        programs(&path, &["kube-apiserver", "kubectl"]);
        assert_eq!(of(find_in(None, one, &cache).unwrap()), [&cache, &cache, &path].map(Clone::clone));
        programs(&path, &["etcd"]);
        assert_eq!(of(find_in(None, one, &cache).unwrap()), [&path, &path, &path].map(Clone::clone));
        let error = find_in(Some(&assets), one, &cache).unwrap_err().to_string();
        assert!(error.contains("KUBEBUILDER_ASSETS"), "{error}");
        programs(&assets, &["kube-apiserver", "etcd"]);
        assert_eq!(
            of(find_in(Some(&assets), one, &cache).unwrap()),
            [&assets, &assets, &path].map(Clone::clone)
        );
    }

    #[test]
    fn a_killed_api_server_comes_back_with_its_data_and_knows_its_accounts() {
        let dir = tempfile::tempdir().unwrap();
        let mut plane = ControlPlane::start(dir.path()).unwrap();
        let namespaces = plane.kubectl(&["get", "namespaces", "--output", "name"], "").unwrap();
        assert!(namespaces.contains("namespace/kube-system"), "{namespaces}");
        plane.kubectl(&["apply", "-f", "-"], MANIFESTS).unwrap();
        let account = plane.service_account("finance", "reader").unwrap();
        let can = |plane: &ControlPlane, resource: &str| {
            let mut command = plane.kubectl_command();
            command.env("KUBECONFIG", &account).args(["get", resource, "--namespace", "finance"]);
            command.output().unwrap()
        };
        assert!(can(&plane, "configmaps").status.success());
        // More than pipes hold, both ways.
        let config_map = |n: usize| {
            let name = format!("{n:03}-{}", "n".repeat(200));
            format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: finance}}\n")
        };
        let many: String = (0..400).map(config_map).collect();
        let said = plane.kubectl(&["create", "--dry-run=client", "-f", "-"], &many).unwrap();
        assert_eq!((said.lines().count(), said.len() > 65_536), (400, true));

        let url = plane.url();
        plane.kill_api_server();
        let error = plane.kubectl(&["get", "namespaces"], "").unwrap_err().to_string();
        assert!(error.contains("kubectl get namespaces failed"), "{error}");
        plane.start_api_server().unwrap();
        assert_eq!(plane.url(), url);
        let kept = ["get", "configmap", "kept", "--namespace", "finance", "--output", "jsonpath={.data.is}"];
        assert_eq!(plane.kubectl(&kept, "").unwrap(), "there");
        assert!(can(&plane, "configmaps").status.success(), "the token is good for the new one too");
        let denied = can(&plane, "secrets");
        let said = String::from_utf8_lossy(&denied.stderr).into_owned();
        assert!(said.contains("system:serviceaccount:finance:reader"), "{said}");
        assert!(!dir.path().join(".kube").exists());

        plane.stop_api_server().unwrap();
        plane.start_api_server().unwrap();
        assert_eq!(plane.kubectl(&kept, "").unwrap(), "there");
    }

    const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: finance}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kept, namespace: finance}
data: {is: there}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: finance}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: finance}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: finance}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: finance}]
";
}
