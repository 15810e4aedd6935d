//! `make demo` and `make demo-files`: the whole loop on one machine, with real parts and recorded traffic.
//!
//! Operator, two Envoy gateways with the filter, mutual TLS, a provider that keeps its own bill; a real API
//! server and kubectl, or with `--files` a directory of manifests. What is shown live are the budgets'
//! statuses; what is claimed at the end is computed from the ledger's file and the provider's bill, after
//! everything has settled.

mod changes;
mod clients;
mod interrupt;
mod place;
mod summary;
mod table;
mod terms;
mod trouble;

use anyhow::{Context, bail};
use changes::Changes;
use clap::Parser;
use clients::Clients;
use interrupt::Interrupt;
use place::{Cluster, Place};
use plimsoll_api::Object;
use plimsoll_sim::bill::Bill;
use plimsoll_sim::harness::stack::{Settings, Stack};
use plimsoll_sim::harness::{Built, HarnessError, envoy, http, profile_dir, wait_until};
use plimsoll_sim::price::Prices;
use plimsoll_sim::provider::{self, Provider, Running};
use plimsoll_sim::replay::{Pace, Plan, Progress, Report, Stop, replay};
use plimsoll_sim::trace::{self, Fill};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use terms::History;
use trouble::Trouble;

/// Where the examples say that the provider is; the demo's own stands at a port that the kernel picks.
const EXAMPLE_PROVIDER: &str = "http://127.0.0.1:8080/v1";

/// Runs Plimsoll on this machine: budgets fill, block at the line, change, reset, and are compared with the
/// bill.
#[derive(Parser)]
#[command(name = "demo")]
struct Flags {
    /// No Kubernetes: objects come from files, and nothing changes meanwhile.
    #[arg(long)]
    files: bool,
    /// Leave everything running after the summary, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Apply manifests again and kill the operator and the API server meanwhile, twice.
    #[arg(long)]
    trouble: bool,
    /// How many times as fast as recorded the traffic is replayed.
    #[arg(long, default_value_t = 100.0)]
    speed: f64,
    /// For how many seconds; the recording starts again at its end.
    #[arg(long, default_value_t = 140)]
    seconds: u64,
    /// Gateways.
    #[arg(long, default_value_t = 2)]
    gateways: usize,
    /// Where everything is kept; what an earlier demo left there is removed. Default: target/demo.
    #[arg(long)]
    dir: Option<PathBuf>,
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
    let outcome = match demo(flags, &interrupt).await {
        // Ctrl-C reaches the gateways and the operator too: what failed, failed for that.
        Err(_) if interrupt.is_set() => None,
        outcome => outcome?,
    };
    if outcome.is_none() {
        println!("\nInterrupted; everything is stopped.");
    }
    Ok(outcome)
}

