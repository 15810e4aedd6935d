//! The load: the replayer as a process of its own, and the bare Envoy that the filter is compared with.

use plimsoll_sim::harness::envoy::{Envoy, Start};
use plimsoll_sim::harness::{Process, free_port, profile_dir};
use serde_json::Value;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A kind of load.
pub struct Load {
    name: &'static str,
    prompt_tokens: u32,
    output_tokens: u32,
    stream: bool,
    /// Calls a second; `None`: closed loop, 16 clients.
    rate: Option<u32>,
    seconds: u32,
    /// What the simulator is told about its pace.
    headers: &'static [&'static str],
}

/// 1.7 KB there, 1 KB back, as fast as it goes.
pub const JSON: Load = Load {
    name: "json",
    prompt_tokens: 420,
    output_tokens: 110,
    stream: false,
    rate: None,
    seconds: 5,
    headers: &[],
};

/// 42 events, 10 ms apart, 40 streams a second.
pub const SSE: Load = Load {
    name: "sse",
    prompt_tokens: 420,
    output_tokens: 42,
    stream: true,
    rate: Some(40),
    seconds: 6,
    headers: &["x-sim-tokens-per-event: 1", "x-sim-per-token-us: 10000"],
};

/// A steady load for counting messages.
pub const STEADY: Load = Load {
    name: "steady",
    prompt_tokens: 420,
    output_tokens: 110,
    stream: false,
    rate: Some(100),
    seconds: 60,
    headers: &["x-sim-first-token-ms: 100"],
};

/// What one round measured, or the median of several.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub rps: f64,
    pub p50: f64,
    pub p99: f64,
    pub first_byte_p50: f64,
    /// Envoy's, by call.
    pub cpu_us: f64,
}

/// The columns of a round.
pub const HEAD: &str = "CALLS/s    P50 ms    P99 ms  FIRST BYTE ms  CPU us/call";

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rps, p50, p99, first_byte_p50, cpu_us } = self;
        write!(f, "{rps:>7.0} {p50:>9.2} {p99:>9.2} {first_byte_p50:>14.2} {cpu_us:>12.1}")
    }
}

/// The median of each figure.
pub fn median(rounds: Vec<Round>) -> Round {
    let of = |figure: fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(figure).collect();
        all.sort_unstable_by(f64::total_cmp);
        let half = all.len() / 2;
        if all.len() % 2 == 1 { all[half] } else { (all[half - 1] + all[half]) / 2.0 }
    };
    Round {
        rps: of(|r| r.rps),
        p50: of(|r| r.p50),
        p99: of(|r| r.p99),
        first_byte_p50: of(|r| r.first_byte_p50),
        cpu_us: of(|r| r.cpu_us),
    }
}

impl Load {
    /// One round against `url`, with the CPU that `envoy` took.
    pub fn run(&self, dir: &Path, url: &str, envoy: &Process) -> anyhow::Result<Round> {
        let cpu = |envoy: &Process| envoy.cpu_us().unwrap_or(0);
        let before = cpu(envoy);
        let report = self.send(dir, &[url.to_owned()])?;
        let used = cpu(envoy) - before;
        let figure = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        Ok(Round {
            rps: figure("/served_per_second"),
            p50: figure("/latency_ms/p50"),
            p99: figure("/latency_ms/p99"),
            first_byte_p50: figure("/stream_first_byte_ms/p50"),
            cpu_us: used as f64 / figure("/served").max(1.0),
        })
    }

    /// Sends the load and returns the replayer's report. A call that is not served fails the bench.
    pub fn send(&self, dir: &Path, urls: &[String]) -> anyhow::Result<Value> {
        let trace = dir.join(format!("{}.csv", self.name));
        let mut text = String::from("time,feature,model,prompt_tokens,output_tokens,stream\n");
        let count = self.rate.map_or(1, |rate| rate * self.seconds);
        for number in 0..count {
            let at = f64::from(number) / f64::from(self.rate.unwrap_or(1));
            let Self { prompt_tokens, output_tokens, stream, .. } = self;
            text += &format!("{at:.4},bench,{{model}},{prompt_tokens},{output_tokens},{stream}\n");
        }
        std::fs::write(&trace, text.replace("{model}", "assistant"))?;
        let mut command = Command::new(profile_dir()?.join("plimsoll-replay"));
        command.arg("--trace").arg(&trace).args(["-o", "json"]);
        for url in urls {
            command.args(["--target", url]);
        }
        for header in self.headers {
            command.args(["--header", header]);
        }
        if self.rate.is_none() {
            command.args(["--clients", "16", "--repeat", "--duration", &self.seconds.to_string()]);
        }
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "the replayer failed: {said}");
        let report: Value = serde_json::from_slice(&output.stdout)?;
        anyhow::ensure!(report["calls"] == report["served"], "not every call was served: {report}");
        Ok(report)
    }
}

/// Envoy without the filter, otherwise as a gateway is: same listener, same cluster, no access log.
pub struct Bare {
    pub envoy: Envoy,
    port: u16,
}

impl Bare {
    /// Starts it in front of the provider.
    pub fn start(dir: &Path, provider: u16) -> anyhow::Result<Self> {
        let (port, admin) = (free_port()?, free_port()?);
        let bootstrap = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bare
          use_remote_address: true
          internal_address_config: {{cidr_ranges: [{{address_prefix: 255.255.255.255, prefix_len: 32}}]}}
          preserve_external_request_id: false
          skip_xff_append: true
          server_header_transformation: PASS_THROUGH
          stream_idle_timeout: 600s
          route_config:
            virtual_hosts:
            - {{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: provider, timeout: 0s}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: provider
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{thresholds: [{{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000}}]}}
    load_assignment:
      cluster_name: provider
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {provider}}}}}}}}}]}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{idle_timeout: 4s}}
        explicit_http_config: {{http_protocol_options: {{}}}}
"
        );
        let start = Start { name: "bare", bootstrap: &bootstrap, dir, admin, concurrency: 1 };
        let mut envoy = Envoy::spawn(&start)?;
        envoy.wait_ready(Duration::from_secs(30))?;
        super::wait_port(port)?;
        Ok(Self { envoy, port })
    }

    /// Where clients call.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
