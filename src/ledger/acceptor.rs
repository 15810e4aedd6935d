//! Connections of gateways by mutual TLS, with the certificates that stand in the files now.
//!
//! The files are looked at for each connection and every few seconds: a rotated certificate is presented,
//! and a replaced authority believed, without a restart. Files that don't fit together (a certificate
//! without its key yet, no PEM) leave the last good ones in use, and are named in the log once. A
//! connection that is up stays up.

use super::tls::{TlsError, TlsFiles};
use rustls::ServerConfig;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// How often the files are looked at while nobody connects: a bad one should be named soon.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a handshake may take: a few round trips.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// Handshakes at a time; one more, and the oldest is dropped. Whoever has shown no certificate yet may be
/// anybody: if the new one waited instead, a few hundred connections that say nothing would keep gateways out.
const MAX_HANDSHAKES: usize = 256;
/// The pause after a connection that could not be accepted: no file descriptor is free, for one.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A connection, its peer known.
pub(super) type Accepted = std::io::Result<TlsStream<TcpStream>>;

/// Takes connections with the certificates in `files`.
pub(super) struct Acceptor {
    files: TlsFiles,
    /// What stood in the files when they were last looked at.
    seen: Result<Pems, String>,
    config: Arc<ServerConfig>,
}

/// The three files' text.
#[derive(PartialEq, Eq)]
pub(super) struct Pems {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

impl Acceptor {
    /// An acceptor for `files`.
    ///
    /// # Errors
    /// They can't be read, or don't fit together.
    pub(super) fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let pems = files.read()?;
        let config = Arc::new(files.config(&pems)?);
        Ok(Self { files, seen: Ok(pems), config })
    }

    /// Connections of `listener`, until nobody takes them. Handshakes run beside each other.
    pub(super) fn accept(mut self, listener: TcpListener) -> ReceiverStream<Accepted> {
        let (into, accepted) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut handshakes = JoinSet::new();
            let mut by_age = VecDeque::<AbortHandle>::new();
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = into.closed() => return,
                    _ = look.tick() => self.look(),
                    Some(done) = handshakes.join_next() => {
                        if let Ok(Some(stream)) = done
                            && into.send(Ok(stream)).await.is_err()
                        {
                            return;
                        }
                    }
                    // Those beyond the most are done or dropped, and joined above.
                    connection = listener.accept(), if handshakes.len() < 2 * MAX_HANDSHAKES => match connection {
                        Ok((connection, _)) => {
                            self.look();
                            if by_age.len() >= MAX_HANDSHAKES {
                                by_age.retain(|handshake| !handshake.is_finished());
                            }
                            if by_age.len() >= MAX_HANDSHAKES && let Some(oldest) = by_age.pop_front() {
                                oldest.abort();
                            }
                            let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
                            by_age.push_back(handshakes.spawn(handshake(acceptor, connection)));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a connection can't be accepted");
                            sleep(AFTER_FAILURE).await;
                        }
                    }
                }
            }
        });
        ReceiverStream::new(accepted)
    }

    /// Uses what stands in the files now, if it is good.
    fn look(&mut self) {
        let now = self.files.read().map_err(|error| error.to_string());
        if now == self.seen {
            return;
        }
        let config = match &now {
            Ok(pems) => self.files.config(pems).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        match config {
            Ok(config) => {
                tracing::info!(cert = %self.files.cert.display(), "new TLS files are in use");
                self.config = Arc::new(config);
            }
            Err(error) => tracing::warn!("{error}; the last good TLS files stay in use"),
        }
        self.seen = now;
    }
}

async fn handshake(acceptor: TlsAcceptor, connection: TcpStream) -> Option<TlsStream<TcpStream>> {
    // Answers are small and must not wait for more.
    connection.set_nodelay(true).ok()?;
    let peer = connection.peer_addr().ok()?;
    match timeout(HANDSHAKE_WITHIN, acceptor.accept(connection)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            None
        }
    }
}
