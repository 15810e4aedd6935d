//! What the operator tells about itself and its objects: one report, as a table or as JSON.
//!
//! A report is made by the controller from what was applied; nothing is computed here.

pub mod table;

use crate::source::Fault;
use plimsoll_api::shared::Time;
use plimsoll_api::{AIBudgetStatus, ModelBackendStatus, ModelRouteStatus, ObjectId};
use plimsoll_core::account::Unit;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_plan::Event;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything at one instant.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The ledger's time, in Unix milliseconds.
    pub time: UnixMs,
    /// How the ledger is: `Serving`, or why it grants nothing.
    pub ledger: Ledger,
    /// What can't be read or used now; the last good state stays in force.
    pub faults: Vec<Fault>,
    /// By Envoy's node id.
    pub gateways: BTreeMap<String, Gateway>,
    /// One row a limit, for people; by budget.
    #[serde(serialize_with = "flat")]
    pub table: BTreeMap<ObjectName, Arc<Vec<Row>>>,
    /// Statuses of all budgets; shared with the report before where they are the same.
    pub budgets: BTreeMap<ObjectName, Arc<AIBudgetStatus>>,
    /// Statuses of all routes.
    pub routes: BTreeMap<ObjectName, ModelRouteStatus>,
    /// Statuses of all backends.
    pub backends: BTreeMap<ObjectName, ModelBackendStatus>,
}

fn flat<S: Serializer>(
    table: &BTreeMap<ObjectName, Arc<Vec<Row>>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(table.values().flat_map(|rows| rows.iter()))
}

impl Report {
    /// The table's rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.table.values().flat_map(|rows| rows.iter())
    }
}

/// How the ledger is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// `Serving`, `LedgerWentBack` or `LedgerFailed`.
    pub state: String,
    /// What is wrong and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { state: "Serving".to_owned(), message: None }
    }
}

/// One gateway that is connected, or not yet given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Whether its ledger stream is up.
    pub ledger: bool,
    /// Since when it is not, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger_down_since: Option<Time>,
    /// Whether its xDS stream is up.
    pub xds: bool,
    /// Since when it is not, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xds_down_since: Option<Time>,
    /// Policy objects that it holds in their current version.
    pub policy: usize,
    /// Policy objects that there are.
    pub policy_total: usize,
    /// The first of those that it does not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_lacking: Vec<String>,
    /// Policy that it does not understand, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub policy_rejected: BTreeMap<String, String>,
    /// Clusters that its Envoy holds in their current version, their keys too.
    pub clusters: usize,
    /// Clusters that there are.
    pub clusters_total: usize,
    /// Clusters and keys that its Envoy rejects, in Envoy's words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envoy_rejected: BTreeMap<String, String>,
}

/// One limit of one budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `finance/all`.
    pub budget: String,
    /// The limit.
    pub limit: String,
    /// What it counts.
    pub unit: Unit,
    /// Settled and unaccounted, as shown: `4512.38`.
    pub used: String,
    /// The amount, as shown.
    pub of: String,
    /// The share used, `90.2`.
    pub percent: String,
    /// When the window ends; absent for Total.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<UnixMs>,
    /// The last stage reached; empty for none.
    pub stage: String,
    /// `3/3` gateways, or `observe`.
    pub enforced: String,
}

/// Where reports go beside HTTP: a terminal, or the status of objects in an API server.
pub trait Sink: Send {
    /// A new report; at most one a second.
    fn put(&mut self, report: &Arc<Report>);

    /// Something happened to `object`.
    fn tell(&mut self, object: &ObjectId, event: &Event) {
        let _ = (object, event);
    }
}

/// Prints the rows that changed.
#[derive(Debug, Default)]
pub struct Printer {
    shown: BTreeMap<ObjectName, Arc<Vec<Row>>>,
    faults: Vec<Fault>,
}

/// The most rows that are printed at once: a table of 10,000 budgets is no news.
const MAX_ROWS: usize = 40;

impl Sink for Printer {
    fn put(&mut self, report: &Arc<Report>) {
        use std::io::Write;
        let text = self.news(report);
        if !text.is_empty() {
            // A closed pipe must not end the operator.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
        }
    }
}

impl Printer {
    /// What changed since the last report, as text; empty if nothing did.
    pub fn news(&mut self, report: &Report) -> String {
        let mut changed: Vec<Row> = Vec::new();
        for (budget, rows) in &report.table {
            let before = self.shown.get(budget);
            if before.is_some_and(|before| Arc::ptr_eq(before, rows)) {
                continue;
            }
            let is_new = |row: &&Row| !before.is_some_and(|before| before.contains(row));
            changed.extend(rows.iter().filter(is_new).cloned());
        }
        let mut text = String::new();
        if !changed.is_empty() {
            let more = changed.len().saturating_sub(MAX_ROWS);
            changed.truncate(MAX_ROWS);
            text.push_str(&table::render(&changed, report.time));
            if more > 0 {
                text.push_str(&format!("and {more} more\n"));
            }
        }
        if self.faults != report.faults {
            for fault in report.faults.iter().take(MAX_ROWS) {
                text.push_str(&format!("! {fault}\n"));
            }
            if report.faults.is_empty() {
                text.push_str("everything can be read again\n");
            }
        }
        self.faults.clone_from(&report.faults);
        self.shown.clone_from(&report.table);
        text
    }
}
