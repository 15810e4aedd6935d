//! What is counted on the way to the API server. Labels are few and fixed: never an object's name.

use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::{Body, DynBody};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::watch;
use tower::layer::layer_fn;
use tower::util::BoxService;
use tower::{BoxError, Layer, Service};

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Why {
    pub(super) why: &'static str,
}

/// What is asked of the API server, by verb, and when each list and watch was last answered.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    counts: Family<Verb, Counter>,
    /// By path. There are as many as watches.
    answers: watch::Sender<BTreeMap<String, Instant>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

impl Requests {
    /// Notes what goes through it.
    pub(super) fn layer(&self) -> impl Layer<Inner, Service = Noted> + use<> {
        let requests = self.clone();
        layer_fn(move |inner| Noted { inner, requests: requests.clone() })
    }

    /// When lists and watches were last answered with anything but an error, by path.
    pub(super) fn answers(&self) -> watch::Receiver<BTreeMap<String, Instant>> {
        self.answers.subscribe()
    }
}

/// What kube makes of a configuration.
type Inner = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// A client whose requests are noted.
pub(super) struct Noted {
    inner: Inner,
    requests: Requests,
}

impl Service<Request<Body>> for Noted {
    type Response = Response<Box<DynBody>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let lists = request.uri().query().is_some_and(|query| query.contains("limit="));
        let verb = match request.method().as_str() {
            "GET" if watches => "watch",
            // Of one object, or a list.
            "GET" => "get",
            "PATCH" => "patch",
            "POST" => "create",
            _ => "other",
        };
        self.requests.counts.get_or_create(&Verb { verb }).inc();
        let path = (watches || lists).then(|| request.uri().path().to_owned());
        let answers = self.requests.answers.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(path) = path.filter(|_| answer.status().is_success()) {
                answers.send_modify(|answers| {
                    answers.insert(path, Instant::now());
                });
            }
            Ok(answer)
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
        registry.register("requests", "Requests to the API server", self.requests.counts.clone());
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
