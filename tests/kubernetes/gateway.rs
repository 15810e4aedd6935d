//! A gateway without an Envoy: it speaks the real protocol, holds policy and acknowledges it, and comes back
//! whenever the operator does. It sends no calls.

use plimsoll_core::ids::Epoch;
use plimsoll_core::policy::{PolicyKey, PolicyVersion};
use plimsoll_core::protocol::{FromGateway, FromLedger, Hello, LogState, PolicyAck};
use plimsoll_wire::proto::ledger_client::LedgerClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stream::wrappers::UnboundedReceiverStream;

#[derive(Default)]
pub struct Seen {
    pub held: BTreeMap<PolicyKey, PolicyVersion>,
    /// Policy objects that were sent, over all connections.
    pub received: usize,
    pub removed: usize,
    pub connections: usize,
}

pub struct Gateway {
    pub seen: Arc<Mutex<Seen>>,
    _runtime: tokio::runtime::Runtime,
}

impl Gateway {
    pub fn start(id: &str, grpc: u16) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (id, shared) = (id.to_owned(), Arc::clone(&seen));
        runtime.spawn(async move {
            loop {
                let _ended = connect(&id, grpc, &shared).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { seen, _runtime: runtime }
    }

    /// How many policy objects it holds: budgets, and the installation, a window, a backend and a route.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().held.len()
    }

    pub fn received(&self) -> usize {
        self.seen.lock().unwrap().received
    }

    pub fn holds(&self, key: &PolicyKey) -> Option<PolicyVersion> {
        self.seen.lock().unwrap().held.get(key).copied()
    }
}

async fn connect(
    id: &str,
    grpc: u16,
    seen: &Mutex<Seen>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{grpc}"))?;
    let mut client = LedgerClient::new(endpoint.connect().await?).max_decoding_message_size(64 << 20);
    let policy = seen.lock().unwrap().held.iter().map(|(key, version)| (key.clone(), *version)).collect();
    let epoch = Epoch(id.bytes().fold(1, |sum, byte| sum * 31 + u128::from(byte)));
    // A log without a call in it: new at first, and whole ever after.
    let log = if seen.lock().unwrap().connections == 0 { LogState::New } else { LogState::Intact };
    let hello = Hello { gateway: id.to_owned(), epoch, log, totals: vec![], sequence: 0, policy };
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    say.send(FromGateway::Hello(hello).into())?;
    let mut heard = client.connect(UnboundedReceiverStream::new(said)).await?.into_inner();
    seen.lock().unwrap().connections += 1;
    while let Some(message) = heard.message().await? {
        let FromLedger::PolicyDelta(delta) = message.try_into()? else { continue };
        let number = delta.number;
        {
            let mut seen = seen.lock().unwrap();
            if delta.whole {
                seen.held.clear();
            }
            seen.received += delta.objects.len();
            seen.removed += delta.removed.len();
            for key in &delta.removed {
                seen.held.remove(key);
            }
            seen.held.extend(delta.objects.into_iter().map(|object| (object.key, object.version)));
        }
        say.send(FromGateway::PolicyAck(PolicyAck { number, rejected: vec![] }).into())?;
    }
    Ok(())
}
