//! `plimsoll-replay`: the replayer as a program.

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use plimsoll_sim::replay::{MaxTokens, Pace, Plan, Progress, Stop, Target, replay};
use plimsoll_sim::trace::{self, Fill};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  # An hour of recorded traffic through two gateways, 20 times as fast; latency counts from due time.
  plimsoll-replay --trace conv.csv --target http://127.0.0.1:10000 --target http://127.0.0.1:10001 --speed 20

  # 200 clients, each with one call at a time, for a minute; every answer kept.
  plimsoll-replay --trace conv.csv --target http://127.0.0.1:10000 --clients 200 --repeat --duration 60 \\
    --answers answers.jsonl -o json

The trace is a CSV with a header; columns are found by name, others are ignored:
  time           seconds (12.5) or an instant (2023-11-16 18:15:46.68, RFC 3339)      required
  prompt_tokens  the prompt is padded to this size, 4 bytes a token                   required
  output_tokens  sent as x-sim-output-tokens (and as max_tokens: --max-tokens recorded)   required
  feature, user  sent as x-plimsoll-feature and x-plimsoll-user       else --features, --users
  model          the body's model                                     else --model
  stream         true, false, 1 or 0                                  else --stream-percent
The Azure LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens) are read as published.";

/// Sends recorded calls to gateways or providers that speak OpenAI's Chat Completions, and reports
/// latency, refusals and status codes.
#[derive(Parser)]
#[command(name = "plimsoll-replay", after_help = EXAMPLES)]
struct Flags {
    /// The trace.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Where calls go; repeated: in turn.
    #[arg(long, required = true, value_name = "URL")]
    target: Vec<Target>,
    /// Open loop: how many times as fast as recorded.
    #[arg(long, default_value_t = 1.0, conflicts_with = "clients", value_name = "X")]
    speed: f64,
    /// Open loop: the most calls at once.
    #[arg(long, default_value_t = 2000, value_name = "N")]
    concurrency: usize,
    /// Closed loop: this many clients, each with one call at a time; the trace's times are ignored.
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// Start the trace again at its end (give --duration or --limit).
    #[arg(long)]
    repeat: bool,
    /// Send for this many seconds.
    #[arg(long, value_name = "S")]
    duration: Option<u64>,
    /// Send this many calls.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Give a call up after this many seconds.
    #[arg(long, default_value_t = 120, value_name = "S")]
    timeout: u64,
    /// A header for every call, say 'authorization: Bearer KEY'.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Models with weights, where the trace has no model: assistant or a=3,b=1.
    #[arg(long, default_value = "assistant", value_name = "NAMES")]
    model: String,
    /// Features with weights, where the trace has no feature: chat=6,search=3,invoices=1.
    #[arg(long, default_value = "", value_name = "NAMES")]
    features: String,
    /// Distinct users, where the trace has no user.
    #[arg(long, default_value_t = 0, value_name = "N")]
    users: u32,
    /// Of a hundred calls, how many stream, where the trace has no stream.
    #[arg(long, default_value_t = 50, value_name = "PERCENT")]
    stream_percent: u32,
    /// max_tokens of every call: none, recorded (as many as came out), or a number.
    #[arg(long, default_value = "none", value_parser = max_tokens)]
    max_tokens: MaxTokens,
    /// Ask for usage in streams (stream_options.include_usage).
    #[arg(long)]
    include_usage: bool,
    /// Abandon every Nth call after the first bytes of its answer.
    #[arg(long, value_name = "N")]
    abandon_every: Option<u64>,
    /// Keep every answer here, a JSON object a line.
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// How the report is written.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Threads that send.
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn max_tokens(text: &str) -> Result<MaxTokens, String> {
    match text {
        "none" => Ok(MaxTokens::None),
        "recorded" => Ok(MaxTokens::Recorded),
        number => number
            .parse()
            .map(MaxTokens::Fixed)
            .map_err(|_| format!("\"{number}\" is not none, recorded or a number of tokens")),
    }
}

/// `a=3,b` as names with weights.
fn weighted(text: &str) -> anyhow::Result<Vec<(String, u32)>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let weight = weight.parse().with_context(|| format!("\"{part}\": write NAME=WEIGHT"))?;
            Ok((name.to_owned(), weight))
        })
        .collect()
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    // Nothing was sent yet: 2, as for a flag that clap refuses. Later: 1.
    let plan = match plan(&flags) {
        Ok(plan) => plan,
        Err(why) => return failed(&why, 2),
    };
    match send(&flags, plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why, 1),
    }
}

