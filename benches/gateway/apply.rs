//! From a manifest written to its effect at every gateway, as a client sees it.
//!
//! A budget of next to nothing is pointed at the probe's feature and away again; each gateway is asked
//! every few milliseconds until it refuses, or serves, as the manifest says. No status is believed.

use plimsoll_sim::harness::http;
use plimsoll_sim::harness::stack::Stack;
use serde_json::Value;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Changes of each size; the 99th percentile of so few is near their maximum.
const CHANGES: usize = 40;

/// Whether every budget is in force at every gateway.
pub fn enforced(status: &Value) -> Result<(), String> {
    let budgets = status["budgets"].as_object().filter(|all| !all.is_empty()).ok_or("no budgets")?;
    let held = |budget: &Value| {
        budget["gateways"]["total"] != 0 && budget["gateways"]["enforcing"] == budget["gateways"]["total"]
    };
    match budgets.iter().filter(|(_, budget)| !held(budget)).count() {
        0 => Ok(()),
        missing => Err(format!("{missing} of {} budgets are not in force everywhere", budgets.len())),
    }
}

/// Median and 99th percentile with `budgets` budgets loaded, in milliseconds.
pub fn measure(stack: &mut Stack, budgets: usize) -> anyhow::Result<[f64; 2]> {
    let mut bulk = String::new();
    for number in 1..budgets {
        write!(
            bulk,
            "---\napiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {{name: bulk-{number}, namespace: finance}}\n\
             spec: {{match: {{features: [bulk-{number}]}}, limits: [{{name: month, amount: 100}}]}}\n"
        )?;
    }
    if !bulk.is_empty() {
        stack.write("bulk.yaml", &bulk)?;
    }
    point_at(stack, "nobody")?;
    stack.wait_status("the budgets in force", |status| {
        let loaded = status["budgets"].as_object().map_or(0, serde_json::Map::len);
        if loaded == budgets { enforced(status) } else { Err(format!("{loaded} of {budgets} budgets")) }
    })?;
    until(stack, 200)?;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let (feature, status) = if change % 2 == 0 { ("probe", 429) } else { ("nobody", 200) };
        let written = Instant::now();
        point_at(stack, feature)?;
        until(stack, status)?;
        took.push(written.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() * percent).div_ceil(100) - 1];
    Ok([at(50), at(99)].map(|ms| (ms * 10.0).round() / 10.0))
}

fn point_at(stack: &Stack, feature: &str) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: plimsoll.dev/v1alpha1\nkind: AIBudget\nmetadata: {{name: probe, namespace: finance}}\n\
         spec: {{match: {{features: [{feature}]}}, limits: [{{name: month, amount: \"0.000000001\"}}]}}\n"
    );
    Ok(stack.write("probe.yaml", &text)?)
}

/// Asks every gateway until it answers with `status`.
fn until(stack: &Stack, status: u16) -> anyhow::Result<()> {
    let body = br#"{"model":"assistant","max_tokens":1,"messages":[{"role":"user","content":"ready?"}]}"#;
    let headers = [("content-type", "application/json"), ("x-plimsoll-feature", "probe")];
    for gateway in stack.gateways() {
        let started = Instant::now();
        loop {
            let page =
                http::request(("127.0.0.1", gateway.port), "POST", "/v1/chat/completions", &headers, body)?;
            if page.status == status {
                break;
            }
            anyhow::ensure!(
                started.elapsed() < Duration::from_secs(30),
                "{} still answers {} and not {status}: {}",
                gateway.id,
                page.status,
                page.body
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}
