//! What is counted on the way to the API server. Labels are few and fixed: never an object's name.

use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tower::util::MapRequestLayer;

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Why {
    pub(super) why: &'static str,
}

/// What is asked of the API server, by verb.
#[derive(Clone, Debug, Default)]
pub struct Requests(Family<Verb, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

impl Requests {
    /// Counts what goes through it; not what the client repeats by itself.
    pub(super) fn layer(
        &self,
    ) -> MapRequestLayer<impl Fn(http::Request<Body>) -> http::Request<Body> + Clone + use<>> {
        let Self(requests) = self.clone();
        MapRequestLayer::new(move |request: http::Request<Body>| {
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let verb = match request.method().as_str() {
                "GET" if watches => "watch",
                // Of one object, or a list.
                "GET" => "get",
                "PATCH" => "patch",
                "POST" => "create",
                _ => "other",
            };
            requests.get_or_create(&Verb { verb }).inc();
            request
        })
    }
}

/// The metrics of statuses and Events, under `plimsoll_kubernetes_`.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    pub(super) requests: Requests,
    pub(super) writes: Counter,
    pub(super) failures: Family<Why, Counter>,
    pub(super) pending: Gauge,
    pub(super) oldest: Gauge,
    pub(super) events: Counter,
    pub(super) events_dropped: Counter,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("plimsoll_kubernetes");
        registry.register("requests", "Requests to the API server", self.requests.0.clone());
        registry.register("status_writes", "Statuses written", self.writes.clone());
        registry.register(
            "status_write_failures",
            "Statuses that could not be written when it was tried",
            self.failures.clone(),
        );
        registry.register("status_pending", "Statuses to be written", self.pending.clone());
        registry.register(
            "status_oldest_seconds",
            "How long the oldest status has waited to be written",
            self.oldest.clone(),
        );
        registry.register("events", "Events sent", self.events.clone());
        registry.register(
            "events_dropped",
            "Events not sent: too many, or their object or namespace is gone",
            self.events_dropped.clone(),
        );
    }
}
