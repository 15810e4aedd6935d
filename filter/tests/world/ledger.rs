//! The real ledger, with its rows in memory, behind real gRPC.

use plimsoll_core::account::{AccountKey, LimitKey};
use plimsoll_core::ids::{Epoch, Incarnation, UnixMs};
use plimsoll_core::ledger::{self, Balance, EpochRecord, EpochState, Event, Rows, Settings, StreamId, Terms};
use plimsoll_core::policy::{Body, PolicyKey, PolicyObject};
use plimsoll_core::protocol::{
    Decision, FromGateway, FromLedger, Hello, LogState, PolicyAck, PolicyDelta, UsageRow,
};
use plimsoll_sim::harness::free_port;
use plimsoll_wire::proto::ledger_server::{Ledger as Service, LedgerServer};
use plimsoll_wire::proto::{GatewayMessage, LedgerMessage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::ServerTlsConfig;
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
struct Store {
    balances: BTreeMap<AccountKey, Balance>,
    epochs: BTreeMap<Epoch, EpochRecord>,
    usage: BTreeMap<(Epoch, u64), UsageRow>,
    decisions: Vec<Decision>,
}

struct State {
    store: Store,
    ledger: ledger::Ledger,
    policy: Vec<PolicyObject>,
    streams: BTreeMap<StreamId, (mpsc::UnboundedSender<Result<LedgerMessage, Status>>, u64)>,
    next: u64,
    acks: Vec<PolicyAck>,
    /// Asks stay unanswered.
    mute: bool,
    /// Close is lost on the way, and the stream stays open.
    lose_close: bool,
    /// Welcomes that are on their way for as long as this is `Some`.
    held: Option<Vec<(StreamId, LedgerMessage)>>,
    /// What came, by kind.
    heard: BTreeMap<&'static str, u64>,
}

pub struct Ledger {
    pub port: u16,
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
    /// How it is served from the next [`Ledger::serve`] on.
    pub tls: Option<ServerTlsConfig>,
}

struct Handle(Arc<Mutex<State>>);

/// The ledger's time.
pub fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMs(i64::try_from(since.as_millis()).unwrap())
}

fn terms(policy: &[PolicyObject]) -> BTreeMap<LimitKey, Terms> {
    let mut terms = BTreeMap::new();
    for object in policy {
        if let (PolicyKey::Budget(name), Ok(Body::Budget(budget))) = (&object.key, object.decode()) {
            for limit in &budget.limits {
                let of =
                    Terms { amount: limit.amount, block_at: limit.block_at, enforcement: budget.enforcement };
                terms.insert(limit.key(name), of);
            }
        }
    }
    terms
}

impl State {
    fn step(&mut self, events: &[Event]) {
        let touched = self.ledger.touches(events);
        let store = &self.store;
        let epochs: BTreeMap<Epoch, EpochRecord> = store
            .epochs
            .iter()
            .filter(|(epoch, record)| record.state != EpochState::Closed || touched.epochs.contains(epoch))
            .map(|(epoch, record)| (*epoch, record.clone()))
            .collect();
        let mut rows = Rows { epochs, balances: store.balances.clone(), ..Rows::default() };
        let messages = self.ledger.step(events, &mut rows, now());
        for account in &rows.changed_balances {
            self.store.balances.insert(account.clone(), rows.balances[account].clone());
        }
        for epoch in &rows.changed_epochs {
            self.store.epochs.insert(*epoch, rows.epochs[epoch].clone());
        }
        for (epoch, row) in rows.usage {
            assert!(self.store.usage.insert((epoch, row.sequence), row).is_none(), "a row came twice");
        }
        self.store.decisions.extend(rows.decisions.into_iter().map(|(_, decision)| decision));
        for (stream, message) in messages {
            let welcome = matches!(message, FromLedger::Welcome(_));
            match &mut self.held {
                Some(held) if welcome => held.push((stream, message.into())),
                _ => self.send(stream, message.into(), welcome),
            }
        }
    }

    fn send(&mut self, stream: StreamId, message: LedgerMessage, welcome: bool) {
        if let Some((out, _)) = self.streams.get(&stream) {
            let _ = out.send(Ok(message));
        }
        if welcome {
            self.send_policy(stream, true);
        }
    }

    /// Ends every stream, as an operator that restarts does.
    fn end_streams(&mut self) {
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in streams {
            self.streams.remove(&stream);
            self.step(&[Event::Gone(stream)]);
        }
    }

    fn send_policy(&mut self, stream: StreamId, whole: bool) {
        let Some((out, number)) = self.streams.get_mut(&stream) else { return };
        *number += 1;
        let delta = PolicyDelta { number: *number, whole, objects: self.policy.clone(), removed: Vec::new() };
        let _ = out.send(Ok(FromLedger::PolicyDelta(delta).into()));
    }
}

#[tonic::async_trait]
impl Service for Handle {
    type ConnectStream = UnboundedReceiverStream<Result<LedgerMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<GatewayMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (out, answers) = mpsc::unbounded_channel();
        let mut said = request.into_inner();
        let state = self.0.clone();
        let stream = {
            let mut state = state.lock().unwrap();
            state.next += 1;
            let stream = StreamId(state.next);
            state.streams.insert(stream, (out, 0));
            stream
        };
        tokio::spawn(async move {
            while let Ok(Some(message)) = said.message().await {
                let message = FromGateway::try_from(message).unwrap();
                let mut state = state.lock().unwrap();
                if !state.streams.contains_key(&stream) {
                    return;
                }
                *state.heard.entry(message.kind()).or_default() += 1;
                if let FromGateway::PolicyAck(ack) = &message {
                    state.acks.push(ack.clone());
                }
                let lost = match &message {
                    FromGateway::Ask(_) => state.mute,
                    FromGateway::Close => state.lose_close,
                    _ => false,
                };
                if !lost {
                    state.step(&[Event::Said(stream, message)]);
                }
            }
            if state.lock().unwrap().lose_close {
                // The gateway has said its last word; nobody here knows.
                return;
            }
            let mut state = state.lock().unwrap();
            state.streams.remove(&stream);
            state.step(&[Event::Gone(stream)]);
        });
        Ok(Response::new(UnboundedReceiverStream::new(answers)))
    }
}

