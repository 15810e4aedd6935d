//! `make bench`: what the filter costs, against the same Envoy without it; how fast a changed budget is
//! in force; and core's micro-benchmarks. Everything is measured in one run, on real parts.
//!
//! Rounds of bare Envoy and Envoy with the filter are interleaved, medians are reported, so that a
//! neighbour's load hits both alike. CPU is Envoy's own, from /proc. Provider, load and Envoys share the
//! machine: compare the columns, not the absolute rates. Writes `target/bench/summary.json`.

#![allow(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    reason = "figures for people; nothing is decided"
)]

mod apply;
mod load;

use anyhow::Context;
use load::{Bare, Round};
use plimsoll_sim::harness::stack::{Settings, Stack};
use plimsoll_sim::harness::{Built, Process, http, profile_dir, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Rounds of each, interleaved.
const ROUNDS: usize = 6;

fn main() -> anyhow::Result<()> {
    // `cargo test` builds benches and runs them with --test: nothing to test here.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("target/bench");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("{} can't be emptied", dir.display()))?;
    }
    std::fs::create_dir_all(&dir)?;
    let mut summary = serde_json::Map::new();

    let built = Built::in_dir(&profile_dir()?);
    let provider = Provider::start(&dir)?;
    let mut stack = start_stack(root, &dir, &built, provider.port)?;
    let mut bare = Bare::start(&dir, provider.port)?;
    compare(&dir, &mut bare, &mut stack, &mut summary)?;
    summary.insert("ledger_calls_per_request".into(), steady(&dir, &stack)?.into());
    drop(bare);

    let mut applied = serde_json::Map::new();
    println!(
        "\nAPPLIED TO A REAL API SERVER, TO ENFORCED IN EVERY GATEWAY (2), AND THE OPERATOR\n{:<10} {:>9} {:>9} {:>14} {:>9}",
        "BUDGETS", "P50 ms", "P99 ms", "CPU ms/change", "RSS MiB"
    );
    drop(stack);
    let place = dir.join("apply");
    let stack = self::stack(root, &place, &built, 2)?;
    let mut cluster = apply::Cluster::start(root, stack, &place, &backend(provider.port))?;
    for budgets in [1, 100, 2_000, 10_000] {
        let apply::Applied { p50_ms, p99_ms, cpu_ms, rss_mib } = cluster.measure(budgets)?;
        println!("{budgets:<10} {p50_ms:>9.1} {p99_ms:>9.1} {cpu_ms:>14.1} {rss_mib:>9}");
        let figures =
            json!({"p50": p50_ms, "p99": p99_ms, "operator_cpu": cpu_ms, "operator_rss_mib": rss_mib});
        applied.insert(budgets.to_string(), figures);
    }
    summary.insert("apply_to_enforced_ms".into(), applied.into());
    let restart = cluster.restart()?;
    println!("the operator restarted, to all of 10,000 held by both gateways: {restart} s");
    summary.insert("restart_to_enforced_s".into(), restart.into());
    drop(cluster);

    println!("\nCORE, NANOSECONDS");
    for (name, value) in micro(root, &dir)? {
        summary.insert(name, value);
    }
    let path = dir.join("summary.json");
    std::fs::write(&path, serde_json::to_string_pretty(&summary)?)?;
    println!("\n{}", serde_json::to_string_pretty(&summary)?);
    println!("written to {}", path.display());
    Ok(())
}

/// The provider simulator as a process of its own.
struct Provider {
    port: u16,
    _process: Process,
}

impl Provider {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(profile_dir()?.join("plimsoll-provider"));
        command.args(["--listen", "127.0.0.1:0", "--price", "gpt-5.2=1.25,0.125,10"]);
        let log = dir.join("provider.log");
        let mut process = Process::spawn("the provider", command, &log)?;
        let mut port = None;
        process.wait_ready("the provider's address", Duration::from_secs(10), || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            port = text
                .lines()
                .find_map(|line| line.strip_prefix("listening on http://127.0.0.1:")?.parse().ok());
            port.map(drop).ok_or(text)
        })?;
        Ok(Self { port: port.context("no port")?, _process: process })
    }
}

