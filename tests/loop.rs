//! A real operator, real Envoys, a provider with its own bill: budgets under a rush, kills and outages.

#![allow(clippy::unwrap_used, missing_docs)]
#![allow(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    reason = "shares for people; decides nothing"
)]

mod support;

use plimsoll_sim::replay::Pace;
use plimsoll_sim::trace::Call;
use std::time::{Duration, Instant};
use support::{Loop, budget};

const USD: i64 = 1_000_000_000;

/// `weights` of features; every call asks for 600 output tokens or so, half of them streamed.
fn calls(weights: &[(&str, usize)]) -> Vec<Call> {
    let features = weights.iter().flat_map(|(name, weight)| std::iter::repeat_n(*name, *weight));
    let mut calls: Vec<Call> = features
        .enumerate()
        .flat_map(|(of, feature)| {
            (0..50).map(move |n: u64| Call {
                at: Duration::from_millis(n),
                feature: feature.into(),
                user: format!("user-{}", n % 7).as_str().into(),
                model: "assistant".into(),
                prompt_tokens: 100 + (n * 37 + of as u64 * 11) % 400,
                output_tokens: 300 + (n * 53) % 600,
                stream: n.is_multiple_of(2),
            })
        })
        .collect();
    // Mixed, the same in every run.
    calls.sort_by_key(|call| (call.prompt_tokens * 7919 + call.output_tokens) % 1009);
    calls
}

fn rush(gateways: usize) {
    let amounts = [("instant", USD / 10), ("one", USD), ("fifty", 50 * USD), ("fivehundred", 500 * USD)];
    let budgets: String = ["0.1", "1", "50", "500"]
        .iter()
        .zip(&amounts)
        .map(|(amount, (name, _))| budget(name, amount, "Total"))
        .collect();
    let this = Loop::start(gateways, &budgets, "");
    let calls = calls(&[("instant", 1), ("one", 1), ("fifty", 3), ("fivehundred", 20)]);
    let mut plan = this.plan(calls, Pace::Closed { clients: 200 });
    plan.duration = Some(Duration::from_secs(240));
    let started = Instant::now();
    let (stop, progress, task) = this.send(plan);
    // Until the largest is as good as spent: its refusals are all that happens any more.
    let mut last = (0, Instant::now());
    while !task.is_finished() {
        std::thread::sleep(Duration::from_millis(200));
        let served = progress.served.load(std::sync::atomic::Ordering::Relaxed);
        if served != last.0 {
            last = (served, Instant::now());
        } else if last.1.elapsed() > Duration::from_secs(8) {
            stop.stop();
        }
    }
    let report = this.runtime.block_on(task).unwrap();
    let books = this.close();
    books.check_bill();
    let lines = books.budgets(&amounts);
    let admitted = books.rows().count();
    eprintln!(
        "{gateways} gateways, 200 clients, {:.0} s, {:?}",
        started.elapsed().as_secs_f32(),
        report.statuses
    );
    for (name, line) in &lines {
        eprintln!(
            "  {name:<12} amount {:>12} charged {:>12} billed {:>12} used {:>6.2} % requests {:>6} refused {:>6} wrong {}",
            line.amount,
            line.charged,
            line.billed,
            line.charged as f64 * 100.0 / line.amount as f64,
            line.requests,
            line.refused,
            line.wrong
        );
    }
    eprintln!(
        "  ledger messages {} for {admitted} calls: {:.4}",
        books.messages,
        books.messages as f64 / admitted as f64
    );
    assert_eq!(lines.len(), amounts.len());
    let wrong: usize = lines.values().map(|line| line.wrong).sum();
    let requests: usize = lines.values().map(|line| line.requests).sum();
    assert!(wrong * 1000 <= requests, "{wrong} of {requests} were wrongly refused");
    // B >= 100 (N w + rate latency w): 200 calls in flight at most, each of at most about $0.025.
    let large = &lines["fivehundred"];
    if 500.0 >= 100.0 * (gateways as f64 * 0.025 + 200.0 * 20.0 / 25.0 * 0.025) {
        assert!(
            large.charged * 100 >= large.amount * 99,
            "only {} of {} was used",
            large.charged,
            large.amount
        );
    }
    for status in report.statuses.keys() {
        assert!([200, 429].contains(status), "a call was answered {status}: {:?}", report.statuses);
    }
}

