//! The filter in a real Envoy: what passes, what is counted, what is refused, and what survives.
#![allow(missing_docs, clippy::unwrap_used)]

mod calls;
mod client;
mod life;
mod log;
mod outage;
mod policy;
mod refusals;
#[path = "../world/mod.rs"]
mod world;

use plimsoll_core::account::{Charge, Unit};
use plimsoll_core::ids::ObjectName;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{
    Budget, Enforcement, Limit, Pattern, PolicyKey, PolicyObject, PolicyVersion, WindowBounds,
};
use plimsoll_core::protocol::Outcome;
use plimsoll_core::window::WindowSpec;
use plimsoll_sim::harness::wait_until;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use world::ledger::now;
use world::provider::{DONE, EVENT, JSON, USAGE_EVENT};
use world::{SOON, World, budget, policy, raw};

const HELLO: &str = r#"{"model":"assistant","messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str = r#"{"model":"assistant","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
/// 11 input tokens at 1, 7 output tokens at 4.
const COST: i64 = 11 + 7 * 4;

fn enforcing(amount: i64) -> World {
    World::new(policy(Enforcement::Enforce, &[budget(amount)]))
}

/// Sends a call whose answer is read later.
fn send(world: &World, test: &str, body: &str) -> TcpStream {
    let mut stream = world.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\nx-test: {test}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

/// Waits until the provider has got so many calls.
fn wait_got(world: &World, count: usize) {
    let got = wait_until("calls at the provider", SOON, || {
        let got = world.provider.got().len();
        if got >= count { Ok(()) } else { Err(format!("{got} of {count}")) }
    });
    got.unwrap_or_else(|error| panic!("{error}\n{}", world.log_text()));
}

/// Waits until a metric has this value.
fn wait_metric(world: &World, name: &str, value: &str) {
    let metric = wait_until(name, SOON, || {
        let line = world.metric(name);
        if line.ends_with(&format!(" {value}")) { Ok(()) } else { Err(line) }
    });
    metric.unwrap_or_else(|error| panic!("{error}\n{}", world.log_text()));
}

fn charge(nanos: i64) -> Charge {
    Charge { usd: NanoUsd(nanos), tokens: 18, requests: 1 }
}