impl Ledger {
    pub fn start(policy: Vec<PolicyObject>) -> Self {
        let settings = Settings { ride_through_ms: 600_000, lost_after_ms: 600_000, hmac_key: [7; 32] };
        let limits = terms(&policy);
        let mut state = State {
            store: Store::default(),
            ledger: ledger::Ledger::new(Incarnation(1), settings),
            policy,
            streams: BTreeMap::new(),
            next: 0,
            acks: Vec::new(),
            mute: false,
            lose_close: false,
            held: None,
            heard: BTreeMap::new(),
        };
        state.step(&[Event::Limits(limits)]);
        let state = Arc::new(Mutex::new(state));
        let mut ledger = Self { port: free_port().unwrap(), state, runtime: None, tls: None };
        ledger.serve();
        ledger
    }

    /// Serves, always at the same port.
    pub fn serve(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let port = self.port;
        let listener = runtime
            .block_on(async move { tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap() });
        let handle = Handle(self.state.clone());
        let server = tonic::transport::Server::builder();
        let mut server = match &self.tls {
            Some(tls) => server.tls_config(tls.clone()).unwrap(),
            None => server,
        };
        runtime.spawn(async move {
            let server = server.add_service(LedgerServer::new(handle));
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        let state = self.state.clone();
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let mut state = state.lock().unwrap();
                if state.ledger.next(now()) <= now() {
                    state.step(&[Event::Tick]);
                }
            }
        });
        self.runtime = Some(runtime);
    }

    /// The operator is gone; its store stays.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        self.end_streams();
    }

    /// Ends every stream; new ones are taken at once.
    pub fn end_streams(&self) {
        self.state.lock().unwrap().end_streams();
    }

    pub fn lose_close(&self, lose: bool) {
        self.state.lock().unwrap().lose_close = lose;
    }

    /// From now on Welcomes are under way until [`Ledger::deliver_welcomes`].
    pub fn hold_welcomes(&self) {
        self.state.lock().unwrap().held = Some(Vec::new());
    }

    pub fn deliver_welcomes(&self) {
        let mut state = self.state.lock().unwrap();
        for (stream, welcome) in state.held.take().unwrap_or_default() {
            state.send(stream, welcome, true);
        }
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.state.lock().unwrap().streams.len()
    }

    /// How many messages of a kind came.
    pub fn heard(&self, kind: &str) -> u64 {
        self.state.lock().unwrap().heard.get(kind).copied().unwrap_or(0)
    }

    pub fn set_policy(&self, policy: Vec<PolicyObject>) {
        let mut state = self.state.lock().unwrap();
        let limits = terms(&policy);
        state.policy = policy;
        let streams: Vec<StreamId> = state.streams.keys().copied().collect();
        for stream in streams {
            state.send_policy(stream, true);
        }
        state.step(&[Event::Limits(limits)]);
    }

    /// Another log speaks for this gateway once, so that the ledger closes the epoch that it has.
    pub fn supersede(&self, gateway: &str) {
        let hello = FromGateway::Hello(Hello {
            gateway: gateway.to_owned(),
            epoch: Epoch(99),
            log: LogState::New,
            totals: Vec::new(),
            sequence: 0,
            policy: Vec::new(),
        });
        let stream = StreamId(u64::MAX);
        let mut state = self.state.lock().unwrap();
        state.step(&[Event::Said(stream, hello)]);
        state.step(&[Event::Gone(stream)]);
    }

    pub fn mute(&self, mute: bool) {
        self.state.lock().unwrap().mute = mute;
    }

    pub fn rows(&self) -> Vec<UsageRow> {
        self.state.lock().unwrap().store.usage.values().cloned().collect()
    }

    pub fn decisions(&self) -> Vec<Decision> {
        self.state.lock().unwrap().store.decisions.clone()
    }

    pub fn acks(&self) -> Vec<PolicyAck> {
        self.state.lock().unwrap().acks.clone()
    }

    pub fn messages(&self) -> u64 {
        self.state.lock().unwrap().heard.values().sum()
    }

    pub fn epochs(&self) -> usize {
        self.state.lock().unwrap().store.epochs.len()
    }

    /// Open epochs, and what of all accounts is unaccounted or held.
    pub fn outstanding(&self) -> (usize, i64) {
        let state = self.state.lock().unwrap();
        let open = state.store.epochs.values().filter(|record| record.state != EpochState::Closed).count();
        let of = |balance: &Balance| {
            let held = balance.held.values().map(|held| held.granted.0 - held.returned.0 - held.settled.0);
            balance.unaccounted.0 + held.sum::<i64>()
        };
        (open, state.store.balances.values().map(of).sum())
    }

    /// Settled nano-dollars, whoever settled them.
    pub fn settled(&self) -> i64 {
        let state = self.state.lock().unwrap();
        let of = |balance: &Balance| {
            balance.settled.0 + balance.held.values().map(|held| held.settled.0).sum::<i64>()
        };
        state.store.balances.values().map(of).sum()
    }
}
