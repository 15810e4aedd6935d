//! The link: one gRPC stream to one of the operators, and the next one when it breaks.

use super::log_state;
use super::outbox::{Outbox, ROOM};
use super::tls::TlsFiles;
use crate::abi::{self, Level};
use crate::config::Config;
use crate::metrics::Kind;
use crate::process::{Shared, random_epoch};
use plimsoll_core::protocol::{FromGateway, FromLedger};
use plimsoll_wire::proto::{self, ledger_client::LedgerClient};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(2);
/// How long the Welcome may take.
const GREET: Duration = Duration::from_secs(5);
const PING: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The largest message from the ledger: a whole policy of 10,000 budgets is a few MB.
const LARGEST: usize = 64 << 20;

/// What happens on the link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// A stream is being opened: Hello is under way, this is where the rest goes.
    Opening(Outbox),
    /// The ledger said something.
    Heard(FromLedger),
    /// The stream is gone.
    Broken {
        /// The ledger has ended it; else it may not have heard all of it.
        by_ledger: bool,
    },
}

/// Where the operators are, and how they are talked to.
pub(super) struct Link {
    operators: Vec<String>,
    tls: Option<TlsFiles>,
}

impl Link {
    /// # Errors
    /// An operator's address or a TLS file can't be used.
    pub fn new(config: &Config) -> io::Result<Self> {
        // tonic finds it by feature; a second provider in the process must not make that ambiguous.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = config.tls.as_ref().map(TlsFiles::read).transpose()?;
        let mut link = Self { operators: config.operators.clone(), tls };
        for operator in &config.operators {
            link.endpoint(operator)?;
        }
        Ok(link)
    }

    /// For one connection.
    fn endpoint(&mut self, operator: &str) -> io::Result<Endpoint> {
        let invalid =
            |error: tonic::transport::Error| io::Error::new(io::ErrorKind::InvalidInput, causes(&error));
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{operator}"))
            .map_err(invalid)?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true);
        match &mut self.tls {
            Some(tls) => tls.secure(&endpoint).map_err(invalid),
            None => Ok(endpoint),
        }
    }

    /// Keeps a stream open until nobody listens.
    pub async fn run(mut self, shared: Arc<Shared>, events: mpsc::Sender<LinkEvent>) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        let operators = self.operators.clone();
        for operator in operators.iter().cycle() {
            // What a Hello would say of an epoch that ends helps nobody.
            while shared.closing.load(SeqCst) {
                if events.is_closed() {
                    return;
                }
                tokio::time::sleep(FIRST_PAUSE).await;
            }
            let ended = match self.endpoint(operator) {
                Ok(endpoint) => stream(&endpoint, &shared, &events).await,
                // It was usable at the start, and so was TLS.
                Err(error) => Ended::Ungreeted(error.to_string()),
            };
            let by_ledger = matches!(ended, Ended::Greeted { by_ledger: true, .. });
            match ended {
                Ended::Greeted { why, .. } => {
                    abi::log(Level::Warn, &format!("plimsoll: the ledger at {operator} is gone: {why}"));
                    (pause, told) = (FIRST_PAUSE, false);
                }
                Ended::Ungreeted(why) => {
                    if !told {
                        abi::log(
                            Level::Warn,
                            &format!("plimsoll: no ledger at {operator}: {why}; it is tried again"),
                        );
                        told = true;
                    }
                }
                Ended::Left { greeted } => {
                    if greeted {
                        (pause, told) = (FIRST_PAUSE, false);
                    }
                }
                Ended::Unheard => return,
            }
            if events.send(LinkEvent::Broken { by_ledger }).await.is_err() {
                return;
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

enum Ended {
    /// It was in use.
    Greeted { why: String, by_ledger: bool },
    /// It never was.
    Ungreeted(String),
    /// The client has dropped its outbox.
    Left { greeted: bool },
    /// Nobody listens any more.
    Unheard,
}

async fn stream(endpoint: &Endpoint, shared: &Shared, events: &mpsc::Sender<LinkEvent>) -> Ended {
    let ungreeted = |why: &dyn std::fmt::Display| Ended::Ungreeted(why.to_string());
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return ungreeted(&causes(&error)),
    };
    let (outbox, queue) = mpsc::channel(ROOM);
    let (open, left) = oneshot::channel();
    let mut hello = shared.gateway.hello(log_state(shared), shared.log.sequence());
    hello.policy = shared.snapshot.load().versions().collect();
    let epoch = hello.epoch;
    shared.metrics.said.get_or_create(&Kind { kind: "hello" }).inc();
    if outbox.send(FromGateway::Hello(hello)).await.is_err()
        || events.send(LinkEvent::Opening(Outbox::new(epoch, outbox, open))).await.is_err()
    {
        return Ended::Unheard;
    }
    let mut greeted = false;
    tokio::select! {
        ended = listen(channel, queue, events, &mut greeted) => return ended,
        _ = left => {}
    }
    Ended::Left { greeted }
}

/// Says what comes out of `queue`, hears what the ledger says, until the stream ends.
async fn listen(
    channel: Channel,
    queue: mpsc::Receiver<FromGateway>,
    events: &mpsc::Sender<LinkEvent>,
    greeted: &mut bool,
) -> Ended {
    let ungreeted = |why: &dyn std::fmt::Display| Ended::Ungreeted(why.to_string());
    let said = ReceiverStream::new(queue).map(proto::GatewayMessage::from);
    let mut client = LedgerClient::new(channel).max_decoding_message_size(LARGEST);
    let mut heard = match tokio::time::timeout(GREET, client.connect(said)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return ungreeted(&status.message()),
        Err(_) => return ungreeted(&"it does not answer"),
    };
    loop {
        let message = if *greeted {
            heard.message().await
        } else {
            match tokio::time::timeout(GREET, heard.message()).await {
                Ok(message) => message,
                Err(_) => return ungreeted(&"it does not greet"),
            }
        };
        let (why, by_ledger) = match message {
            Ok(Some(message)) => match FromLedger::try_from(message) {
                Ok(message) => {
                    let closed = matches!(&message, FromLedger::Welcome(welcome) if welcome.epoch_closed);
                    *greeted = true;
                    if events.send(LinkEvent::Heard(message)).await.is_err() {
                        return Ended::Unheard;
                    }
                    if closed {
                        return Ended::Ungreeted("it has closed this epoch".to_owned());
                    }
                    continue;
                }
                Err(error) => {
                    // What is not understood is not acknowledged, so the operator knows who lags behind.
                    abi::log(
                        Level::Error,
                        &format!("plimsoll: a message of the ledger is not understood: {error}"),
                    );
                    continue;
                }
            },
            Ok(None) => ("it ended the stream".to_owned(), true),
            Err(status) => (status.message().to_owned(), false),
        };
        return if *greeted { Ended::Greeted { why, by_ledger } } else { Ended::Ungreeted(why) };
    }
}

pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Between half and all of `pause`: gateways that lost one operator don't come back all at once.
fn jittered(pause: Duration) -> Duration {
    let random = random_epoch().map_or(0, |epoch| u32::try_from(epoch.0 & 0xff).unwrap_or(0));
    pause / 2 + pause * random / 512
}
