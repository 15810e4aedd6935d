//! A real Envoy with the filter, the real ledger in memory behind real gRPC, and a provider that does as
//! a request's header says.

pub mod ledger;
pub mod provider;

use ledger::Ledger;
use plimsoll_core::account::{Amount, Unit};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::*;
use plimsoll_core::price::Rates;
use plimsoll_sim::harness::envoy::{Envoy, Start};
use plimsoll_sim::harness::{free_port, http, wait_until};
use provider::Provider;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

pub const SOON: Duration = Duration::from_secs(20);

/// Rates that make every byte count: 1 and 4 nano-dollars a token.
pub const RATES: Rates = Rates {
    input: NanoUsd(1_000_000),
    cached_input: NanoUsd(1_000_000),
    cache_write: NanoUsd(1_000_000),
    output: NanoUsd(4_000_000),
};

pub struct World {
    pub dir: tempfile::TempDir,
    pub provider: Provider,
    pub ledger: Ledger,
    pub envoy: Option<Envoy>,
    pub port: u16,
    pub metrics: u16,
    admin: u16,
    listeners: usize,
}

pub fn budget(amount: i64) -> (PolicyKey, Budget) {
    let limit = Limit {
        name: "total".into(),
        unit: Unit::Usd,
        window: "Total@UTC".into(),
        amount: Amount(amount),
        block_at: Amount(amount),
    };
    let budget = Budget {
        namespaces: Namespaces::All,
        features: None,
        users: None,
        routes: None,
        models: None,
        limits: vec![limit],
        enforcement: Enforcement::Enforce,
        unpriced: Verdict::Deny,
        contact: Some("#ai-platform".into()),
    };
    (PolicyKey::Budget(ObjectName::new("finance", "all")), budget)
}

/// One installation, one backend with two models, one route, one window, and these budgets.
pub fn policy(mode: Enforcement, budgets: &[(PolicyKey, Budget)]) -> Vec<PolicyObject> {
    let backend = ObjectName::new("plimsoll-system", "openai");
    let model = |name: &str| Model {
        name: name.into(),
        context_tokens: Some(1_000_000),
        max_output_tokens: Some(1_000),
        rates: Some(RATES),
    };
    let mut objects = vec![
        PolicyObject::encode(
            PolicyKey::Installation,
            &Installation {
                mode,
                root_namespace: "plimsoll-system".into(),
                anonymous_namespace: "finance".into(),
                anonymous: Verdict::Allow,
                unbudgeted: Verdict::Allow,
                default_backend: Some(backend.clone()),
                max_output_tokens: 100,
                ride_through_ms: 600_000,
            },
        ),
        PolicyObject::encode(
            PolicyKey::Window("Total@UTC".into()),
            &WindowBounds { bounds: vec![Bounds { start: UnixMs(0), end: UnixMs::NEVER }] },
        ),
        PolicyObject::encode(
            PolicyKey::Backend(backend.clone()),
            &Backend {
                dialect: Dialect::OpenAI,
                cluster: "provider".into(),
                passthrough_cluster: "provider".into(),
                authority: "api.provider.test".into(),
                path_prefix: "/openai/v1".into(),
                bills_after_disconnect: true,
                allowed: Namespaces::All,
                models: vec![model("small"), model("large")],
            },
        ),
        PolicyObject::encode(
            PolicyKey::Route(ObjectName::new("finance", "assistant")),
            &Route {
                model: "assistant".into(),
                tier: "default".into(),
                backends: vec![WeightedBackend { backend, model: "small".into(), weight: 1 }],
                max_output_tokens: None,
                timeout_ms: Some(30_000),
            },
        ),
    ];
    objects.extend(budgets.iter().map(|(key, body)| PolicyObject::encode(key.clone(), body)));
    objects
}

/// The filter, as cargo built it together with this test.
fn filter() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libplimsoll_filter.so");
    assert!(path.is_file(), "{} is missing; run this by cargo test -p plimsoll-filter", path.display());
    path
}

impl World {
    /// All of it, with Envoy ready for calls.
    pub fn new(policy: Vec<PolicyObject>) -> Self {
        let mut world = Self::unstarted(policy, 1);
        world.start();
        world.wait_ready();
        world
    }

