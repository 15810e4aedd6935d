//! Budgets' statuses for people: a table that is redrawn on a terminal, plain lines elsewhere.

use crate::clients::Clients;
use plimsoll::ledger::Clock;
use plimsoll_api::AIBudget;
use plimsoll_api::budget::Enforcement;
use plimsoll_core::ids::UnixMs;
use plimsoll_sim::replay::{Progress, Report};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// One limit of one budget.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    budget: String,
    limit: String,
    used: String,
    of: String,
    percent: String,
    /// When its window ends, in Unix milliseconds; tells one window from the next.
    resets_at: Option<i64>,
    stage: String,
    enforced: String,
}

/// The rows of the operator's `/status`: they are its own table.
pub fn of_page(status: &Value) -> Option<Vec<Row>> {
    Vec::deserialize(&status["table"]).ok()
}

/// The rows of one budget's `.status`.
pub fn of_budget(budget: &AIBudget) -> Vec<Row> {
    let Some(status) = &budget.status else { return vec![] };
    let text = |name: &Option<String>| name.clone().unwrap_or_default();
    let name = format!("{}/{}", text(&budget.metadata.namespace), text(&budget.metadata.name));
    let counted = status.gateways.map(|count| format!("{}/{}", count.enforcing, count.total));
    let enforced = match budget.spec.enforcement {
        Enforcement::Enforce => counted.unwrap_or_default(),
        Enforcement::Observe => "observe".to_owned(),
    };
    let rows = status.limits.iter().map(|limit| Row {
        budget: name.clone(),
        limit: limit.name.clone(),
        used: limit.spent.clone(),
        of: limit.amount.clone(),
        percent: limit.used_percent.clone(),
        resets_at: limit.window.end.as_ref().map(|end| end.0.as_millisecond()),
        stage: limit.stages.last().map(|stage| format!("{:?}", stage.action)).unwrap_or_default(),
        enforced: enforced.clone(),
    });
    rows.collect()
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
    clients: Arc<Clients>,
    /// What others have to tell.
    news: Receiver<String>,
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

impl View {
    /// Nothing shown yet; what `clients` get is counted elsewhere, `news` are shown as they come, with the
    /// time since `started`.
    pub fn new(clients: Arc<Clients>, news: Receiver<String>, started: Instant) -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            drawn: 0,
            last_plain: None,
            seen: BTreeMap::new(),
            clients,
            news,
            started,
        }
    }

    /// Shows `rows`: redraws on a terminal; elsewhere a table every 10 s, and every block, reset and news.
    pub fn show(&mut self, rows: &[Row], progress: &Progress) {
        let (mut events, refused) = self.events(rows);
        events.extend(self.news.try_iter());
        let mut out = String::new();
        if self.terminal && self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
        }
        for event in events {
            out.push_str(&self.line(&event));
        }
        let due = self.last_plain.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
        if self.terminal || due {
            let table = table(rows, &refused, Clock::new(UnixMs(0)).now().0, progress);
            self.drawn = table.lines().count();
            self.last_plain = Some(Instant::now());
            out.push_str(&table);
        }
        print!("{out}");
        let _flushed = std::io::stdout().flush();
    }

    /// Tells the news that came since the last table.
    pub fn tell(&self) {
        for event in self.news.try_iter() {
            print!("{}", self.line(&event));
        }
    }

    fn line(&self, event: &str) -> String {
        format!("{:>6.1} s  {event}\n", self.started.elapsed().as_secs_f32())
    }

    /// What is new, and how many calls each limit refused in its window.
    fn events(&mut self, rows: &[Row]) -> (Vec<String>, Vec<u64>) {
        let (mut events, mut refused) = (Vec::new(), Vec::new());
        for row in rows {
            let key = (row.budget.clone(), row.limit.clone());
            let name = format!("{} {}", row.budget, row.limit);
            let total = self.clients.refused(&key).count;
            let seen = self.seen.entry(key).or_insert(Seen { window: row.resets_at, ..Seen::default() });
            if seen.window != row.resets_at {
                let freed = if seen.told { ", which ends the block" } else { "" };
                events.push(format!("{name}: a new window begins{freed}"));
                *seen = Seen { window: row.resets_at, before: total, told: false };
            }
            let now = total - seen.before;
            if now > 0 && !seen.told {
                events.push(format!("{name}: at the line: what no longer fits into {} is refused", row.of));
                seen.told = true;
            }
            refused.push(now);
        }
        (events, refused)
    }
}

fn table(rows: &[Row], refused: &[u64], now: i64, progress: &Progress) -> String {
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
