//! `plimsoll-provider`: the provider simulator as a program.

use anyhow::Context;
use clap::Parser;
use plimsoll_sim::bill::Bill;
use plimsoll_sim::price::Prices;
use plimsoll_sim::provider::{Disconnect, Provider, Rate, Settings};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  plimsoll-provider --listen 127.0.0.1:8080 --price gpt-5.2=1.25,0.125,10 --bill bill.jsonl
  plimsoll-provider --first-token-ms 300 --per-token-us 12000 --fail-rate 0.01 --fail-status 503

  curl -s 127.0.0.1:8080/v1/chat/completions -H 'x-sim-output-tokens: 5' \\
    -d '{\"model\":\"gpt-5.2\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'
  curl -s 127.0.0.1:8080/bill/total

A request may order what it gets, whatever the flags say:
  x-sim-output-tokens N    output tokens of each choice (or metadata.sim_output_tokens in the body)
  x-sim-cached-tokens N    of the prompt, from the cache     x-sim-reasoning-tokens N   of each output
  x-sim-first-token-ms N   x-sim-per-token-us N              x-sim-tokens-per-event N   the pace
  x-sim-status N           fail with N, unbilled             x-sim-truncate 1           break off half-way
  x-sim-usage missing|wrong|right                            x-sim-ignore-max 1         run past max_tokens

Prompt tokens are the UTF-8 bytes of all messages' texts divided by 4, rounded up.";

/// A model provider that speaks OpenAI's Chat Completions, answers filler text, and keeps its own bill.
#[derive(Parser)]
#[command(name = "plimsoll-provider", after_help = EXAMPLES)]
struct Flags {
    /// Where to listen; port 0 lets the kernel pick. The address is the first line of the output.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// A model's price in USD per million tokens: MODEL=INPUT,CACHED_INPUT,OUTPUT; may be repeated.
    #[arg(long, value_name = "PRICE")]
    price: Vec<String>,
    /// A CSV of prices with the columns model, input, cached_input, output.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// The bill: a JSON line for each call, appended, written before the answer ends.
    #[arg(long, value_name = "FILE")]
    bill: Option<PathBuf>,
    /// Refuse calls without this key (authorization: Bearer KEY).
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Output tokens where a request asks for none.
    #[arg(long, default_value_t = 64, value_name = "N")]
    output_tokens: u64,
    /// Milliseconds to the first token.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    first_token_ms: u64,
    /// Microseconds from each token to the next.
    #[arg(long, default_value_t = 0, value_name = "US")]
    per_token_us: u64,
    /// Tokens in one event of a stream.
    #[arg(long, default_value_t = 8, value_name = "N")]
    tokens_per_event: u64,
    /// Share of calls that fail, unbilled, 0 to 1.
    #[arg(long, default_value = "0", value_parser = share, value_name = "SHARE")]
    fail_rate: Rate,
    /// The status of those that fail.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(400..600))]
    fail_status: u16,
    /// Share of answers that break off half-way.
    #[arg(long, default_value = "0", value_parser = share, value_name = "SHARE")]
    truncate_rate: Rate,
    /// Share of answers without usage.
    #[arg(long, default_value = "0", value_parser = share, value_name = "SHARE")]
    missing_usage_rate: Rate,
    /// Share of answers whose usage states half of the output that is billed.
    #[arg(long, default_value = "0", value_parser = share, value_name = "SHARE")]
    wrong_usage_rate: Rate,
    /// Percent of every prompt that comes from the cache.
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    cached_percent: u64,
    /// Percent of every output that is reasoning.
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    reasoning_percent: u64,
    /// Bill an abandoned call for what was sent, not for the whole answer.
    #[arg(long)]
    bill_what_was_sent: bool,
    /// The largest request body, in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    max_body_mib: usize,
    /// Seeds the draws of failures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads that serve.
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
}

/// A share of 0 to 1 with up to six decimals.
fn share(text: &str) -> Result<Rate, String> {
    let bad = || format!("\"{text}\" is not a share of 0 to 1, say 0.01");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 6 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let millionths: u32 = format!("{whole}{part:0<6}").parse().map_err(|_| bad())?;
    if millionths > 1_000_000 { Err(bad()) } else { Ok(Rate(millionths)) }
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let mut runtime = match flags.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().worker_threads(flags.threads.max(1)).build()?.block_on(serve(flags))
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let mut prices = Prices::default();
    if let Some(path) = &flags.prices {
        prices.read(path)?;
    }
    for price in &flags.price {
        prices.add(price)?;
    }
    let settings = Settings {
        prices,
        api_key: flags.api_key,
        output_tokens: flags.output_tokens,
        first_token: Duration::from_millis(flags.first_token_ms),
        per_token: Duration::from_micros(flags.per_token_us),
        tokens_per_event: flags.tokens_per_event.max(1),
        fail: flags.fail_rate,
        fail_status: flags.fail_status,
        truncate: flags.truncate_rate,
        missing_usage: flags.missing_usage_rate,
        wrong_usage: flags.wrong_usage_rate,
        cached_percent: flags.cached_percent,
        reasoning_percent: flags.reasoning_percent,
        disconnect: if flags.bill_what_was_sent { Disconnect::WhatWasSent } else { Disconnect::ToTheEnd },
        max_body: flags.max_body_mib << 20,
        seed: flags.seed,
    };
    let path = flags.bill.as_deref();
    let bill = Bill::open(path).with_context(|| format!("the bill {:?} can't be appended to", flags.bill))?;
    let provider = Provider::new(settings, bill);
    let listener = tokio::net::TcpListener::bind(flags.listen)
        .await
        .with_context(|| format!("can't listen on {}; choose another with --listen", flags.listen))?;
    println!("listening on http://{}", listener.local_addr()?);
    provider.clone().serve(listener, stopped()).await?;
    let total = provider.bill().total();
    println!(
        "billed {} calls, {} prompt and {} output tokens, {} nano-dollars",
        total.calls, total.prompt_tokens, total.output_tokens, total.nano_usd
    );
    Ok(())
}

/// Ctrl-C or SIGTERM.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut term)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _int = interrupt.recv() => {}
        _term = term.recv() => {}
    }
}
