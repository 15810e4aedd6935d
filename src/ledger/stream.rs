//! One gateway's stream: Hello first, then its words to the ledger and the ledger's answers back.
//!
//! Policy goes down the same stream, after Welcome. Each wait has an end: a gateway that says nothing at
//! first, or doesn't read, is let go.

use super::actor::{Input, Out};
use super::clock::Clock;
use super::policy_hub::PolicyHub;
use super::tls::Transport;
use crate::gateway::identity::Names;
use plimsoll_core::ledger::{StreamId, check};
use plimsoll_core::policy::{PolicyKey, PolicyVersion};
use plimsoll_core::protocol::{FromGateway, FromLedger, Hello};
use plimsoll_wire::proto;
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a new stream may be silent.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long a gateway may leave a message unread.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Answers that may wait for one stream; more, and it is cut.
const MAX_WAITING: usize = 1_024;
/// The largest message: a Hello or a policy of 10,000 objects has a few MiB.
pub(super) const MAX_MESSAGE: usize = 64 << 20;

/// The service that gateways connect to.
pub(super) struct Streams {
    pub inputs: mpsc::Sender<Input>,
    pub transport: Transport,
    pub hub: Arc<PolicyHub>,
    pub clock: Arc<Clock>,
    pub metrics: super::metrics::Metrics,
    pub next: AtomicU64,
    pub stopped: watch::Receiver<bool>,
    /// For large messages of all streams that wait for the ledger's task; see [`room`].
    pub room: Arc<Semaphore>,
}

/// The most characters of a refusal.
const MOST_WORDS: usize = 512;

/// What a large message holds until it is committed.
pub(super) type Room = OwnedSemaphorePermit;

/// Messages up to this size, in bytes, wait for the ledger's task in any number that its queue takes.
const SMALL: usize = 16 << 10;
/// In which pieces room is given.
const PAGE: usize = 16 << 10;
/// All the room: 128 MiB, two messages of the largest size.
const MAX_PAGES: u32 = 8_192;

/// Room for large messages: without a bound, streams that send faster than commits go would fill the memory.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(MAX_PAGES).unwrap_or(usize::MAX)))
}

type Sent = Result<proto::LedgerMessage, Status>;

#[tonic::async_trait]
impl proto::ledger_server::Ledger for Streams {
    type ConnectStream = ReceiverStream<Sent>;

