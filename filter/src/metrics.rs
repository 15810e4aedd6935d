//! The gateway's metrics. Envoy's own counters vanish with every new filter configuration, and cost more.

use plimsoll_core::protocol::Outcome;
use plimsoll_core::settle::Settled;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Mutex;

/// One label with one of a few values that this build knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// The value.
    pub kind: &'static str,
}

/// All of them. What a worker touches for each call is a plain counter.
#[derive(Debug)]
pub struct Metrics {
    /// Calls that were sent to a backend and metered.
    pub sent: Counter,
    /// Of these, calls that no budget matches, enforcing or observing.
    pub unbudgeted: Counter,
    /// Requests that passed unmetered.
    pub passed: Counter,
    /// Calls whose own output bound was lowered.
    pub lowered: Counter,
    /// Refusals by code.
    pub refused: Family<Kind, Counter>,
    /// Calls that had to wait for the ledger.
    pub paused: Counter,
    /// Calls that wait now.
    pub waiting: Gauge,
    /// Settlements by outcome.
    pub settled: Family<Kind, Counter>,
    /// Those of them that completed: nearly all, so they are not looked up.
    pub completed: Counter,
    /// Tokens, without output.
    pub input_tokens: Counter,
    /// Output tokens.
    pub output_tokens: Counter,
    /// Nano-dollars.
    pub cost: Counter,
    /// Messages to the ledger by kind.
    pub said: Family<Kind, Counter>,
    /// Messages from the ledger by kind.
    pub heard: Family<Kind, Counter>,
    /// 1 while a ledger answers.
    pub connected: Gauge,
    /// Writes to the admission log that failed.
    pub log_failures: Counter,
    /// Settlements that wait for the log.
    pub log_delayed: Gauge,
    /// Segments of the log.
    pub log_segments: Gauge,
    /// Records of the log that the ledger has not stored.
    pub log_unstored: Gauge,
    /// Decision records dropped.
    pub decisions_dropped: Counter,
    /// Policy objects that this build did not understand.
    pub policy_rejected: Counter,
    registry: Mutex<Registry>,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("plimsoll_gateway");
        macro_rules! register {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        let sent: Counter = register!("sent", "Calls sent to a backend and metered");
        let unbudgeted: Counter = register!("unbudgeted", "Calls sent that no budget matches");
        let passed: Counter = register!("passed", "Requests passed on unmetered");
        let lowered: Counter =
            register!("lowered", "Calls sent with a lower output bound than the client's own");
        let refused: Family<Kind, Counter> = register!("refused", "Refused calls by code");
        let paused: Counter = register!("paused", "Calls that waited for the ledger");
        let waiting: Gauge = register!("waiting", "Calls that wait for the ledger now");
        let settled: Family<Kind, Counter> = register!("settled", "Settled calls by outcome");
        let input_tokens: Counter = register!("input_tokens", "Input tokens of all classes");
        let output_tokens: Counter = register!("output_tokens", "Output tokens");
        let cost: Counter = register!("cost_nanodollars", "What settled calls cost, in nano-dollars");
        let said: Family<Kind, Counter> = register!("ledger_sent", "Messages to the ledger by kind");
        let heard: Family<Kind, Counter> = register!("ledger_received", "Messages from the ledger by kind");
        let connected: Gauge = register!("ledger_connected", "1 while a ledger answers");
        let log_failures: Counter = register!("log_failures", "Failed writes to the admission log");
        let log_delayed: Gauge = register!("log_delayed", "Settlements that wait for the admission log");
        let log_segments: Gauge = register!("log_segments", "Segments of the admission log");
        let log_unstored: Gauge =
            register!("log_unstored", "Records of the admission log that the ledger has not stored yet");
        let decisions_dropped: Counter = register!("decisions_dropped", "Decision records dropped");
        let policy_rejected: Counter = register!("policy_rejected", "Policy objects not understood");
        let completed = settled.get_or_create(&Kind { kind: "completed" }).clone();
        Self {
            completed,
            sent,
            unbudgeted,
            passed,
            lowered,
            refused,
            paused,
            waiting,
            settled,
            input_tokens,
            output_tokens,
            cost,
            said,
            heard,
            connected,
            log_failures,
            log_delayed,
            log_segments,
            log_unstored,
            decisions_dropped,
            policy_rejected,
            registry: Mutex::new(registry),
        }
    }

    /// Counts a settlement.
    pub fn settle(&self, settled: &Settled, kind: &'static str) {
        match settled.outcome {
            Outcome::Completed => self.completed.inc(),
            Outcome::UsageMissing | Outcome::ProviderError | Outcome::Abandoned | Outcome::Replayed => {
                self.settled.get_or_create(&Kind { kind }).inc()
            }
        };
        let usage = &settled.usage;
        self.input_tokens.inc_by(usage.input + usage.cached_input + usage.cache_write);
        self.output_tokens.inc_by(usage.output);
        self.cost.inc_by(u64::try_from(settled.charge.usd.0).unwrap_or(0));
    }

    /// In the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
