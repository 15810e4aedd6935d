//! `make demo-files`: the whole loop on one machine, with real parts and recorded traffic.
//!
//! Operator, two Envoy gateways with the filter, mutual TLS, a provider that keeps its own bill. What is
//! shown live comes from the operator's `/status`; what is claimed at the end is computed from the
//! ledger's file and the provider's bill, after everything has settled.

mod interrupt;
mod summary;
mod table;

use anyhow::{Context, bail};
use clap::Parser;
use interrupt::Interrupt;
use plimsoll::source::manifest;
use plimsoll_core::account::LimitKey;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::Terms;
use plimsoll_plan::{Planner, World};
use plimsoll_sim::bill::Bill;
use plimsoll_sim::harness::stack::{Settings, Stack};
use plimsoll_sim::harness::{Built, HarnessError, envoy, http, profile_dir, wait_until};
use plimsoll_sim::price::Prices;
use plimsoll_sim::provider::{self, Provider, Running};
use plimsoll_sim::replay::{Pace, Plan, Progress, Report, Stop, replay};
use plimsoll_sim::trace::{self, Fill};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where the examples say that the provider is; the demo's own stands at a port that the kernel picks.
const EXAMPLE_PROVIDER: &str = "http://127.0.0.1:8080/v1";

/// Runs Plimsoll on this machine: budgets fill, block at the line, reset, and are compared with the bill.
#[derive(Parser)]
#[command(name = "demo_files")]
struct Flags {
    /// How many times as fast as recorded the traffic is replayed.
    #[arg(long, default_value_t = 100.0)]
    speed: f64,
    /// For how many seconds; the recording starts again at its end.
    #[arg(long, default_value_t = 140)]
    seconds: u64,
    /// Gateways.
    #[arg(long, default_value_t = 2)]
    gateways: usize,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match runtime.block_on(run(&flags))? {
        Some(true) => Ok(()),
        Some(false) => std::process::exit(1),
        None => std::process::exit(130),
    }
}

/// Whether the budgets held and the bills agree; `None`: interrupted.
async fn run(flags: &Flags) -> anyhow::Result<Option<bool>> {
    let interrupt = Interrupt::listen()?;
    let outcome = demo(flags, &interrupt).await;
    if interrupt.is_set() {
        // Ctrl-C reaches the gateways and the operator too: what failed, failed for that.
        println!("\nInterrupted; everything is stopped.");
        return Ok(None);
    }
    outcome.map(Some)
}

/// Whether the budgets held and the bills agree; nobody asks once interrupted.
async fn demo(flags: &Flags, interrupt: &Interrupt) -> anyhow::Result<bool> {
    let started = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = fresh_dir(root)?;
    let step = |what: &str| println!("{:>6.1} s  {what}", started.elapsed().as_secs_f32());

    let provider = start_provider(root, &dir)?;
    step(&format!(
        "provider simulator at {}, bill in {}",
        provider.base_url(),
        shown(root, &dir.join("bill.jsonl"))
    ));
    let template = std::fs::read_to_string(root.join("filter/envoy.yaml")).context("filter/envoy.yaml")?;
    let template = envoy::keep_every_decision(&template)?;
    let mut stack = Stack::new(&Settings {
        dir: &dir,
        built: &Built::in_dir(&profile_dir()?),
        template: &template,
        gateways: flags.gateways,
        concurrency: 1,
        config: "anonymous: {action: Allow, namespace: finance}",
    })?;
    let manifests = copy_examples(root, &stack, &provider.base_url())?;
    let limits = limits(&manifests)?;
    stack.start_operator()?;
    step(&format!(
        "operator at http://{}/status, {} manifests from examples/",
        stack.operator_address(),
        manifests.len()
    ));
    stack.start_gateways()?;
    enforced_everywhere(&stack, interrupt)?;
    step(&format!(
        "{} Envoy gateways, mutual TLS with the operator, enforcing: {}",
        flags.gateways,
        stack.urls().join(" ")
    ));

    let fill = Fill {
        features: vec![("invoice-processing".into(), 5), ("support-chat".into(), 2), ("search".into(), 3)],
        users: 40,
        models: vec![("assistant".into(), 1)],
        stream_percent: 50,
    };
    let calls = trace::read(&root.join("sim/data/azure-conv-2023-11-16.csv"), &fill)?;
    step(&format!(
        "replaying the Azure LLM trace ({} calls in {} minutes) at {} times its pace, over and over for {} s",
        calls.len(),
        calls.last().map_or(0, |call| call.at.as_secs().div_ceil(60)),
        flags.speed,
        flags.seconds,
    ));
    let targets = stack.urls().iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
    let pace = Pace::Open { speed: flags.speed, concurrency: 1000 };
    let duration = Some(Duration::from_secs(flags.seconds));
    let plan = Plan { pace, duration, repeat: true, ..Plan::new(Arc::new(calls), targets) };
    plan.check()?;
    let report = watch(plan, &stack.operator_address(), interrupt.clone()).await?;
    if interrupt.is_set() {
        return Ok(false);
    }
    step("replayed; waiting until every call is in the ledger");
    let counted = settle(&stack, interrupt)?;
    // Gateways close their epochs while the operator still answers, then it ends: the file is at rest.
    let ledger = stack.ledger();
    drop(stack);
    let bill = provider.provider.bill().lines();
    let export = plimsoll::ledger::export(&ledger).await?;
    let summary = summary::Summary::new(&limits, &export, &bill, counted);
    println!("\n{}", table::replayed(&report));
    println!("{summary}");
    let path = dir.join("summary.json");
    std::fs::write(&path, serde_json::to_string_pretty(&summary)?)?;
    let verdict = summary::verdict(&summary, &export, &bill);
    println!("{verdict}");
    println!("Everything is in {}: summary.json, bill.jsonl, ledger.db, logs.", shown(root, &dir));
    Ok(verdict.passed())
}

fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// `target/demo`, emptied.
fn fresh_dir(root: &Path) -> anyhow::Result<PathBuf> {
    let dir = root.join("target/demo");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("{} can't be emptied", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
    Ok(dir)
}

fn start_provider(root: &Path, dir: &Path) -> anyhow::Result<Running> {
    let mut prices = Prices::default();
    // The provider's own price list: a wrong price in examples/ must show.
    prices.read(&root.join("sim/data/prices.csv"))?;
    let settings = provider::Settings {
        prices,
        // A hundred times as fast as half a second to the first token and 50 tokens a second, as the traffic is.
        first_token: Duration::from_millis(5),
        per_token: Duration::from_micros(200),
        tokens_per_event: 16,
        ..provider::Settings::default()
    };
    let bill = Bill::open(Some(&dir.join("bill.jsonl")))?;
    Ok(Provider::new(settings, bill).start()?)
}

/// Copies the manifests, lets their backends point at `provider`, and returns their texts.
fn copy_examples(root: &Path, stack: &Stack, provider: &str) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(root.join("examples"))? {
        let path = entry?.path();
        let Some(name) =
            path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".yaml"))
        else {
            continue;
        };
        let text = std::fs::read_to_string(&path)?.replace(EXAMPLE_PROVIDER, provider);
        stack.write(name, &text)?;
        texts.push(text);
    }
    if texts.is_empty() {
        bail!("there are no manifests in {}", root.join("examples").display());
    }
    Ok(texts)
}

/// The limits that `manifests` declare.
fn limits(manifests: &[String]) -> anyhow::Result<BTreeMap<LimitKey, Terms>> {
    let mut planner = Planner::new(World::default());
    for entry in manifests.iter().flat_map(|text| manifest::read(text)) {
        match entry.object {
            Ok(object) => planner.put(object),
            Err(wrong) => bail!("examples, line {}: {wrong:?}", entry.line),
        }
    }
    planner.replan(UnixMs(0));
    Ok(planner.into_plan().limits)
}

/// Replays `plan` and shows `/status` meanwhile; an interrupt ends both, without an answer to what is in flight.
async fn watch(plan: Plan, operator: &str, interrupt: Interrupt) -> anyhow::Result<Report> {
    let (stop, progress) = (Stop::default(), Arc::new(Progress::default()));
    let refusals = Arc::new(table::Refusals::default());
    let counting = refusals.clone();
    let replaying = replay(plan, stop.clone(), progress.clone(), move |answer| counting.note(answer));
    let ended = Arc::new(AtomicBool::new(false));
    let end = ended.clone();
    let address = operator.to_owned();
    let seen = progress.clone();
    // The page is fetched by blocking calls, so it is shown from a thread of its own.
    let showing = std::thread::spawn(move || {
        let mut view = table::View::new(refusals);
        while !ended.load(Ordering::Relaxed) {
            if let Ok(page) = http::get(&address, "/status")
                && let Ok(status) = serde_json::from_str(&page.body)
            {
                view.show(&status, &seen);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    let report = tokio::select! {
        report = replaying => report,
        () = interrupt.wait() => Report::default(),
    };
    stop.stop();
    end.store(true, Ordering::Relaxed);
    if showing.join().is_err() {
        bail!("showing the status failed");
    }
    Ok(report)
}

/// Waits until every gateway enforces every budget, or for an interrupt.
fn enforced_everywhere(stack: &Stack, interrupt: &Interrupt) -> Result<(), HarnessError> {
    wait_until("every gateway enforcing every budget", Duration::from_secs(60), || {
        if interrupt.is_set() {
            return Ok(());
        }
        let page = stack.page("/status").map_err(|error| error.to_string())?;
        let status = serde_json::from_str(&page.body).map_err(|error| format!("/status: {error}"))?;
        table::enforced_everywhere(&status)
    })
}

/// Waits until the ledger has a row for every call that gateways sent, or for an interrupt.
fn settle(stack: &Stack, interrupt: &Interrupt) -> anyhow::Result<summary::Counted> {
    let mut counted = summary::Counted::default();
    wait_until("a row in the ledger for every call sent", Duration::from_secs(30), || {
        if interrupt.is_set() {
            return Ok(());
        }
        let mut now = summary::Counted::default();
        for gateway in stack.gateways() {
            let page =
                http::get(("127.0.0.1", gateway.metrics), "/metrics").map_err(|error| error.to_string())?;
            now.sent += table::metric(&page.body, "plimsoll_gateway_sent_total");
            // Kept beside the logs: it says of what kind the messages were.
            let kept = gateway.log_dir.with_extension("metrics");
            std::fs::write(kept, &page.body).map_err(|error| error.to_string())?;
            now.ledger_calls += table::metric(&page.body, "plimsoll_gateway_ledger_sent_total");
        }
        let page = stack.page("/metrics").map_err(|error| error.to_string())?;
        let rows = table::metric(&page.body, "plimsoll_ledger_usage_rows_total");
        counted = now;
        if rows >= now.sent { Ok(()) } else { Err(format!("{rows} rows of {} calls", now.sent)) }
    })?;
    Ok(counted)
}
