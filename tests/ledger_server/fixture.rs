//! A ledger on a file, and gateways that say what the test makes them say.

use plimsoll::ledger::{LedgerHandle, ServerSettings, SqliteStore, Transport, start};
use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::ledger::Terms;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Enforcement, PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::{
    Answer, Ask, AskId, Caller, FromGateway, FromLedger, Hello, LogState, Need, Outcome, PolicyDelta, Totals,
    UsageRow, Welcome,
};
use plimsoll_core::usage::Usage;
use plimsoll_wire::proto;
use plimsoll_wire::proto::ledger_client::LedgerClient;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub const DOLLAR: i64 = 1_000_000_000;
pub const SOON: Duration = Duration::from_secs(20);

pub fn settings(transport: Transport) -> ServerSettings {
    ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        transport,
        ride_through_ms: 60_000,
        lost_after_ms: 600_000,
    }
}

pub async fn serve(path: &Path) -> LedgerHandle {
    let ledger = start(settings(Transport::PlainText), SqliteStore::open(path).await.unwrap()).await.unwrap();
    // The first publication lets gateways in.
    ledger.publish(BTreeMap::new(), vec![], vec![]).await;
    ledger
}

/// The whole of finance's money for ever.
pub fn limit() -> LimitKey {
    LimitKey::new(ObjectName::new("finance", "all"), "total".into(), Unit::Usd, "Total@UTC".into())
}

pub fn account() -> AccountKey {
    AccountKey { limit: limit(), start: UnixMs(0), key: String::new() }
}

pub fn terms(usd: i64) -> BTreeMap<LimitKey, Terms> {
    let amount = Amount(usd * DOLLAR);
    [(limit(), Terms { amount, block_at: amount, enforcement: Enforcement::Enforce })].into()
}

pub fn object(name: &str, body: String) -> PolicyObject {
    let key = PolicyKey::Budget(ObjectName::new("finance", name));
    PolicyObject { key, version: PolicyVersion::of(&body), body }
}

/// A gateway that says what the test makes it say.
pub struct Gateway {
    pub say: mpsc::Sender<proto::GatewayMessage>,
    pub heard: Streaming<proto::LedgerMessage>,
}

impl Gateway {
    pub async fn connect(channel: Channel) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(64);
        let mut client = LedgerClient::new(channel).max_decoding_message_size(64 << 20);
        let heard = client.connect(ReceiverStream::new(said)).await?.into_inner();
        Ok(Self { say, heard })
    }

    pub async fn greet(channel: Channel, id: &str, epoch: u128, totals: Vec<Totals>) -> (Self, Welcome) {
        let mut gateway = Self::connect(channel).await.unwrap();
        gateway.say(hello(id, epoch, totals)).await;
        let FromLedger::Welcome(welcome) = gateway.hear().await.unwrap() else { panic!("no Welcome first") };
        (gateway, welcome)
    }

    pub async fn say(&self, message: FromGateway) {
        self.say.send(message.into()).await.unwrap();
    }

    pub async fn hear(&mut self) -> Result<FromLedger, Status> {
        let message = timeout(SOON, self.heard.message()).await.expect("the ledger says nothing")?;
        let message = message.ok_or_else(|| Status::ok("the stream ended"))?;
        Ok(message.try_into().unwrap())
    }

    /// The next answer for which `found`.
    pub async fn answer(&mut self, found: impl Fn(&Answer) -> bool) -> Answer {
        loop {
            match self.hear().await.unwrap() {
                FromLedger::Answer(answer) if found(&answer) => return answer,
                _ => {}
            }
        }
    }

    pub async fn delta(&mut self) -> PolicyDelta {
        loop {
            if let FromLedger::PolicyDelta(delta) = self.hear().await.unwrap() {
                return delta;
            }
        }
    }

    /// Ends its side; everything said before has reached the ledger's task when the other side ends too.
    pub async fn end(self) {
        let Self { say, mut heard } = self;
        drop(say);
        while timeout(SOON, heard.message()).await.unwrap().is_ok_and(|message| message.is_some()) {}
    }

    pub async fn ended(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }
}

pub fn hello(id: &str, epoch: u128, totals: Vec<Totals>) -> FromGateway {
    let log = if totals.is_empty() { LogState::New } else { LogState::Intact };
    FromGateway::Hello(Hello {
        gateway: id.into(),
        epoch: Epoch(epoch),
        log,
        totals,
        sequence: 0,
        policy: vec![],
    })
}

pub fn ask(id: u64, nanos: i64) -> FromGateway {
    let need = Need { account: account(), reserve: Amount(nanos), short: Amount(nanos) };
    FromGateway::Ask(Ask { id: AskId(id), needs: vec![need], wait_ms: 1_000 })
}

pub fn totals(granted: i64, returned: i64, settled: i64) -> Totals {
    Totals {
        account: account(),
        granted: Amount(granted),
        returned: Amount(returned),
        settled: Amount(settled),
        reserved: Amount(0),
        rate: Amount(0),
        w_max: Amount(DOLLAR / 100),
        recall_seen: 0,
    }
}

pub fn row(sequence: u64, nanos: i64, now: UnixMs) -> UsageRow {
    UsageRow {
        sequence,
        settled_sequence: sequence + 1,
        request_id: format!("r{sequence}"),
        attempt: 0,
        paused_at: now,
        admitted_at: now,
        settled_at: now,
        accounts: vec![account()],
        observed: vec![],
        caller: Caller { namespace: "finance".into(), ..Caller::default() },
        route: "assistant".into(),
        tier: "standard".into(),
        backend: ObjectName::new("plimsoll-system", "openai"),
        model: "m".into(),
        usage: Usage::default(),
        charge: Charge { usd: NanoUsd(nanos), tokens: 1, requests: 1 },
        reserve: Charge { usd: NanoUsd(nanos), tokens: 1, requests: 1 },
        best_tier_cost: NanoUsd(nanos),
        price_version: PriceVersion(1),
        outcome: Outcome::Completed,
    }
}

pub async fn channel(ledger: &LedgerHandle) -> Channel {
    Endpoint::from_shared(format!("http://{}", ledger.address())).unwrap().connect().await.unwrap()
}
