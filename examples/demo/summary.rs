//! The comparison at the end: what Plimsoll charged beside what the provider billed.

use crate::terms::History;
use plimsoll::ledger::Export;
use plimsoll_core::account::{AccountKey, Amount, Unit};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::judge::judge;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::protocol::Outcome;
use plimsoll_sim::bill::{self, Line};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::RangeInclusive;

/// What gateways counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Calls admitted and sent.
    pub sent: u64,
    /// Messages to the ledger.
    pub ledger_calls: u64,
}

/// `target/demo/summary.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Every enforcing budget in USD, in its window with the highest charge.
    pub budgets: Vec<Budget>,
    /// Messages from gateways to the ledger, by admitted call.
    pub ledger_calls_per_request: f64,
}

/// One budget in one window.
#[derive(Debug, Serialize)]
pub struct Budget {
    /// `namespace/name`.
    pub name: String,
    #[serde(skip)]
    limit: String,
    /// The amount, the last that was enforced.
    pub amount_usd: NanoUsd,
    /// What the ledger charged.
    pub charged_usd: NanoUsd,
    /// What the provider billed for the calls charged to it.
    pub billed_usd: NanoUsd,
    /// What of either is above the highest amount that was enforced in its window.
    pub overspend_usd: NanoUsd,
    /// Charged by amount.
    pub used_share: f64,
    /// Calls that matched it.
    pub requests: u64,
    /// Those refused because it was short.
    pub refused: u64,
    /// Those of them that would have fitted.
    pub wrongly_refused: u64,
}

impl Summary {
    /// From the ledger's export, the provider's bill and the terms that were in force.
    pub fn new(history: &History, export: &Export, bill: &[Line], counted: Counted) -> Self {
        let billed = bill::by_request(bill);
        let rows: Vec<_> = export.rows.iter().map(|(_, row)| row.clone()).collect();
        let decisions: Vec<_> = export.decisions.iter().map(|(_, decision)| decision.clone()).collect();
        let wrong = judge(&rows, &decisions, &history.amounts()).wrong;
        // By budget, the account with the highest charge.
        let mut budgets: BTreeMap<String, Budget> = BTreeMap::new();
        for account in accounts(export) {
            let Some(amounts) = history.amounts_at(&account.limit, &times(account, export)) else { continue };
            if account.limit.unit != Unit::Usd {
                continue;
            }
            let wrong = wrong.iter().filter(|wrong| wrong.account == *account).count();
            let budget = Budget::of(account, amounts, export, &billed, wrong);
            let other = budgets.get(&budget.name);
            if other.is_none_or(|other| other.charged_usd < budget.charged_usd) {
                budgets.insert(budget.name.clone(), budget);
            }
        }
        Self {
            budgets: budgets.into_values().collect(),
            ledger_calls_per_request: ratio(counted.ledger_calls, counted.sent),
        }
    }
}

/// Every account that something was charged to or refused for.
fn accounts(export: &Export) -> Vec<&AccountKey> {
    let charged = export.rows.iter().flat_map(|(_, row)| &row.accounts);
    let refused = export.decisions.iter().flat_map(|(_, decision)| &decision.accounts);
    let mut all: Vec<_> = charged.chain(refused).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// From the first call that was charged to `account`, or refused for it, to the end of the last one.
fn times(account: &AccountKey, export: &Export) -> RangeInclusive<UnixMs> {
    let charged = export.rows.iter().map(|(_, row)| (&row.accounts, row.admitted_at, row.settled_at));
    let refused = export.decisions.iter().map(|(_, d)| (&d.accounts, d.answered_at, d.answered_at));
    let all = charged.chain(refused).filter(|(accounts, ..)| accounts.contains(account));
    all.fold(UnixMs::NEVER..=UnixMs(i64::MIN), |times, (_, from, to)| {
        from.min(*times.start())..=to.max(*times.end())
    })
}

impl Budget {
    fn of(
        account: &AccountKey,
        (latest, highest): (Amount, Amount),
        export: &Export,
        billed: &HashMap<&str, i64>,
        wrongly_refused: usize,
    ) -> Self {
        let rows = || export.rows.iter().map(|(_, row)| row).filter(|row| row.accounts.contains(account));
        let decisions = || export.decisions.iter().map(|(_, d)| d).filter(|d| d.accounts.contains(account));
        let refused = || decisions().filter(|d| d.account.as_ref() == Some(account));
        let amount = NanoUsd(latest.0);
        let charged = NanoUsd(rows().map(|row| row.charge.usd.0).sum());
        let billed_for = |id: &str| billed.get(id).copied().unwrap_or(0);
        let billed = NanoUsd(rows().map(|row| billed_for(&row.request_id)).sum());
        // What was charged before an amount fell stays charged.
        let overspend = charged.max(billed).saturating_sub(NanoUsd(highest.0)).max(NanoUsd::ZERO);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Self {
            name: account.limit.budget.to_string(),
            limit: account.limit.limit.clone(),
            amount_usd: amount,
            charged_usd: charged,
            billed_usd: billed,
            overspend_usd: overspend,
            used_share: ratio(charged.0.unsigned_abs(), amount.0.unsigned_abs()),
            requests: count(rows().count() + decisions().count()),
            refused: count(refused().count()),
            wrongly_refused: count(wrongly_refused),
        }
    }
}

#[expect(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    reason = "a share for people; decides nothing"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    // Four decimals are what is read.
    (part as f64 / (whole.max(1)) as f64 * 10_000.0).round() / 10_000.0
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<26} {:<7} {:>9} {:>13} {:>13} {:>9} {:>7} {:>8} {:>7} {:>7}",
            "BUDGET",
            "LIMIT",
            "OF $",
            "CHARGED $",
            "BILLED $",
            "OVERSPEND",
            "USED",
            "REQUESTS",
            "REFUSED",
            "WRONGLY"
        )?;
        for budget in &self.budgets {
            let Budget { name, limit, amount_usd, charged_usd, billed_usd, overspend_usd, .. } = budget;
            // NanoUsd writes itself without padding.
            let [amount, charged, billed, overspend] =
                [amount_usd, charged_usd, billed_usd, overspend_usd].map(ToString::to_string);
            let used = percent(budget.used_share);
            let Budget { requests, refused, wrongly_refused, .. } = budget;
            writeln!(
                f,
                "{name:<26} {limit:<7} {amount:>9} {charged:>13} {billed:>13} {overspend:>9} {used:>7} \
                 {requests:>8} {refused:>7} {wrongly_refused:>7}"
            )?;
        }
        writeln!(f, "Ledger calls per admitted request: {}", self.ledger_calls_per_request)
    }
}

