//! The operator's status for people: a table that is redrawn on a terminal, plain lines elsewhere.

use plimsoll_sim::replay::{Answer, Progress, Report};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One limit of one budget: a row of `/status`' own table.
struct Row<'a> {
    budget: &'a str,
    limit: &'a str,
    used: &'a str,
    of: &'a str,
    percent: &'a str,
    /// When its window ends, in Unix milliseconds; tells one window from the next.
    resets_at: Option<i64>,
    stage: &'a str,
    enforced: &'a str,
}

fn rows(status: &Value) -> Vec<Row<'_>> {
    let table = status["table"].as_array().map(Vec::as_slice).unwrap_or_default();
    table.iter().map(row).collect()
}

fn row(row: &Value) -> Row<'_> {
    let text = |name: &str| row[name].as_str().unwrap_or_default();
    Row {
        budget: text("budget"),
        limit: text("limit"),
        used: text("used"),
        of: text("of"),
        percent: text("percent"),
        resets_at: row["resetsAt"].as_i64(),
        stage: text("stage"),
        enforced: text("enforced"),
    }
}

fn resets_in(end: Option<i64>, now: i64) -> String {
    let Some(end) = end else { return "never".into() };
    let seconds = (end - now).max(0) / 1000;
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min", seconds / 60),
        6000..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Whether every budget is in force at every gateway.
pub fn enforced_everywhere(status: &Value) -> Result<(), String> {
    let Some(budgets) = status["budgets"].as_object().filter(|budgets| !budgets.is_empty()) else {
        return Err("no budgets yet".into());
    };
    for (name, budget) in budgets {
        let gateways = &budget["gateways"];
        let (enforcing, total) = (gateways["enforcing"].as_u64(), gateways["total"].as_u64());
        if enforcing != total || total.unwrap_or(0) == 0 {
            return Err(format!("{name}: {} of {} gateways", gateways["enforcing"], gateways["total"]));
        }
    }
    Ok(())
}

/// The sum of a counter's samples in Prometheus' text format.
pub fn metric(page: &str, name: &str) -> u64 {
    page.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// What is shown, and what was shown last.
pub struct View {
    terminal: bool,
    drawn: usize,
    last_plain: Option<Instant>,
    /// By budget and limit.
    seen: BTreeMap<(String, String), Seen>,
    refusals: Arc<Refusals>,
    started: Instant,
}

/// What was seen of a limit.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// When its window ends.
    window: Option<i64>,
    /// Refusals before this window.
    before: u64,
    /// Whether this window's block was told.
    told: bool,
}

/// Refusals that clients got, by the budget and limit that answers name.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<(String, String), u64>>);

impl Refusals {
    /// Counts an answer, if it is a refusal that names a limit.
    pub fn note(&self, answer: &Answer) {
        if let (Some(budget), Some(limit)) = (&answer.said.budget, &answer.said.limit) {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry((budget.clone(), limit.clone())).or_default() += 1;
        }
    }

    fn of(&self, key: &(String, String)) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(0)
    }
}

impl View {
    /// Nothing shown yet; `refusals` are counted elsewhere.
    pub fn new(refusals: Arc<Refusals>) -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            drawn: 0,
            last_plain: None,
            seen: BTreeMap::new(),
            refusals,
            started: Instant::now(),
        }
    }

    /// Shows `status`: redraws on a terminal; elsewhere a table every 10 s, and every block and reset.
    pub fn show(&mut self, status: &Value, progress: &Progress) {
        let rows = rows(status);
        let (events, refused) = self.events(&rows);
        let mut out = String::new();
        if self.terminal && self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
        }
        for event in events {
            let _ = writeln!(out, "{:>6.1} s  {event}", self.started.elapsed().as_secs_f32());
        }
        let due = self.last_plain.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
        if self.terminal || due {
            let table = table(&rows, &refused, status["time"].as_i64().unwrap_or(0), progress);
            self.drawn = table.lines().count();
            self.last_plain = Some(Instant::now());
            out.push_str(&table);
        }
        print!("{out}");
        let _flushed = std::io::stdout().flush();
    }

    /// What is new, and how many calls each limit refused in its window.
    fn events(&mut self, rows: &[Row<'_>]) -> (Vec<String>, Vec<u64>) {
        let (mut events, mut refused) = (Vec::new(), Vec::new());
        for row in rows {
            let key = (row.budget.to_owned(), row.limit.to_owned());
            let name = format!("{} {}", row.budget, row.limit);
            let total = self.refusals.of(&key);
            let seen = self.seen.entry(key).or_insert(Seen { window: row.resets_at, ..Seen::default() });
            if seen.window != row.resets_at {
                let freed = if seen.told { ", which ends the block" } else { "" };
                events.push(format!("{name}: a new window begins{freed}"));
                *seen = Seen { window: row.resets_at, before: total, told: false };
            }
            let now = total - seen.before;
            if now > 0 && !seen.told {
                events.push(format!(
                    "{name}: at the line, {} of {}: what no longer fits is refused",
                    row.used, row.of
                ));
                seen.told = true;
            }
            refused.push(now);
        }
        (events, refused)
    }
}

fn table(rows: &[Row<'_>], refused: &[u64], now: i64, progress: &Progress) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\n{:<28} {:<7} {:>9} {:>9} {:>6} {:>9} {:>8}  {:<7} {:>8}",
        "BUDGET", "LIMIT", "USED", "OF", "%", "RESETS IN", "REFUSED", "STAGE", "ENFORCED"
    );
    for (row, refused) in rows.iter().zip(refused) {
        let Row { budget, limit, used, of, percent, stage, enforced, .. } = row;
        let resets_in = resets_in(row.resets_at, now);
        let _ = writeln!(
            out,
            "{budget:<28} {limit:<7} {used:>9} {of:>9} {percent:>6} {resets_in:>9} {refused:>8}  {stage:<7} {enforced:>8}"
        );
    }
    let [sent, served, failed] =
        [&progress.sent, &progress.served, &progress.failed].map(|count| count.load(Ordering::Relaxed));
    let _ = writeln!(out, "calls: {sent} sent, {served} served, {failed} refused");
    out
}

/// What the clients saw.
pub fn replayed(report: &Report) -> String {
    let mut out = format!("Clients: {} calls, {} served", report.calls, report.served);
    for (code, count) in &report.refusals {
        let _ = write!(out, ", {count} {code}");
    }
    for (end, count) in &report.broken {
        let _ = write!(out, ", {count} {end:?}");
    }
    out
}
