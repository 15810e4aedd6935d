//! Starting, watching and stopping the ledger's server.

use super::actor::{Actor, Input, Life};
use super::clock::Clock;
use super::forget::Forgetting;
use super::metrics::Metrics;
use super::policy_hub::PolicyHub;
use super::spend::SpendBoard;
use super::store::{Store, StoreError};
use super::stream::{MAX_MESSAGE, Streams, room};
use super::tls::{TlsError, Transport};
use plimsoll_core::account::LimitKey;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::{EpochState, Settings, Terms};
use plimsoll_core::policy::{PolicyKey, PolicyObject};
use plimsoll_wire::proto::ledger_server;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

/// Messages that may wait for the ledger's task; then streams wait.
const MAX_INPUTS: usize = 4_096;
/// How long ending may take.
const END_WITHIN: Duration = Duration::from_secs(5);

/// How the ledger is served.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where gateways connect.
    pub listen: SocketAddr,
    /// How they prove who they are.
    pub transport: Transport,
    /// How long slices should last without the operator, in milliseconds.
    pub ride_through_ms: i64,
    /// How long a silent gateway is believed to live, in milliseconds.
    pub lost_after_ms: i64,
}

/// How the ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerState {
    /// It grants.
    Serving,
    /// Commits were lost: it grants nothing until every known gateway has declared itself.
    WentBack,
    /// The store fails: it grants nothing, and tries again.
    Failed {
        /// Why, for people: names the file and what to do.
        why: String,
    },
}

/// Why the ledger can't be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificates are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is taken, or not ours.
    #[error("the ledger can't listen on {0}: {1}; set listen.grpc to a free address")]
    Listen(SocketAddr, std::io::Error),
}

/// A ledger that runs. Cheap to clone; dropping it stops nothing.
#[derive(Clone, Debug)]
pub struct LedgerHandle {
    inputs: mpsc::Sender<Input>,
    hub: Arc<PolicyHub>,
    board: Arc<SpendBoard>,
    clock: Arc<Clock>,
    state: watch::Receiver<LedgerState>,
    metrics: Metrics,
    address: SocketAddr,
    place: Arc<str>,
    stop: Arc<watch::Sender<bool>>,
    /// Whether streams are accepted; from [`LedgerHandle::resume`] or the first publication on.
    open: Arc<watch::Sender<bool>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    /// One publication at a time: limits and policy go in the same order.
    publishing: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

/// Starts the ledger in `store`. Its address is taken at once; gateways are let in when there is a plan, with
/// the first [`LedgerHandle::publish`], or with [`LedgerHandle::resume`]: who comes back sooner would hear that
/// everything is removed.
///
/// # Errors
/// The store can't be read, the certificates are no good, or the address is taken.
pub async fn start<S: Store>(settings: ServerSettings, store: S) -> Result<LedgerHandle, StartError> {
    start_beside(settings, store, Routes::default()).await
}

/// Starts the ledger in `store` beside other gRPC services, on one port; they too are served from the first
/// publication on.
///
/// # Errors
/// As [`start`].
pub async fn start_beside<S: Store>(
    settings: ServerSettings,
    store: S,
    services: Routes,
) -> Result<LedgerHandle, StartError> {
    let ServerSettings { listen, transport, ride_through_ms, lost_after_ms } = settings;
    let listener = TcpListener::bind(listen).await.map_err(|error| StartError::Listen(listen, error))?;
    let address = listener.local_addr().map_err(|error| StartError::Listen(listen, error))?;
    let books = store.books().await?;
    let board = Arc::new(SpendBoard::new(&books));
    let clock = Arc::new(Clock::new(store.latest()));
    let hub = Arc::new(PolicyHub::default());
    let live = books.epochs.into_values().filter(|epoch| epoch.state == EpochState::Live);
    hub.await_back(live.map(|epoch| epoch.gateway), clock.now());
    let metrics = Metrics::default();
    let place = store.path().display().to_string().into();
    let store = Arc::new(store);
    let (inputs, received) = mpsc::channel(MAX_INPUTS);
    let (state, watched) = watch::channel(LedgerState::Serving);
    let (stop, stopped) = watch::channel(false);
    let (open, opened) = watch::channel(false);
    let settings = Settings { ride_through_ms, lost_after_ms, hmac_key: store.identity().hmac_key };
    let actor = Actor {
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        settings: settings.clone(),
        inputs: received,
        board: Arc::clone(&board),
        state,
        metrics: metrics.clone(),
        life: Life::new(settings),
    };
    let streams = Streams {
        inputs: inputs.clone(),
        transport: transport.clone(),
        hub: Arc::clone(&hub),
        clock: Arc::clone(&clock),
        metrics: metrics.clone(),
        next: AtomicU64::new(1),
        stopped: stopped.clone(),
        room: room(),
    };
    let service = ledger_server::LedgerServer::new(streams)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut server = Server::builder()
        // A peer that died without a word is noticed within 20 s.
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .tcp_nodelay(true);
    let acceptor = transport.acceptor()?;
    let router = server.add_routes(services.add_service(service));
    let end = stopped.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let ended = told(end);
        tokio::pin!(ended);
        // Until then whoever connects waits in the listener's queue.
        tokio::select! {
            () = told(opened) => {}
            () = &mut ended => return,
        }
        let served = match acceptor {
            Some(acceptor) => router.serve_with_incoming_shutdown(acceptor.accept(listener), ended).await,
            None => router.serve_with_incoming_shutdown(nodelay(listener), ended).await,
        };
        if let Err(error) = served {
            tracing::error!(%error, "the ledger's server ended");
        }
    });
    tasks.spawn(actor.run());
    let forgetting = Forgetting {
        store,
        clock: Arc::clone(&clock),
        hub: Arc::clone(&hub),
        board: Arc::clone(&board),
        lost_after_ms,
        stopped,
    };
    tasks.spawn(forgetting.run());
    Ok(LedgerHandle {
        inputs,
        hub,
        board,
        clock,
        state: watched,
        metrics,
        address,
        place,
        stop: Arc::new(stop),
        open: Arc::new(open),
        tasks: Arc::new(Mutex::new(tasks)),
        publishing: Arc::new(Mutex::new(())),
    })
}