/// Whether the budgets held and the bills agree; `None` when interrupted before that was known.
async fn demo(flags: &Flags, interrupt: &Interrupt) -> anyhow::Result<Option<bool>> {
    let started = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = flags.dir.clone().unwrap_or_else(|| root.join("target/demo"));
    let _mine = fresh_dir(&dir)?;
    let step = |what: &str| println!("{:>6.1} s  {what}", started.elapsed().as_secs_f32());

    let provider = start_provider(root, &dir)?;
    step(&format!(
        "provider simulator at {}, bill in {}",
        provider.base_url(),
        shown(&dir.join("bill.jsonl"))
    ));
    let template = std::fs::read_to_string(root.join("filter/envoy.yaml")).context("filter/envoy.yaml")?;
    let template = envoy::keep_every_decision(&template)?;
    let built = Built::in_dir(&profile_dir()?);
    let mut stack = Stack::new(&Settings {
        dir: &dir,
        built: &built,
        template: &template,
        gateways: flags.gateways,
        concurrency: 1,
        config: "anonymous: {action: Allow, namespace: finance}",
    })?;
    let manifests = copy_examples(root, &stack, &provider.base_url())?;
    let mut history = History::new(&manifests)?;
    let place = if flags.files {
        step(&format!("{} manifests, copied from examples/", manifests.len()));
        Place::Files(stack.operator_address())
    } else {
        let place = dir.join("kubernetes");
        let cluster = Cluster::start(&place, &built.plimsoll, root, &stack.manifests(), &step).await?;
        stack.use_api_server(&cluster.operator()?);
        Place::Cluster(Arc::new(cluster))
    };
    stack.start_operator()?;
    let whose = if flags.files { "" } else { ", as ServiceAccount plimsoll-system/plimsoll" };
    step(&format!("operator at http://{}/status{whose}", stack.operator_address()));
    stack.start_gateways()?;
    enforced_everywhere(&stack, interrupt)?;
    step(&format!(
        "{} Envoy gateways, mutual TLS with the operator, enforcing: {}",
        flags.gateways,
        stack.urls().join(" ")
    ));
    if let Place::Cluster(cluster) = &place {
        println!("{}", to_try(&cluster.plane().kubeconfig().display().to_string()));
    }

    let plan = traffic(flags, root, &stack, &step)?;
    let watched = watch(plan, &place, stack, flags.trouble, interrupt.clone(), started).await?;
    let Watched { report, mut stack, wrong } = watched;
    if interrupt.is_set() {
        return Ok(None);
    }
    step("replayed; waiting until every call is in the ledger");
    let counted = settle(&stack, interrupt)?;
    // Gateways close their epochs while the operator still answers, then it ends: the file is at rest.
    stack.stop();
    if let Place::Cluster(cluster) = &place {
        for (seen, budget) in cluster.declared() {
            history.learn(Object::Budget(Box::new(budget)), seen);
        }
    }
    let bill = provider.provider.bill().lines();
    let export = plimsoll::ledger::export(&stack.ledger()).await?;
    if interrupt.is_set() {
        return Ok(None);
    }
    let summary = summary::Summary::new(&history, &export, &bill, counted);
    println!("\n{}", table::replayed(&report));
    println!("{summary}");
    let path = dir.join("summary.json");
    std::fs::write(&path, serde_json::to_string_pretty(&summary)?)?;
    let verdict = summary::verdict(&summary, &export, &bill, wrong);
    println!("{verdict}");
    println!("Everything is in {}: summary.json, bill.jsonl, ledger.db, logs.", shown(&dir));
    if flags.keep {
        stack.start_operator()?;
        stack.start_gateways()?;
        enforced_everywhere(&stack, interrupt)?;
        println!("\nStarted again, with the same ledger, until Ctrl-C.");
        if let Place::Cluster(cluster) = &place {
            println!("{}", to_try(&cluster.plane().kubeconfig().display().to_string()));
        }
        println!("          A call:\n{}", a_call(&stack.urls()[0]));
        interrupt.clone().wait().await;
        println!("\nEverything is stopped.");
    }
    Ok(Some(verdict.passed()))
}

/// What to do in another terminal.
fn to_try(kubeconfig: &str) -> String {
    format!(
        "          In another terminal, to look and to change:\n\
         \n    export KUBECONFIG={kubeconfig}\
         \n    kubectl get aibudgets -A --watch\
         \n    kubectl describe aibudget search -n finance\
         \n    kubectl explain aibudget.spec.limits\
         \n    kubectl edit aibudget all -n finance\n"
    )
}

/// A call for people who want to make one.
fn a_call(gateway: &str) -> String {
    format!(
        "    curl -s {gateway}/v1/chat/completions -H 'content-type: application/json' -H 'x-plimsoll-feature: search' \\\n      \
         -d '{{\"model\": \"assistant\", \"messages\": [{{\"role\": \"user\", \"content\": \"hello\"}}]}}'"
    )
}

/// The recorded traffic, for all gateways.
fn traffic(flags: &Flags, root: &Path, stack: &Stack, step: &dyn Fn(&str)) -> anyhow::Result<Plan> {
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
    Ok(plan)
}

/// A path as one would type it in the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display().to_string()
}

