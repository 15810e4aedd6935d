//! Envoy's configuration by xDS against a real Envoy: taken, keys injected and rotated live, rejected
//! in Envoy's own words, kept over a reconnect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use plimsoll::gateway::cluster::cluster;
use plimsoll::gateway::secret::secret;
use plimsoll::gateway::{Discovery, Held, ResourceKey, Snapshot};
use plimsoll_core::ids::ObjectName;
use plimsoll_plan::{EnvoyCluster, SecretRef};
use plimsoll_sim::harness;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that answers each request with the credential it came with.
fn echo_credential() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let head = read_head(&stream);
                let credential = header(&head, "authorization").unwrap_or_else(|| "none".to_owned());
                let length = credential.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{credential}"
                );
                let _ = (&stream).write_all(answer.as_bytes());
            });
        }
    });
    port
}

fn read_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// An Envoy that routes by the header `x-cluster` and takes its clusters from `discovery`.
struct Envoy {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Envoy {
    fn start(node: &str, discovery: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, xds) = (harness::free_port().unwrap(), discovery.port());
        let bootstrap = format!(
            r#"
node: {{id: {node}, cluster: test}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {xds}}}}}}}}}]}}]}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
          route_config: {{virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster_header: x-cluster}}}}]}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
        );
        let config = directory.path().join("envoy.yaml");
        std::fs::write(&config, bootstrap).unwrap();
        let log = std::fs::File::create(directory.path().join("envoy.log")).unwrap();
        let process = Command::new(harness::envoy::find().unwrap())
            .args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "warn", "-c"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy can't be started");
        Self { process, port, _directory: directory }
    }

    /// Status and body of a call through `cluster` with the caller's own `credential`.
    fn call(&self, cluster: &str, credential: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nhost: test\r\nx-cluster: {cluster}\r\nauthorization: {credential}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let head = read_head(&stream);
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut body = String::new();
        let _ = stream.read_to_string(&mut body);
        Some((status, body))
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Serves until the sender is dropped; then it says goodbye to its connections, as the operator does.
async fn serve(discovery: &Arc<Discovery>, address: SocketAddr) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = discovery.service(plimsoll::ledger::Transport::PlainText);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }).await.unwrap();
    });
    (address, stop)
}

fn upstream(name: &str, port: u16, key: Option<&str>) -> EnvoyCluster {
    let inject_key =
        key.map(|secret| SecretRef { secret: ObjectName::new("p", secret), key: "key".to_owned() });
    EnvoyCluster { name: name.to_owned(), host: "127.0.0.1".to_owned(), port, tls: false, inject_key }
}

fn snapshot(upstreams: &[EnvoyCluster], keys: &[(&str, &str)], ca_file: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for upstream in upstreams {
        snapshot.insert(ResourceKey::cluster(&upstream.name), &cluster(upstream, ca_file), b"");
    }
    for (name, key) in keys {
        snapshot.insert(ResourceKey::secret(name), &secret(name, key.as_bytes()), b"salt");
    }
    snapshot
}

fn held(discovery: &Discovery, node: &str) -> Option<Held> {
    discovery.gateways().all().remove(node).map(Arc::unwrap_or_clone)
}