/// Resolves when `signal` is true, and when whoever could say so is gone.
async fn told(mut signal: watch::Receiver<bool>) {
    let _ = signal.wait_for(|said| *said).await;
}

/// Answers are small and must not wait for more.
fn nodelay(
    listener: TcpListener,
) -> impl tokio_stream::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt;
    TcpListenerStream::new(listener)
        .map(|accepted| accepted.and_then(|stream| stream.set_nodelay(true).map(|()| stream)))
}

impl LedgerHandle {
    /// Puts a plan into force: the ledger first hears of all its limits, then gateways of the changed and
    /// removed objects. So no gateway asks for what the ledger does not know, and what falls, falls at the
    /// ledger first. The first one lets gateways in: it must be of everything there is.
    pub async fn publish(
        &self,
        limits: BTreeMap<LimitKey, Terms>,
        changed: Vec<PolicyObject>,
        removed: Vec<PolicyKey>,
    ) {
        let _turn = self.publishing.lock().await;
        self.set_limits(limits).await;
        self.hub.publish(changed, removed);
        self.hub.settle();
        self.open.send_if_modified(|open| !std::mem::replace(open, true));
    }

    /// Lets gateways in before there is a plan, with what is remembered of before this process: those that hold
    /// policy keep to it, and are granted what `limits` allow. Who holds none waits for [`Self::publish`].
    pub async fn resume(&self, limits: BTreeMap<LimitKey, Terms>, remembered: Vec<PolicyObject>) {
        let _turn = self.publishing.lock().await;
        self.set_limits(limits).await;
        self.hub.resume(remembered);
        self.open.send_if_modified(|open| !std::mem::replace(open, true));
    }

    /// Tells the ledger all limits in force; returns when that is committed. While the store fails it
    /// returns as well: nothing is granted then, and the next incarnation hears of them first.
    pub async fn set_limits(&self, limits: BTreeMap<LimitKey, Terms>) {
        let (done, committed) = oneshot::channel();
        if self.inputs.send(Input::Limits(limits, done)).await.is_ok() {
            // Dropped unanswered: the ledger has shut down.
            let _ = committed.await;
        }
    }

    /// Has the store remember what policy is in force; it may be read again by the next process.
    ///
    /// # Errors
    /// Nothing is remembered then; in words for people.
    pub async fn remember(&self, changed: Vec<PolicyObject>, removed: Vec<PolicyKey>) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        // Shut down: whoever comes next reads what was remembered before.
        let _ = self.inputs.send(Input::Remember((changed, removed, answer))).await;
        match answered.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err("the ledger has shut down".to_owned()),
        }
    }

    /// Where the ledger is kept, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The policy and who holds it.
    #[must_use]
    pub fn hub(&self) -> &Arc<PolicyHub> {
        &self.hub
    }

    /// What every account has spent.
    #[must_use]
    pub fn spend(&self) -> &Arc<SpendBoard> {
        &self.board
    }

    /// How the ledger is, and when that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LedgerState> {
        self.state.clone()
    }

    /// The ledger's time: name windows by it, not by the system's.
    #[must_use]
    pub fn now(&self) -> UnixMs {
        self.clock.now()
    }

    /// Its metrics; register them where they are served.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Commits what has arrived, closes every stream and ends. Gateways go on with what they hold.
    pub async fn shutdown(&self) {
        // Gone already: then there is nothing to commit.
        let _ = self.inputs.send(Input::Stop).await;
        let mut tasks = self.tasks.lock().await;
        let committed = tokio::time::timeout(END_WITHIN, self.inputs.closed());
        if committed.await.is_err() {
            tracing::warn!("the ledger's last commit did not end in time");
        }
        self.stop.send_replace(true);
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_WITHIN, ended).await.is_err() {
            tasks.shutdown().await;
        }
    }
}