    /// The world without Envoy, whose bootstrap has so many listeners.
    pub fn unstarted(policy: Vec<PolicyObject>, listeners: usize) -> Self {
        let port = || free_port().unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            provider: Provider::start(),
            ledger: Ledger::start(policy),
            envoy: None,
            port: port(),
            metrics: port(),
            admin: port(),
            listeners,
        }
    }

    pub fn log_dir(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn bootstrap(&self) -> String {
        let config = serde_json::json!({
            "gatewayId": "gateway-1",
            "operators": [format!("127.0.0.1:{}", self.ledger.port)],
            "plainText": true,
            "logDirectory": self.log_dir(),
            "metricsAddress": format!("127.0.0.1:{}", self.metrics),
        });
        let listener = |i: usize| {
            let port = if i == 0 { self.port } else { free_port().unwrap() };
            serde_json::json!({
                "name": format!("l{i}"),
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{
                    "name": "hcm",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "x",
                        "use_remote_address": true,
                        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
                        "skip_xff_append": true,
                        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
                            "match": {"prefix": "/"},
                            "route": {"cluster_header": "x-plimsoll-cluster", "timeout": "0s"},
                            "request_headers_to_remove": ["x-plimsoll-cluster"],
                        }]}]},
                        "http_filters": [
                            {"name": "plimsoll", "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
                                "dynamic_module_config": {"module": {"local": {"filename": filter()}}, "do_not_close": true},
                                "filter_name": "plimsoll",
                                "filter_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": config},
                            }},
                            {"name": "router", "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                                "suppress_envoy_headers": true,
                            }},
                        ],
                    },
                }]}],
            })
        };
        let bootstrap = serde_json::json!({
            "node": {"id": "gateway-1", "cluster": "test"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self.admin}}},
            "static_resources": {
                "listeners": (0..self.listeners).map(listener).collect::<Vec<_>>(),
                "clusters": [{
                    "name": "provider",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {"cluster_name": "provider", "endpoints": [{"lb_endpoints": [{"endpoint": {
                        "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.provider.port}}}}]}]},
                }],
            },
        });
        // JSON is YAML.
        bootstrap.to_string()
    }

    pub fn start(&mut self) {
        let bootstrap = self.bootstrap();
        let start = Start {
            name: "envoy",
            bootstrap: &bootstrap,
            dir: self.dir.path(),
            admin: self.admin,
            concurrency: 2,
        };
        self.envoy = Some(Envoy::spawn(&start).unwrap_or_else(|error| panic!("{error}")));
    }

    pub fn wait_ready(&mut self) {
        let metrics = self.metrics;
        let envoy = self.envoy.as_mut().unwrap();
        envoy.wait_ready(SOON).unwrap_or_else(|error| panic!("{error}"));
        envoy
            .process
            .wait_ready("the filter's readiness", SOON, || {
                let page = http::get(("127.0.0.1", metrics), "/ready").map_err(|error| error.to_string())?;
                if page.status == 200 { Ok(()) } else { Err(page.body) }
            })
            .unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("envoy.log")).unwrap_or_default()
    }

    pub fn metric(&self, name: &str) -> String {
        let page = http::get(("127.0.0.1", self.metrics), "/metrics").unwrap();
        page.body.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n")
    }

    /// One of Envoy's own counters.
    pub fn stat(&self, name: &str) -> u64 {
        let page = http::get(("127.0.0.1", self.admin), &format!("/stats?filter=^{name}$")).unwrap();
        page.body.trim().rsplit(": ").next().and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// A chat completion of the world's usual size; `test` tells the provider what to do.
    pub fn chat(&self, test: &str, body: &str) -> http::Page {
        self.post(&[("x-test", test)], body.as_bytes())
    }

    pub fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> http::Page {
        let mut all = vec![("content-type", "application/json")];
        all.extend_from_slice(headers);
        http::request(("127.0.0.1", self.port), "POST", "/v1/chat/completions", &all, body)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log_text()))
    }

    /// A raw connection to the gateway.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Waits until the ledger has stored so many rows.
    pub fn rows(&self, count: usize) -> Vec<plimsoll_core::protocol::UsageRow> {
        let found = wait_until("the rows' arrival at the ledger", SOON, || {
            let rows = self.ledger.rows();
            if rows.len() >= count { Ok(()) } else { Err(format!("{} of {count} rows", rows.len())) }
        });
        found.unwrap_or_else(|error| panic!("{error}\n{}", self.log_text()));
        self.ledger.rows()
    }
}

/// Sends `head` and `body` as they are; returns everything that comes back.
pub fn raw(mut stream: TcpStream, head: &str, body: &[u8]) -> String {
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