    async fn connect(
        &self,
        request: Request<Streaming<proto::GatewayMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (send, receive) = mpsc::channel(4);
        let stream = Stream {
            id: StreamId(self.next.fetch_add(1, Relaxed)),
            names: Names::of(&request, &self.transport)
                .inspect_err(|status| tracing::warn!("{}", status.message()))?,
            said: request.into_inner(),
            send,
            inputs: self.inputs.clone(),
            hub: Arc::clone(&self.hub),
            clock: Arc::clone(&self.clock),
            metrics: self.metrics.clone(),
            room: Arc::clone(&self.room),
            read: None,
        };
        let mut stopped = self.stopped.clone();
        // The answer's headers go at once: the gateway may wait for them before its Hello.
        tokio::spawn(async move {
            let send = stream.send.clone();
            let ended = tokio::select! {
                ended = stream.run() => ended,
                _ = stopped.wait_for(|stopped| *stopped) => Err(Status::unavailable("the ledger has shut down")),
            };
            if let Err(status) = ended {
                // Whoever doesn't read won't read this.
                let _ = send.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

struct Stream {
    id: StreamId,
    /// Who it may be.
    names: Names,
    said: Streaming<proto::GatewayMessage>,
    send: mpsc::Sender<Sent>,
    inputs: mpsc::Sender<Input>,
    hub: Arc<PolicyHub>,
    clock: Arc<Clock>,
    metrics: super::metrics::Metrics,
    room: Arc<Semaphore>,
    /// Read, and not told to the ledger.
    read: Option<Read>,
}

type Wait = Pin<Box<dyn Future<Output = Result<Room, AcquireError>> + Send + Sync>>;

/// A message, and its place among those that wait for room.
struct Read {
    message: proto::GatewayMessage,
    /// Kept while others are served between: anew, a large message would be behind small ones for ever.
    waits: Option<Wait>,
}

impl Read {
    fn new(message: proto::GatewayMessage, room: &Arc<Semaphore>) -> Self {
        let waits = match message.encoded_len() {
            0..=SMALL => None,
            bytes => {
                let pages = u32::try_from(bytes.div_ceil(PAGE)).unwrap_or(u32::MAX).min(MAX_PAGES);
                Some(Box::pin(Arc::clone(room).acquire_many_owned(pages)) as Wait)
            }
        };
        Self { message, waits }
    }

    /// The room that it takes up, once. Dropped while it waits, it goes on from its place.
    async fn room(&mut self) -> Result<Option<Room>, Status> {
        let Some(waits) = &mut self.waits else { return Ok(None) };
        let room = waits.await.map_err(|_| Status::unavailable("the ledger has shut down"))?;
        self.waits = None;
        Ok(Some(room))
    }
}

impl Stream {
    async fn run(mut self) -> Result<(), Status> {
        let silent = |_| Status::deadline_exceeded("say Hello first, within 10 s");
        // Not for the room that it takes up: that it may have to wait for is no fault of the gateway's.
        timeout(HELLO_WITHIN, self.read()).await.map_err(silent)??;
        if self.read.is_none() {
            return Ok(());
        }
        let (hello, room) = match self.hear().await? {
            Some((FromGateway::Hello(hello), room)) => (hello, room),
            Some(_) => return Err(Status::failed_precondition("the first message must be Hello")),
            None => return Ok(()),
        };
        let Hello { gateway, epoch, policy, .. } = &hello;
        self.names.permit(gateway).inspect_err(|status| tracing::warn!("{}", status.message()))?;
        let (gateway, held) = (gateway.clone(), policy.clone());
        let (out, outs) = mpsc::channel(MAX_WAITING);
        self.tell(Input::Opened(self.id, gateway.clone(), *epoch, out)).await?;
        self.tell(Input::Said(self.id, FromGateway::Hello(hello), room)).await?;
        let ended = self.converse(&gateway, held, outs).await;
        self.hub.leave(&gateway, self.id, self.clock.now());
        // The ledger is gone: nobody to tell.
        let _ = self.inputs.send(Input::Gone(self.id)).await;
        ended
    }

    async fn converse(
        &mut self,
        gateway: &str,
        held: Vec<(PolicyKey, PolicyVersion)>,
        mut outs: mpsc::Receiver<Out>,
    ) -> Result<(), Status> {
        let mut due = self.hub.due();
        let mut held = Some(held);
        loop {
            tokio::select! {
                out = outs.recv() => match out {
                    Some(Out::Say(message)) => {
                        let welcomed = matches!(&message, FromLedger::Welcome(welcome) if !welcome.epoch_closed);
                        self.say(message).await?;
                        if welcomed && let Some(held) = held.take() {
                            self.hub.join(gateway, self.id, held);
                            self.tell_policy(gateway).await?;
                        }
                    }
                    Some(Out::Close(why)) => return Err(Status::unavailable(why)),
                    None => return Err(Status::unavailable("the ledger let this stream go; connect again")),
                },
                moved = due.changed() => {
                    if moved.is_err() {
                        return Err(Status::unavailable("the ledger has shut down"));
                    }
                    self.tell_policy(gateway).await?;
                }
                said = self.hear() => match said? {
                    None => return Ok(()),
                    Some((FromGateway::PolicyAck(ack), _)) => {
                        self.hub.acknowledge(gateway, self.id, ack, self.clock.now());
                    }
                    Some((FromGateway::Hello(_), _)) => {
                        return Err(Status::failed_precondition("Hello is said once on a stream; connect again"));
                    }
                    Some((message, room)) => {
                        if matches!(message, FromGateway::Close) {
                            self.hub.close(gateway, self.id, self.clock.now());
                        }
                        self.tell(Input::Said(self.id, message, room)).await?;
                    }
                },
            }
        }
    }

    async fn tell_policy(&mut self, gateway: &str) -> Result<(), Status> {
        while let Some(delta) = self.hub.delta(gateway, self.id) {
            let message = FromLedger::PolicyDelta(delta);
            self.metrics.say(&message);
            self.say(message).await?;
        }
        Ok(())
    }

    /// Reads the next message, unless one was read and not taken yet; none is there when the gateway has ended
    /// the stream.
    async fn read(&mut self) -> Result<(), Status> {
        if self.read.is_none() {
            let message = self.said.message().await?;
            self.read = message.map(|message| Read::new(message, &self.room));
        }
        Ok(())
    }

    /// The next message, and the room that it takes up; `None` when the gateway has ended the stream. Nothing is
    /// lost if it is dropped while it waits.
    async fn hear(&mut self) -> Result<Option<(FromGateway, Option<Room>)>, Status> {
        self.read().await?;
        let Some(read) = &mut self.read else { return Ok(None) };
        // A message that waits for room keeps its stream from being read, and no other.
        let room = read.room().await?;
        let Some(Read { message, waits: _ }) = self.read.take() else { return Ok(None) };
        // It quotes what was said, which may be megabytes; a status is a header.
        let shorten = |text: String| text.chars().take(MOST_WORDS).collect::<String>();
        let refuse = |error: &dyn std::fmt::Display| Status::invalid_argument(shorten(error.to_string()));
        let message = FromGateway::try_from(message).map_err(|error| refuse(&error))?;
        check(&message).map_err(|error| refuse(&error))?;
        if matches!(message, FromGateway::PolicyAck(_)) {
            self.metrics.hear(&message);
        }
        Ok(Some((message, room)))
    }

    async fn say(&self, message: FromLedger) -> Result<(), Status> {
        match timeout(READ_WITHIN, self.send.send(Ok(message.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the gateway has gone")),
            Err(_) => Err(Status::deadline_exceeded("the gateway does not read its answers")),
        }
    }

    async fn tell(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| Status::unavailable("the ledger has shut down"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use plimsoll_core::ids::{Epoch, ObjectName};
    use plimsoll_core::protocol::LogState;

    /// A Hello of so many policy objects, 30 bytes and more each.
    fn hello(objects: usize) -> proto::GatewayMessage {
        let key = |n| PolicyKey::Budget(ObjectName::new("finance", format!("b{n}")));
        FromGateway::Hello(Hello {
            gateway: "gw".into(),
            epoch: Epoch(1),
            log: LogState::New,
            sequence: 0,
            totals: vec![],
            policy: (0..objects).map(|n| (key(n), PolicyVersion::of(""))).collect(),
        })
        .into()
    }

    #[tokio::test]
    async fn a_large_message_keeps_its_place_however_often_it_is_looked_at() {
        let all = room();
        let mut held = Arc::clone(&all).acquire_many_owned(MAX_PAGES).await.unwrap();
        let mut large = Read::new(hello(10_000), &all);
        assert!(large.room().now_or_never().is_none(), "there is no room");
        // Of a few pages.
        let mut later = Read::new(hello(1_000), &all);
        assert!(later.room().now_or_never().is_none());
        // As when something else came on its stream meanwhile.
        assert!(large.room().now_or_never().is_none());
        drop(held.split(20));
        assert!(later.room().now_or_never().is_none(), "it came later");
        drop(held);
        assert!(large.room().now_or_never().unwrap().unwrap().is_some());
        assert!(later.room().now_or_never().unwrap().unwrap().is_some());
        assert!(Read::new(hello(1), &all).room().await.unwrap().is_none(), "it needs none");
    }
}