fn failed(why: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {why:#}");
    ExitCode::from(code)
}

/// What the flags and the trace ask for.
fn plan(flags: &Flags) -> anyhow::Result<Plan> {
    if flags.repeat && flags.duration.is_none() && flags.limit.is_none() {
        bail!("--repeat has no end; give --duration or --limit too");
    }
    let fill = Fill {
        features: weighted(&flags.features)?,
        users: flags.users,
        models: weighted(&flags.model)?,
        stream_percent: flags.stream_percent,
    };
    let calls = trace::read(&flags.trace, &fill)?;
    eprintln!("{} calls in {}", calls.len(), flags.trace.display());
    let headers = flags
        .header
        .iter()
        .map(|text| {
            let (name, value) =
                text.split_once(':').with_context(|| format!("\"{text}\": write NAME: VALUE"))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect::<anyhow::Result<_>>()?;
    let pace = match flags.clients {
        Some(clients) => Pace::Closed { clients },
        None => Pace::Open { speed: flags.speed, concurrency: flags.concurrency },
    };
    let plan = Plan {
        pace,
        repeat: flags.repeat,
        limit: flags.limit,
        duration: flags.duration.map(Duration::from_secs),
        timeout: Duration::from_secs(flags.timeout),
        headers,
        max_tokens: flags.max_tokens,
        include_usage: flags.include_usage,
        abandon_every: flags.abandon_every,
        ..Plan::new(Arc::new(calls), flags.target.clone())
    };
    plan.check()?;
    Ok(plan)
}

fn send(flags: &Flags, plan: Plan) -> anyhow::Result<()> {
    let mut runtime = match flags.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().worker_threads(flags.threads.max(1)).build()?.block_on(run(flags, plan))
}

async fn run(flags: &Flags, plan: Plan) -> anyhow::Result<()> {
    let mut answers = flags
        .answers
        .as_ref()
        .map(|path| {
            let file =
                std::fs::File::create(path).with_context(|| format!("can't write {}", path.display()))?;
            anyhow::Ok(BufWriter::new(file))
        })
        .transpose()?;
    let (stop, progress) = (Stop::default(), Arc::new(Progress::default()));
    tokio::spawn(interrupted(stop.clone()));
    let showing = tokio::spawn(show(progress.clone()));
    let mut unwritten = None;
    let report = replay(plan, stop, progress, |answer| {
        let Some(file) = &mut answers else { return };
        let line = serde_json::to_writer(&mut *file, answer).map_err(std::io::Error::from);
        if let Err(error) = line.and_then(|()| file.write_all(b"\n")) {
            unwritten.get_or_insert(error);
        }
    })
    .await;
    showing.abort();
    if let Some(file) = &mut answers {
        file.flush()?;
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    match flags.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    match unwritten {
        Some(error) => Err(error).context("not every answer could be kept"),
        None => Ok(()),
    }
}

/// The first Ctrl-C sends nothing more and waits for what is in flight; the second ends at once.
async fn interrupted(stop: Stop) {
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("\nsending no more; waiting for calls in flight (Ctrl-C again: don't wait)");
        stop.stop();
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    }
}

/// A line of progress: redrawn on a terminal, every 10 s elsewhere.
async fn show(progress: Arc<Progress>) {
    let terminal = std::io::stderr().is_terminal();
    let pause = if terminal { Duration::from_millis(500) } else { Duration::from_secs(10) };
    loop {
        tokio::time::sleep(pause).await;
        let [sent, served, failed] =
            [&progress.sent, &progress.served, &progress.failed].map(|n| n.load(Ordering::Relaxed));
        let line = format!("sent {sent}, served {served}, refused or failed {failed}");
        if terminal {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }
}
