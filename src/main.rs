//! The `plimsoll` command.

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use plimsoll::kubernetes::{Access, Kubernetes, Requests, Stored, Writer};
use plimsoll::report::{Printer, Report, Sink};
use plimsoll::source::Files;
use plimsoll_core::ids::UnixMs;
use plimsoll_plan::Settings;
use std::io::{IsTerminal, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  plimsoll operator --config plimsoll.yaml
  plimsoll operator --config plimsoll.yaml --manifests policy/
  plimsoll validate policy/
  plimsoll status --operator 127.0.0.1:9080
  plimsoll retire gateway-3 --ledger /var/lib/plimsoll/ledger.db
  plimsoll crds | kubectl apply --server-side -f -

Exit codes: 0 done; 1 it failed, or validate found something wrong; 2 wrong usage.";

/// Enforces what teams may spend on AI models.
#[derive(Parser)]
#[command(version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch budgets, routes and backends; keep the ledger; configure gateways.
    #[command(after_help = "\
The settings file, at least:
  ledger: {sqlite: {path: /var/lib/plimsoll/ledger.db}}
  tls: {ca: ca.pem, cert: operator.pem, key: operator.key}   # or plainText: true on one machine
Objects come from the API server of --kubeconfig, of KUBECONFIG, or of the pod that this runs in, and
their statuses and Events go there; with --manifests they come from files, and statuses are printed.
The rights that it needs are in examples/install/rbac.yaml; a missing one is named.

Manifests, settings and TLS files are watched. A budget that turns bad, or whose file can't be
read, keeps the version before it, over a restart too: budgets in force are remembered in the
ledger. A certificate with the DNS name gw-1.gateway.plimsoll is for gateway
gw-1 alone; one without such a name is for any. PLIMSOLL_LOG=debug shows more.
SIGTERM or Ctrl-C ends it after the last commit.")]
    Operator {
        /// The installation's settings, YAML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Read objects from this directory's .yaml, .yml and .json files, not from an API server
        #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
        manifests: Option<PathBuf>,
        /// The API server and the credentials for it [default: as kubectl finds them, else the pod's]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// The context to use of the kubeconfig [default: its current one]
        #[arg(long, value_name = "NAME")]
        context: Option<String>,
        /// How log lines look; they go to standard error
        #[arg(long, value_enum, default_value_t = LogFormat::Text)]
        log_format: LogFormat,
        /// With --manifests: don't print changed budgets to standard output
        #[arg(long)]
        no_table: bool,
    },
    /// Print the CustomResourceDefinitions.
    Crds,
    /// Check manifests as an API server would, without one.
    #[command(after_help = "\
Says file, line and field of everything that is wrong, and what to do. AIBudgets, ModelRoutes, ModelBackends,
Secrets and Namespaces are checked; other kinds are skipped and counted. What needs objects that may be
elsewhere is a warning.

Examples:
  plimsoll validate policy/
  kustomize build overlays/prod | plimsoll validate -
  plimsoll validate --namespace finance budgets.yaml -o json

Exit codes: 0 nothing is wrong; 1 something is, can't be read, or nothing was found; 2 wrong usage.")]
    Validate {
        /// Files, directories with .yaml, .yml and .json files, or - for standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Check against this installation's settings
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The namespace that may use plain HTTP and private addresses [default: plimsoll-system]
        #[arg(long, value_name = "NAME", conflicts_with = "config")]
        root_namespace: Option<String>,
        /// The namespace of objects that name none, as kubectl has it [default: that is an error]
        #[arg(short, long, value_name = "NAME")]
        namespace: Option<String>,
        /// As lines for people, or everything as JSON
        #[arg(short, long, value_enum, default_value_t = Findings::Text)]
        output: Findings,
    },
    /// After the ledger went back: stop waiting for a gateway that will not come again.
    #[command(after_help = "\
What the ledger knows that it holds stays unaccounted until the window ends. A gateway that has said Hello is
left alone. The operator may run; it goes on granting within ten seconds of the last one.")]
    Retire {
        /// The gateway's id, as the operator's log names it
        gateway: String,
        /// The ledger's file: ledger.sqlite.path in the settings
        #[arg(long, value_name = "FILE")]
        ledger: PathBuf,
    },
    /// Show where budgets stand.
    Status {
        /// The operator's listen.http address
        #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9080")]
        operator: String,
        /// As a table, or everything as JSON
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Findings {
    Text,
    Json,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("plimsoll: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// What went wrong and its causes, each said once: some messages end with their cause.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        before if before.contains(&cause) => told,
        before => format!("{before}: {cause}"),
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Operator { config, manifests, kubeconfig, context, log_format, no_table } => {
            log(log_format);
            let from = match manifests {
                Some(directory) => From::Files { directory, is_silent: no_table },
                None => From::Kubernetes(Access { kubeconfig, context }),
            };
            operator(config, from)?;
        }
        Command::Crds => print(&crds()?)?,
        Command::Validate { paths, config, root_namespace, namespace, output } => {
            let mut settings = match config {
                Some(file) => plimsoll::config::Config::load(&file)?.settings(),
                None => Settings::default(),
            };
            settings.root_namespace = root_namespace.unwrap_or(settings.root_namespace);
            let verdict = plimsoll::validate::validate(&paths, namespace.as_deref(), &settings);
            match output {
                Findings::Text => print(&verdict.text())?,
                Findings::Json => print(&(serde_json::to_string_pretty(&verdict)? + "\n"))?,
            }
            return Ok(if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Retire { gateway, ledger } => return retire(&gateway, &ledger),
        Command::Status { operator, output } => status(&operator, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn log(format: LogFormat) {
    use tracing_subscriber::EnvFilter;
    let (filter, refused) = match std::env::var("PLIMSOLL_LOG").unwrap_or_default().as_str() {
        "" => (None, None),
        text => match log_filter(text) {
            Ok(filter) => (Some(filter), None),
            Err(why) => (None, Some(why)),
        },
    };
    // What kube logs of an answer that it can't read is that answer, a Secret's too. Its errors reach us, and
    // are told once.
    let quiet = ["kube_client=off", "kube_runtime=off"].map(str::parse);
    let filter = filter.unwrap_or_else(|| EnvFilter::new("info"));
    let filter = quiet.into_iter().flatten().fold(filter, EnvFilter::add_directive);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    if let Some(why) = refused {
        tracing::warn!("PLIMSOLL_LOG {why}; info is used. Write it like debug, or info,plimsoll=debug");
    }
}

/// `text` as a filter, or the rest of a sentence about it.
fn log_filter(text: &str) -> Result<tracing_subscriber::EnvFilter, String> {
    // A word that is no level would be taken for a target, and everything else would be silent.
    let level = |part: &str| part.parse::<tracing::level_filters::LevelFilter>().is_ok();
    if let Some(part) = text.split(',').map(str::trim).find(|part| !part.contains(['=', '[']) && !level(part))
    {
        return Err(format!("has {part:?}, which is no level"));
    }
    tracing_subscriber::EnvFilter::try_new(text).map_err(|error| format!("{text:?} is no filter: {error}"))
}

/// Prints nothing.
struct Silent;

impl Sink for Silent {
    fn put(&mut self, _: &Arc<Report>) {}
}

/// Where objects come from.
enum From {
    Files { directory: PathBuf, is_silent: bool },
    Kubernetes(Access),
}

fn operator(config: PathBuf, from: From) -> anyhow::Result<()> {
    // One provider for everything that speaks TLS; a second would be an error of ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = signals()?;
        match from {
            From::Files { directory, is_silent: true } => {
                plimsoll::operator::run(config, Files::new(directory), Silent, stop).await
            }
            From::Files { directory, is_silent: false } => {
                plimsoll::operator::run(config, Files::new(directory), Printer::default(), stop).await
            }
            From::Kubernetes(access) => {
                let requests = Requests::default();
                let client = access.client(&requests).await?;
                let stored = Arc::new(Stored::default());
                let (writer, tasks) = Writer::start(client.clone(), Arc::clone(&stored), requests.clone());
                let source = Kubernetes::new(client, stored, requests);
                let ran = plimsoll::operator::run(config, source, writer, stop).await;
                tasks.end().await;
                ran
            }
        }
    })
}

fn signals() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn crds() -> anyhow::Result<String> {
    let mut text = String::new();
    for crd in plimsoll_api::crds() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(text)
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // `plimsoll crds | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn retire(gateway: &str, ledger: &Path) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let now = plimsoll::ledger::Clock::new(UnixMs(0)).now();
    let ended = runtime.block_on(plimsoll::ledger::sqlite::retire(ledger, gateway, now))?;
    if ended == 0 {
        println!("{gateway} is not waited for: it has said Hello, or the ledger does not know it");
        return Ok(ExitCode::FAILURE);
    }
    println!("{gateway} is retired: what it held is unaccounted, nobody waits for it");
    Ok(ExitCode::SUCCESS)
}

fn status(operator: &str, output: Output) -> anyhow::Result<()> {
    let query = match output {
        Output::Table => "?format=table",
        Output::Json => "",
    };
    let address = operator.trim_start_matches("http://").trim_end_matches('/');
    let refused =
        || format!("no operator answers at {address}; give its listen.http address with --operator");
    let mut stream = TcpStream::connect(address).with_context(refused)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET /status{query} HTTP/1.0\r\nhost: {address}\r\naccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(refused)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("{address} doesn't speak HTTP"))?;
    let line = head.lines().next().unwrap_or_default();
    anyhow::ensure!(line.contains(" 200"), "the operator at {address} answers: {line}");
    print(body)
}
