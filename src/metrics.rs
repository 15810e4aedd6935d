//! What the operator counts about itself. Labels are few and fixed: never an object's name.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A kind of object, or of stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `AIBudget`.
    pub kind: &'static str,
}

/// The operator's metrics, under `plimsoll_operator_`.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Times that something was planned.
    pub plans: Counter,
    /// Seconds from a change to its publication, commit of the limits included.
    pub apply_seconds: Histogram,
    /// Seconds that a report took.
    pub report_seconds: Histogram,
    /// Policy objects that were published or withdrawn.
    pub published: Counter,
    /// Objects, by kind.
    pub objects: Family<Kind, Gauge>,
    /// What can't be read or used now.
    pub faults: Gauge,
    /// Gateways that serve, by what they are connected for.
    pub gateways: Family<Kind, Gauge>,
    /// Envoy's resources that some gateway rejects.
    pub rejected: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            plans: Counter::default(),
            apply_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            report_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 12)),
            published: Counter::default(),
            objects: Family::default(),
            faults: Gauge::default(),
            gateways: Family::default(),
            rejected: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Puts them into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("plimsoll_operator");
        registry.register("plans", "Times that something was planned", self.plans.clone());
        registry.register("apply_seconds", "From a change to its publication", self.apply_seconds.clone());
        registry.register("report_seconds", "Duration of a report", self.report_seconds.clone());
        registry.register(
            "policy_published",
            "Policy objects published or withdrawn",
            self.published.clone(),
        );
        registry.register("objects", "Objects", self.objects.clone());
        registry.register("faults", "Manifests and settings that can't be used now", self.faults.clone());
        registry.register("gateways", "Gateways connected", self.gateways.clone());
        registry.register(
            "envoy_rejected",
            "Resources of Envoy that a gateway rejects",
            self.rejected.clone(),
        );
    }

    /// Sets the gauges to what `report` says.
    pub fn observe(&self, report: &crate::report::Report) {
        let set = |gauge: &Gauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        let objects = [
            ("AIBudget", report.budgets.len()),
            ("ModelRoute", report.routes.len()),
            ("ModelBackend", report.backends.len()),
        ];
        for (kind, count) in objects {
            set(&self.objects.get_or_create(&Kind { kind }), count);
        }
        let gateways = report.gateways.values();
        let streams = [
            ("ledger", gateways.clone().filter(|gateway| gateway.ledger).count()),
            ("xds", gateways.clone().filter(|gateway| gateway.xds).count()),
        ];
        for (kind, count) in streams {
            set(&self.gateways.get_or_create(&Kind { kind }), count);
        }
        set(&self.rejected, gateways.map(|gateway| gateway.envoy_rejected.len()).sum());
        set(&self.faults, report.faults.len());
    }
}
