//! The aggregated discovery service: carries [`super::stream`]'s decisions over gRPC.
//!
//! One task a gateway. It holds nothing but the stream's state and reads the latest snapshot when it
//! has something to say. A gateway that takes no message for [`SEND_TIMEOUT`] is cut off: it comes
//! back with the versions it holds and is told the rest.

use super::acks::Gateways;
use super::identity::Names;
use super::snapshot::Snapshot;
use super::stream::{Heard, Stream};
use crate::ledger::{Clock, Transport};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures::stream::BoxStream;
use plimsoll_core::ids::UnixMs;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a gateway may leave a message unread.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a gateway may take to say who it is.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);

/// The discovery service of one operator.
#[derive(Debug)]
pub struct Discovery {
    /// None before the first: nothing is said to gateways then, and they go on with what they hold.
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    gateways: Arc<Gateways>,
    streams: AtomicU64,
    clock: Clock,
    stopping: watch::Sender<bool>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            snapshot: watch::Sender::new(None),
            gateways: Arc::default(),
            streams: AtomicU64::new(0),
            clock: Clock::new(UnixMs(0)),
            stopping: watch::Sender::new(false),
        }
    }
}

impl Discovery {
    /// What gateways should hold from now on.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.send_if_modified(|current| {
            let changed = current.as_ref().is_none_or(|current| !current.same_as(&snapshot));
            if changed {
                *current = Some(Arc::new(snapshot));
            }
            changed
        });
    }

    /// What they hold.
    #[must_use]
    pub fn gateways(&self) -> &Arc<Gateways> {
        &self.gateways
    }

    /// Ends every stream; gateways go on with what they hold.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// The service, for a tonic router that is reached by `transport`.
    #[must_use]
    pub fn service(self: &Arc<Self>, transport: Transport) -> AggregatedDiscoveryServiceServer<Service> {
        AggregatedDiscoveryServiceServer::new(Service { discovery: Arc::clone(self), transport })
    }

    async fn serve(
        &self,
        names: Names,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let mut node = None::<String>;
        let ended = self.converse(number, &names, &mut node, &mut requests, &responses).await;
        if let Some(node) = node {
            self.gateways.gone(&node, number, self.clock.now());
            match &ended {
                Ok(()) => tracing::info!(gateway = node, "xDS stream ended"),
                Err(status) => tracing::warn!(gateway = node, reason = status.message(), "xDS stream ended"),
            }
        }
        if let Err(status) = ended {
            // The other side may be gone already.
            let _ = tokio::time::timeout(Duration::from_secs(1), responses.send(Err(status))).await;
        }
    }

    async fn converse(
        &self,
        number: u64,
        names: &Names,
        node: &mut Option<String>,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
        responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let mut stream = Stream::default();
        let mut snapshots = self.snapshot.subscribe();
        let mut stopping = self.stopping.subscribe();
        let mut not_served = BTreeSet::new();
        loop {
            let request = tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    None
                }
                request = requests.next() => match request {
                    Some(request) => Some(request?),
                    None => return Ok(()),
                },
                () = tokio::time::sleep(FIRST_TIMEOUT), if node.is_none() => {
                    return Err(Status::deadline_exceeded("no discovery request within 30 s"));
                }
            };
            if let Some(request) = request {
                let node = identify(node, names, &request)?;
                match stream.hear(request) {
                    Heard::Nothing | Heard::Acknowledged(_) => {}
                    Heard::Rejected(kind, words) => {
                        tracing::warn!(gateway = node, %kind, words, "Envoy rejects configuration");
                    }
                    Heard::NotServed(url) => {
                        if not_served.len() < 16 && not_served.insert(url.clone()) {
                            tracing::warn!(
                                gateway = node,
                                url,
                                "asks for resources that Plimsoll doesn't serve"
                            );
                        }
                    }
                    Heard::TooMany(kind) => {
                        return Err(Status::resource_exhausted(format!("too many names of kind {kind}")));
                    }
                }
            }
            let Some(node) = node.as_deref() else { continue };
            let snapshot = snapshots.borrow_and_update().clone();
            for response in snapshot.map(|snapshot| stream.due(&snapshot)).unwrap_or_default() {
                tokio::time::timeout(SEND_TIMEOUT, responses.send(Ok(response)))
                    .await
                    .map_err(|_| Status::deadline_exceeded("the gateway reads nothing"))?
                    .map_err(|_| Status::cancelled("the gateway is gone"))?;
            }
            self.gateways.set(node, number, stream.held());
        }
    }
}

/// The gateway's id: Envoy's node id, which only the first request must carry, and which its certificate must
/// allow.
fn identify<'a>(
    node: &'a mut Option<String>,
    names: &Names,
    request: &DeltaDiscoveryRequest,
) -> Result<&'a str, Status> {
    let named = || request.node.as_ref().map(|node| node.id.clone()).filter(|id| !id.is_empty());
    if node.is_none() {
        let id = named().ok_or_else(|| {
            Status::invalid_argument("Envoy sends no node id; set node.id in its bootstrap or --service-node")
        })?;
        names.permit(&id).inspect_err(|status| tracing::warn!("{}", status.message()))?;
        tracing::info!(gateway = id, "xDS stream begins");
        *node = Some(id);
    }
    Ok(node.as_deref().unwrap_or_default())
}

/// The gRPC face of [`Discovery`].
#[derive(Clone, Debug)]
pub struct Service {
    discovery: Arc<Discovery>,
    transport: Transport,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "Plimsoll serves delta xDS only; set api_type: DELTA_GRPC in Envoy's ads_config",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(4);
        let discovery = Arc::clone(&self.discovery);
        let names = Names::of(&request, &self.transport)
            .inspect_err(|status| tracing::warn!("{}", status.message()))?;
        tokio::spawn(async move { discovery.serve(names, request.into_inner(), responses).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