#[test]
fn one_gateway_holds_every_budget_against_200_clients() {
    rush(1);
}

#[test]
fn two_gateways_hold_every_budget_against_200_clients() {
    rush(2);
}

#[test]
fn ten_gateways_hold_every_budget_against_200_clients() {
    rush(10);
}

#[test]
fn operator_and_gateways_killed_again_and_again_lose_nothing_and_count_nothing_twice() {
    let amounts = [("steady", 200 * USD), ("small", 2 * USD)];
    let budgets = budget("steady", "200", "Total") + &budget("small", "2", "Total");
    let mut this = Loop::start(2, &budgets, "");
    let seed = std::env::var("PLIMSOLL_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("seed {seed} (PLIMSOLL_SEED repeats it)");
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (stop, progress, task) =
        this.send(this.plan(calls(&[("steady", 10), ("small", 1)]), Pace::Closed { clients: 60 }));
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(300 + draw(2_000)));
        match draw(3) {
            0 => {
                this.stack.kill_operator();
                std::thread::sleep(Duration::from_millis(draw(1_500)));
                this.stack.start_operator().unwrap();
            }
            which => {
                let which = usize::try_from(which).unwrap() - 1;
                this.stack.gateway(which).unwrap().kill();
                std::thread::sleep(Duration::from_millis(draw(500)));
                this.stack.spawn_gateway(which).unwrap();
                this.stack.wait_gateway(which).unwrap();
            }
        }
    }
    std::thread::sleep(Duration::from_secs(2));
    stop.stop();
    let report = this.runtime.block_on(task).unwrap();
    assert!(progress.served.load(std::sync::atomic::Ordering::Relaxed) > 1_000);
    let books = this.close();
    eprintln!("{:?}; {:?}", report.statuses, books.budgets(&amounts));
    books.check_bill();
}

#[test]
fn an_operator_that_is_away_costs_no_call() {
    let seconds =
        std::env::var("PLIMSOLL_AWAY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    let mut this = Loop::start(2, &budget("steady", "5000", "Month"), &format!("rideThrough: {seconds}s"));
    // 40 calls a second, each reserving some $0.02: $0.8 a second.
    let mut calls = calls(&[("steady", 1)]);
    for (n, call) in calls.iter_mut().enumerate() {
        call.at = Duration::from_millis(25 * n as u64);
    }
    let (stop, progress, task) = this.send(this.plan(calls, Pace::Open { speed: 1.0, concurrency: 500 }));
    std::thread::sleep(Duration::from_secs(40));
    this.stack.kill_operator();
    let before = progress.served.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(seconds));
    let served = progress.served.load(std::sync::atomic::Ordering::Relaxed) - before;
    let failed = progress.failed.load(std::sync::atomic::Ordering::Relaxed);
    this.stack.start_operator().unwrap();
    stop.stop();
    let report = this.runtime.block_on(task).unwrap();
    eprintln!("operator away for {seconds} s: {served} calls served, {failed} failed; {:?}", report.statuses);
    assert!(served >= seconds * 36, "only {served} calls were served in {seconds} s");
    assert_eq!(failed, 0, "{:?}", report.refusals);
    let books = this.close();
    books.check_bill();
}

#[test]
fn a_window_that_ends_under_load_costs_no_call() {
    let this = Loop::start(2, &budget("steady", "3000", "Minute"), "");
    let plan = this.plan(calls(&[("steady", 1)]), Pace::Closed { clients: 40 });
    let (stop, _, task) = this.send(plan);
    // Across one rollover, wherever in the minute it starts.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    std::thread::sleep(Duration::from_secs(60 - now % 60 + 5));
    stop.stop();
    let report = this.runtime.block_on(task).unwrap();
    let books = this.close();
    books.check_bill();
    let windows: std::collections::BTreeSet<_> =
        books.rows().flat_map(|row| &row.accounts).map(|account| account.start).collect();
    eprintln!("{:?} over {} windows", report.statuses, windows.len());
    assert!(windows.len() >= 2);
    assert!(
        report.statuses.keys().all(|status| *status == 200),
        "{:?} {:?}",
        report.statuses,
        report.refusals
    );
}