#[expect(clippy::float_arithmetic, reason = "a share for people")]
fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Whether what was promised was kept.
#[derive(Debug)]
pub struct Verdict {
    overspent: Vec<String>,
    /// Completed calls that were charged something else than was billed.
    differing: Vec<String>,
    completed: usize,
    /// Billed calls that the ledger knows nothing of.
    unknown: usize,
    /// Budgets of which more than one call in a thousand was refused although it fitted.
    wrongly: Vec<String>,
    /// Changes that did not come about, in words.
    changes: Vec<String>,
}

/// Compares every completed call with its bill; `changes` are those that did not come about.
pub fn verdict(summary: &Summary, export: &Export, bill: &[Line], changes: Vec<String>) -> Verdict {
    let billed = bill::by_request(bill);
    let completed = || export.rows.iter().map(|(_, row)| row).filter(|row| row.outcome == Outcome::Completed);
    let differs = |id: &str, charged: NanoUsd| billed.get(id).copied().unwrap_or(0) != charged.0;
    let known: std::collections::HashSet<&str> =
        export.rows.iter().map(|(_, row)| row.request_id.as_str()).collect();
    Verdict {
        overspent: summary
            .budgets
            .iter()
            .filter(|b| b.overspend_usd > NanoUsd::ZERO)
            .map(|b| b.name.clone())
            .collect(),
        differing: completed()
            .filter(|row| differs(&row.request_id, row.charge.usd))
            .map(|row| format!("{} charged {}", row.request_id, row.charge.usd))
            .collect(),
        completed: completed().count(),
        unknown: billed.keys().filter(|id| !known.contains(*id)).count(),
        wrongly: summary
            .budgets
            .iter()
            .filter(|b| b.wrongly_refused * 1000 > b.requests)
            .map(|b| b.name.clone())
            .collect(),
        changes,
    }
}

impl Verdict {
    /// No overspend, every completed call charged as billed, hardly any refused that fitted, every change
    /// enforced.
    pub fn passed(&self) -> bool {
        let Self { overspent, differing, completed, unknown, wrongly, changes } = self;
        [overspent, differing, wrongly, changes].iter().all(|wrong| wrong.is_empty())
            && *unknown == 0
            && *completed > 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { overspent, differing, completed, unknown, wrongly, changes } = self;
        if self.passed() {
            return write!(
                f,
                "No budget was overspent; {completed} completed calls, each charged as the provider billed it."
            );
        }
        if *completed == 0 {
            writeln!(f, "FAILED: no call was completed")?;
        }
        for name in overspent {
            writeln!(f, "FAILED: {name} was overspent")?;
        }
        for name in wrongly {
            writeln!(f, "FAILED: {name} refused more than 0.1 % of its calls although they fitted")?;
        }
        for change in changes {
            writeln!(f, "FAILED: {change}")?;
        }
        for what in differing.iter().take(10) {
            writeln!(f, "FAILED: call {what}, which is not what the provider billed")?;
        }
        if *unknown > 0 {
            writeln!(f, "FAILED: {unknown} billed calls are not in the ledger")?;
        }
        write!(f, "{completed} completed calls, {} differ", differing.len())
    }
}