/// Waits until `node` holds all of `snapshot`.
async fn acknowledged(discovery: &Discovery, node: &str, snapshot: &Snapshot, keys: &[ResourceKey]) {
    until(&format!("{node} acknowledges {keys:?}"), || {
        let held = held(discovery, node)?;
        keys.iter().all(|key| held.acknowledged.get(key) == snapshot.version(key)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_injected_in_place_of_the_callers_and_rotated_without_a_restart() {
    let provider = echo_credential();
    let discovery = Arc::new(Discovery::default());
    let upstreams = [upstream("with-key", provider, Some("openai")), upstream("without", provider, None)];
    let keys = [
        ResourceKey::cluster("with-key"),
        ResourceKey::cluster("without"),
        ResourceKey::secret("p/openai/key"),
    ];
    let first = snapshot(&upstreams, &[("p/openai/key", "sk-one\n")], "");
    discovery.publish(first.clone());
    let (address, _stop) = serve(&discovery, "127.0.0.1:0".parse().unwrap()).await;
    let envoy = Envoy::start("gw-keys", address);
    acknowledged(&discovery, "gw-keys", &first, &keys).await;

    let injected =
        until("the first key", || envoy.call("with-key", "Bearer mine").filter(|(status, _)| *status == 200))
            .await;
    assert_eq!(injected.1, "Bearer sk-one");
    assert_eq!(envoy.call("without", "Bearer mine"), Some((200, "Bearer mine".to_owned())));

    let second = snapshot(&upstreams, &[("p/openai/key", "sk-two")], "");
    discovery.publish(second.clone());
    acknowledged(&discovery, "gw-keys", &second, &keys).await;
    until("the second key", || {
        envoy.call("with-key", "Bearer mine").filter(|answer| *answer == (200, "Bearer sk-two".to_owned()))
    })
    .await;

    // A key that is gone: Envoy keeps the one it has, a deletion of a Secret cuts nobody off at once.
    // A cluster that is gone: nobody gets there any more.
    let third = snapshot(&upstreams[1..], &[], "");
    discovery.publish(third);
    until("the cluster's removal", || {
        envoy.call("with-key", "Bearer mine").filter(|(status, _)| *status == 503)
    })
    .await;
    until("what the gateway holds", || {
        (!held(&discovery, "gw-keys")?.acknowledged.contains_key(&keys[0])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_envoy_rejects_is_known_in_its_own_words_and_harms_nothing_else() {
    let provider = echo_credential();
    let discovery = Arc::new(Discovery::default());
    let mut bad = upstream("bad", provider, None);
    bad.tls = true;
    let good = upstream("good", provider, None);
    let before = snapshot(&[good.clone(), bad.clone()], &[], "/no/such/ca.crt");
    discovery.publish(before.clone());
    let (address, _stop) = serve(&discovery, "127.0.0.1:0".parse().unwrap()).await;
    let envoy = Envoy::start("gw-reject", address);
    let (bad_key, good_key) = (ResourceKey::cluster("bad"), ResourceKey::cluster("good"));
    let rejected = until("the rejection", || held(&discovery, "gw-reject")?.rejected.remove(&bad_key)).await;
    assert!(rejected.words.contains("/no/such/ca.crt"), "{}", rejected.words);
    assert_eq!(Some(&rejected.version), before.version(&bad_key));
    acknowledged(&discovery, "gw-reject", &before, &[good_key]).await;
    until("the good cluster", || envoy.call("good", "Bearer mine").filter(|(status, _)| *status == 200))
        .await;

    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), CA).unwrap();
    let after = snapshot(&[good, bad], &[], ca_file.path().to_str().unwrap());
    discovery.publish(after.clone());
    acknowledged(&discovery, "gw-reject", &after, &[bad_key]).await;
    assert!(held(&discovery, "gw-reject").unwrap().rejected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_comes_back_is_told_what_the_gateway_holds_and_traffic_never_stops() {
    let provider = echo_credential();
    let upstreams = [upstream("a", provider, Some("a"))];
    let now = snapshot(&upstreams, &[("p/a/key", "sk-a")], "");
    let keys = [ResourceKey::cluster("a"), ResourceKey::secret("p/a/key")];
    let first = Arc::new(Discovery::default());
    first.publish(now.clone());
    // A port that is served twice must be nobody's meanwhile.
    let address = SocketAddr::from(([127, 0, 0, 1], harness::free_port().unwrap()));
    let (_, stop) = serve(&first, address).await;
    let envoy = Envoy::start("gw-back", address);
    acknowledged(&first, "gw-back", &now, &keys).await;
    until("traffic", || envoy.call("a", "x").filter(|(status, _)| *status == 200)).await;

    first.stop();
    drop(stop);
    until("the end of the stream", || first.gateways().all().is_empty().then_some(())).await;
    assert_eq!(envoy.call("a", "x"), Some((200, "Bearer sk-a".to_owned())));

    let second = Arc::new(Discovery::default());
    second.publish(now.clone());
    let (_, _stop) = serve(&second, address).await;
    acknowledged(&second, "gw-back", &now, &keys).await;
    assert_eq!(envoy.call("a", "x"), Some((200, "Bearer sk-a".to_owned())));
}

/// A certificate that signs nothing; Envoy must be able to read the file.
const CA: &str = include_str!("operator_xds_ca.pem");