/// Empties `dir`, unless another demo runs in it or it is none of ours. While the file is open it is taken.
fn fresh_dir(dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
    let path = dir.join("demo.lock");
    let is_ours = path.exists() || std::fs::read_dir(dir)?.next().is_none();
    if !is_ours {
        bail!("{} holds something else; give --dir another directory", dir.display());
    }
    let lock = File::create(&path).with_context(|| format!("{} can't be made", path.display()))?;
    if lock.try_lock().is_err() {
        bail!("another demo runs in {}; stop it, or give --dir another directory", dir.display());
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?.path();
        let removed = match entry.is_dir() {
            true => std::fs::remove_dir_all(&entry),
            false if entry == path => Ok(()),
            false => std::fs::remove_file(&entry),
        };
        removed.with_context(|| format!("{} can't be removed", entry.display()))?;
    }
    Ok(lock)
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

/// What came of the traffic.
struct Watched {
    report: Report,
    stack: Stack,
    /// What went wrong with changes and after trouble.
    wrong: Vec<String>,
}

/// Replays `plan`, shows statuses meanwhile, and makes changes and trouble. An interrupt ends it all, without
/// an answer to what is in flight.
async fn watch(
    plan: Plan,
    place: &Place,
    stack: Stack,
    trouble: bool,
    interrupt: Interrupt,
    started: Instant,
) -> anyhow::Result<Watched> {
    let (stop, progress) = (Stop::default(), Arc::new(Progress::default()));
    let clients = Arc::new(Clients::default());
    let counting = clients.clone();
    let replaying = replay(plan, stop.clone(), progress.clone(), move |answer| counting.note(answer));
    let ended = Arc::new(AtomicBool::new(false));
    let (tell, news) = channel();
    let cluster = match place {
        Place::Files(_) => None,
        Place::Cluster(cluster) => Some(cluster),
    };
    let changes = cluster.map(|cluster| Changes {
        cluster: cluster.clone(),
        clients: clients.clone(),
        gateways: stack.gateways().iter().map(|gateway| (gateway.url(), gateway.id.clone())).collect(),
        news: tell.clone(),
        ended: ended.clone(),
        interrupt: interrupt.clone(),
    });
    let mut makes = Trouble { stack, cluster: cluster.cloned(), news: tell, ended: ended.clone() };
    let troubling = std::thread::spawn(move || {
        let wrong = if trouble { makes.make() } else { vec![] };
        (makes.stack, wrong)
    });
    // Pages are fetched and kubectl is run by calls that block: in threads of their own.
    let changing = std::thread::spawn(move || changes.map(|changes| changes.make()).unwrap_or_default());
    let (shown, end) = (place.clone(), ended.clone());
    let showing = std::thread::spawn(move || {
        let mut view = table::View::new(clients, news, started);
        while !end.load(Ordering::Relaxed) {
            if let Some(rows) = shown.rows() {
                view.show(&rows, &progress);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        view
    });
    let report = tokio::select! {
        report = replaying => report,
        () = interrupt.wait() => Report::default(),
    };
    stop.stop();
    ended.store(true, Ordering::Relaxed);
    let (Ok(view), Ok(mut wrong), Ok((stack, also))) = (showing.join(), changing.join(), troubling.join())
    else {
        bail!("showing or changing budgets failed");
    };
    wrong.extend(also);
    // A change may have come to its end after the traffic did.
    view.tell();
    Ok(Watched { report, stack, wrong })
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

/// Waits until gateways have settled every call that they sent, and the ledger has stored it, or for an
/// interrupt.
fn settle(stack: &Stack, interrupt: &Interrupt) -> anyhow::Result<summary::Counted> {
    let mut counted = summary::Counted::default();
    wait_until("every call settled and in the ledger", Duration::from_secs(30), || {
        if interrupt.is_set() {
            return Ok(());
        }
        let mut now = summary::Counted::default();
        let (mut settled, mut unstored) = (0, 0);
        for gateway in stack.gateways() {
            let page =
                http::get(("127.0.0.1", gateway.metrics), "/metrics").map_err(|error| error.to_string())?;
            now.sent += table::metric(&page.body, "plimsoll_gateway_sent_total");
            settled += table::metric(&page.body, "plimsoll_gateway_settled_total");
            unstored += table::metric(&page.body, "plimsoll_gateway_log_unstored");
            // Kept beside the logs: it says of what kind the messages were.
            let kept = gateway.log_dir.with_extension("metrics");
            std::fs::write(kept, &page.body).map_err(|error| error.to_string())?;
            now.ledger_calls += table::metric(&page.body, "plimsoll_gateway_ledger_sent_total");
        }
        counted = now;
        if settled >= now.sent && unstored == 0 {
            return Ok(());
        }
        Err(format!("{settled} of {} calls settled, {unstored} records not stored", now.sent))
    })?;
    Ok(counted)
}
