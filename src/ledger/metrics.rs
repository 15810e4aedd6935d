//! What the ledger counts. Labels are few and fixed: never an account, never a gateway.

use plimsoll_core::protocol::{FromGateway, FromLedger, NoKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What kind of message, no or failure.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    kind: &'static str,
}

/// The ledger's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Commits.
    pub commits: Counter,
    /// Commits that failed.
    pub failures: Counter,
    /// Events in a commit.
    pub batch: Histogram,
    /// Seconds that a commit took.
    pub seconds: Histogram,
    /// Messages from gateways, by kind.
    pub heard: Family<Kind, Counter>,
    /// Messages to gateways, by kind.
    pub said: Family<Kind, Counter>,
    /// Noes, by kind.
    pub noes: Family<Kind, Counter>,
    /// Usage rows: attempts that were admitted and have settled.
    pub rows: Counter,
    /// Asks that wait.
    pub waiting: Gauge,
    /// Gateways on a stream.
    pub gateways: Gauge,
    /// Reports whose rows did not sum to their totals.
    pub mismatches: Gauge,
    /// Streams that were cut because they did not take their answers.
    pub cut: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            commits: Counter::default(),
            failures: Counter::default(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            heard: Family::default(),
            said: Family::default(),
            noes: Family::default(),
            rows: Counter::default(),
            waiting: Gauge::default(),
            gateways: Gauge::default(),
            mismatches: Gauge::default(),
            cut: Counter::default(),
        }
    }
}

impl Metrics {
    /// Puts them into `registry`, under `plimsoll_ledger_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("plimsoll_ledger");
        registry.register("commits", "Commits", self.commits.clone());
        registry.register("commit_failures", "Commits that failed", self.failures.clone());
        registry.register("batch_events", "Events in one commit", self.batch.clone());
        registry.register("commit_seconds", "Duration of a commit", self.seconds.clone());
        registry.register("messages_heard", "Messages from gateways", self.heard.clone());
        registry.register("messages_said", "Messages to gateways", self.said.clone());
        registry.register("noes", "Asks that were refused", self.noes.clone());
        registry.register("usage_rows", "Attempts that were admitted and have settled", self.rows.clone());
        registry.register("asks_waiting", "Asks that wait", self.waiting.clone());
        registry.register("gateways", "Gateways on a stream", self.gateways.clone());
        registry.register(
            "report_mismatches",
            "Reports whose rows did not sum to their totals",
            self.mismatches.clone(),
        );
        registry.register(
            "streams_cut",
            "Streams cut because they did not take their answers",
            self.cut.clone(),
        );
    }

    /// All messages that gateways sent: the numerator of "ledger messages per request".
    #[must_use]
    pub fn messages_heard(&self) -> u64 {
        HEARD.iter().map(|kind| self.heard.get_or_create(&Kind { kind }).get()).sum()
    }

    pub(super) fn hear(&self, message: &FromGateway) {
        self.heard.get_or_create(&Kind { kind: message.kind() }).inc();
    }

    pub(super) fn say(&self, message: &FromLedger) {
        if let FromLedger::Answer(answer) = message {
            for no in &answer.noes {
                let kind = match no.kind {
                    NoKind::Exhausted => "exhausted",
                    NoKind::Contended => "contended",
                };
                self.noes.get_or_create(&Kind { kind }).inc();
            }
        }
        self.said.get_or_create(&Kind { kind: message.kind() }).inc();
    }
}

const HEARD: [&str; 7] = ["hello", "report", "ask", "cancel", "decisions", "policy_ack", "close"];