/// What the provider is and costs, and the route to it.
fn backend(provider: u16) -> String {
    format!(
        "apiVersion: plimsoll.dev/v1alpha1
kind: ModelBackend
metadata: {{name: sim, namespace: plimsoll-system}}
spec:
  provider: {{api: OpenAI, baseURL: \"http://127.0.0.1:{provider}/v1\"}}
  models:
  - name: gpt-5.2
    contextTokens: 400000
    price: {{inputPerMillion: \"1.25\", cachedInputPerMillion: \"0.125\", outputPerMillion: \"10\"}}
  allowedRoutes: {{namespaces: {{from: All}}}}
---
apiVersion: plimsoll.dev/v1alpha1
kind: ModelRoute
metadata: {{name: assistant, namespace: finance}}
spec:
  maxOutputTokens: 1000
  tiers: [{{name: only, backends: [{{backendRef: {{name: sim, namespace: plimsoll-system}}, model: gpt-5.2}}]}}]
---
"
    )
}

/// Three budgets with four limits match every call; all have room.
const BUDGETS: &str = "apiVersion: plimsoll.dev/v1alpha1
kind: AIBudget
metadata: {name: all, namespace: finance}
spec: {limits: [{name: month, amount: 100000000}, {name: calls, amount: 1000000000000, unit: Requests}]}
---
apiVersion: plimsoll.dev/v1alpha1
kind: AIBudget
metadata: {name: bench, namespace: finance}
spec: {match: {features: [bench]}, limits: [{name: day, amount: 100000000, window: {period: Day}}]}
---
apiVersion: plimsoll.dev/v1alpha1
kind: AIBudget
metadata: {name: model, namespace: finance}
spec: {match: {models: [\"gpt-*\"]}, limits: [{name: week, amount: 100000000, window: {period: Week}}]}
";

fn stack(root: &Path, dir: &Path, built: &Built, gateways: usize) -> anyhow::Result<Stack> {
    std::fs::create_dir_all(dir)?;
    let template = std::fs::read_to_string(root.join("filter/envoy.yaml"))?;
    let config = "anonymous: {action: Allow, namespace: finance}";
    let settings = Settings { dir, built, template: &template, gateways, concurrency: 1, config };
    Ok(Stack::new(&settings)?)
}

fn start_stack(root: &Path, dir: &Path, built: &Built, provider: u16) -> anyhow::Result<Stack> {
    let mut stack = stack(root, &dir.join("load"), built, 1)?;
    stack.write("bench.yaml", &(backend(provider) + BUDGETS))?;
    stack.start_operator()?;
    stack.start_gateways()?;
    stack.wait_status("the budgets in force", apply::enforced)?;
    Ok(stack)
}

fn compare(
    dir: &Path,
    bare: &mut Bare,
    stack: &mut Stack,
    summary: &mut serde_json::Map<String, Value>,
) -> anyhow::Result<()> {
    let urls = [bare.url(), stack.urls().remove(0)];
    let mut measure = |load: &load::Load| -> anyhow::Result<[Vec<Round>; 2]> {
        let mut rounds = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (which, url) in urls.iter().enumerate() {
                let envoy = match which {
                    0 => &bare.envoy.process,
                    _ => &stack.gateway(0).and_then(|g| g.envoy()).context("no gateway")?.process,
                };
                let seen = load.run(dir, url, envoy)?;
                // The first of each warms up.
                if round > 0 {
                    rounds[which].push(seen);
                }
            }
        }
        Ok(rounds)
    };
    let [json_bare, json_filter] = measure(&load::JSON)?.map(load::median);
    let [sse_bare, sse_filter] = measure(&load::SSE)?.map(load::median);
    println!("JSON, 16 clients                 {}", load::HEAD);
    println!("  bare Envoy                     {json_bare}\n  with the filter, 4 limits      {json_filter}");
    println!("SSE, 42 events 10 ms apart, 40/s {}", load::HEAD);
    println!("  bare Envoy                     {sse_bare}\n  with the filter, 4 limits      {sse_filter}");
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let mut put = |name: &str, value: f64| summary.insert(name.to_owned(), rounded(value).into());
    put("json_ratio", json_filter.rps / json_bare.rps);
    put("json_added_p50_ms", json_filter.p50 - json_bare.p50);
    put("json_added_p99_ms", json_filter.p99 - json_bare.p99);
    put("json_cpu_added_us", json_filter.cpu_us - json_bare.cpu_us);
    put("sse_cpu_ratio", sse_filter.cpu_us / sse_bare.cpu_us);
    put("sse_added_p50_ms", sse_filter.first_byte_p50 - sse_bare.first_byte_p50);
    Ok(())
}

/// Messages to the ledger by admitted call, at 100 calls a second for a minute, after slices have grown.
fn steady(dir: &Path, stack: &Stack) -> anyhow::Result<f64> {
    let counts = || -> anyhow::Result<[f64; 2]> {
        let mut sums = [0.0; 2];
        for gateway in stack.gateways() {
            let page = http::get(("127.0.0.1", gateway.metrics), "/metrics")?.body;
            for (sum, name) in
                sums.iter_mut().zip(["plimsoll_gateway_ledger_sent_total", "plimsoll_gateway_sent_total"])
            {
                let samples = page.lines().filter_map(|line| line.strip_prefix(name));
                *sum += samples.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>();
            }
        }
        Ok(sums)
    };
    let before = counts()?;
    load::STEADY.send(dir, &stack.urls())?;
    let after = counts()?;
    let share = (after[0] - before[0]) / (after[1] - before[1]).max(1.0);
    println!("ledger calls per request, 100/s  {share:.4}");
    Ok((share * 100_000.0).round() / 100_000.0)
}

/// Core's own benchmark, as it prints and writes it.
fn micro(root: &Path, dir: &Path) -> anyhow::Result<BTreeMap<String, Value>> {
    let path = dir.join("micro.json");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["bench", "--quiet", "--package", "plimsoll-core", "--bench", "micro"])
        .env("PLIMSOLL_BENCH_JSON", &path)
        .current_dir(root)
        .status()?;
    anyhow::ensure!(status.success(), "core's micro-benchmark failed ({status})");
    let figures: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
    let wanted = ["admit_ns", "meter_json_ns", "meter_sse_ns"];
    for name in wanted {
        anyhow::ensure!(figures.contains_key(name), "core's micro-benchmark wrote no {name}");
    }
    Ok(figures.into_iter().filter(|(name, _)| wanted.contains(&name.as_str())).collect())
}

/// Waits until a port accepts.
fn wait_port(port: u16) -> anyhow::Result<()> {
    wait_until("a listener", Duration::from_secs(10), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
    })?;
    Ok(())
}
