//! The ledger's server over real gRPC and a real SQLite file: greetings, grants, policy, failures.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use plimsoll::ledger::{
    LedgerHandle, LedgerState, ServerSettings, SqliteStore, Store, TlsFiles, Transport, export, start,
};
use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::ids::{Epoch, ObjectName, UnixMs};
use plimsoll_core::ledger::{Rows, Terms, Touched};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Enforcement, PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::{
    Answer, Ask, AskId, Caller, Decision, FromGateway, FromLedger, Hello, LogState, Need, NoKind, Outcome,
    PolicyAck, PolicyDelta, Report, Totals, UsageRow, Welcome,
};
use plimsoll_core::usage::Usage;
use plimsoll_wire::proto;
use plimsoll_wire::proto::ledger_client::LedgerClient;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

const DOLLAR: i64 = 1_000_000_000;
const SOON: Duration = Duration::from_secs(20);

fn settings(transport: Transport) -> ServerSettings {
    ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        transport,
        ride_through_ms: 60_000,
        lost_after_ms: 600_000,
    }
}

async fn serve(path: &Path) -> LedgerHandle {
    let ledger = start(settings(Transport::PlainText), SqliteStore::open(path).await.unwrap()).await.unwrap();
    // The first publication lets gateways in.
    ledger.publish(BTreeMap::new(), vec![], vec![]).await;
    ledger
}

/// The whole of finance's money for ever.
fn limit() -> LimitKey {
    LimitKey::new(ObjectName::new("finance", "all"), "total".into(), Unit::Usd, "Total@UTC".into())
}

fn account() -> AccountKey {
    AccountKey { limit: limit(), start: UnixMs(0), key: String::new() }
}

fn terms(usd: i64) -> BTreeMap<LimitKey, Terms> {
    let amount = Amount(usd * DOLLAR);
    [(limit(), Terms { amount, block_at: amount, enforcement: Enforcement::Enforce })].into()
}

fn object(name: &str, body: String) -> PolicyObject {
    let key = PolicyKey::Budget(ObjectName::new("finance", name));
    PolicyObject { key, version: PolicyVersion::of(&body), body }
}

/// A gateway that says what the test makes it say.
struct Gateway {
    say: mpsc::Sender<proto::GatewayMessage>,
    heard: Streaming<proto::LedgerMessage>,
}

impl Gateway {
    async fn connect(channel: Channel) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(64);
        let mut client = LedgerClient::new(channel).max_decoding_message_size(64 << 20);
        let heard = client.connect(ReceiverStream::new(said)).await?.into_inner();
        Ok(Self { say, heard })
    }

    async fn greet(channel: Channel, id: &str, epoch: u128, totals: Vec<Totals>) -> (Self, Welcome) {
        let mut gateway = Self::connect(channel).await.unwrap();
        gateway.say(hello(id, epoch, totals)).await;
        let FromLedger::Welcome(welcome) = gateway.hear().await.unwrap() else { panic!("no Welcome first") };
        (gateway, welcome)
    }

    async fn say(&self, message: FromGateway) {
        self.say.send(message.into()).await.unwrap();
    }

    async fn hear(&mut self) -> Result<FromLedger, Status> {
        let message = timeout(SOON, self.heard.message()).await.expect("the ledger says nothing")?;
        let message = message.ok_or_else(|| Status::ok("the stream ended"))?;
        Ok(message.try_into().unwrap())
    }

    /// The next answer for which `found`.
    async fn answer(&mut self, found: impl Fn(&Answer) -> bool) -> Answer {
        loop {
            match self.hear().await.unwrap() {
                FromLedger::Answer(answer) if found(&answer) => return answer,
                _ => {}
            }
        }
    }

    async fn delta(&mut self) -> PolicyDelta {
        loop {
            if let FromLedger::PolicyDelta(delta) = self.hear().await.unwrap() {
                return delta;
            }
        }
    }

    /// Ends its side; everything said before has reached the ledger's task when the other side ends too.
    async fn end(self) {
        let Self { say, mut heard } = self;
        drop(say);
        while timeout(SOON, heard.message()).await.unwrap().is_ok_and(|message| message.is_some()) {}
    }

    async fn ended(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }
}

fn hello(id: &str, epoch: u128, totals: Vec<Totals>) -> FromGateway {
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

fn ask(id: u64, nanos: i64) -> FromGateway {
    let need = Need { account: account(), reserve: Amount(nanos), short: Amount(nanos) };
    FromGateway::Ask(Ask { id: AskId(id), needs: vec![need], wait_ms: 1_000 })
}

fn totals(granted: i64, returned: i64, settled: i64) -> Totals {
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

fn row(sequence: u64, nanos: i64, now: UnixMs) -> UsageRow {
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

async fn channel(ledger: &LedgerHandle) -> Channel {
    Endpoint::from_shared(format!("http://{}", ledger.address())).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn a_gateway_is_welcomed_granted_and_charged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let ledger = serve(&path).await;
    ledger.publish(terms(10), vec![object("all", "{}".into())], vec![]).await;
    let (mut gateway, welcome) = Gateway::greet(channel(&ledger).await, "gw-1", 1, vec![]).await;
    assert!(!welcome.epoch_closed && !welcome.went_back && welcome.hmac_key != [0; 32]);
    let delta = gateway.delta().await;
    assert_eq!((delta.number, delta.whole, delta.objects.len()), (1, true, 1));
    gateway.say(FromGateway::PolicyAck(PolicyAck { number: 1, rejected: vec![] })).await;
    let key = &delta.objects[0].key;
    let mut changed = ledger.hub().changed();
    while ledger.hub().in_force(key).holding == 0 {
        timeout(SOON, changed.changed()).await.unwrap().unwrap();
    }

    gateway.say(ask(1, DOLLAR)).await;
    let answer = gateway.answer(|answer| answer.earmarks == [AskId(1)]).await;
    let granted = answer.grants[0].granted;
    assert!(granted >= Amount(DOLLAR) && granted <= Amount(10 * DOLLAR), "{granted:?}");
    let settled = row(1, DOLLAR / 4, ledger.now());
    let report = Report {
        totals: vec![totals(granted.0, 0, DOLLAR / 4)],
        rows: vec![settled.clone()],
        after: 0,
        through: 2,
        refills: vec![],
    };
    let mut moved = ledger.spend().changed();
    gateway.say(FromGateway::Report(report)).await;
    gateway.answer(|answer| answer.durable == 2).await;
    let decision = Decision {
        request_id: "r9".into(),
        account: Some(account()),
        accounts: vec![account()],
        stage: String::new(),
        reason: "budget_exceeded".into(),
        reserve: Charge::default(),
        paused_at: ledger.now(),
        answered_at: ledger.now(),
    };
    gateway.say(FromGateway::Decisions(vec![decision])).await;
    while ledger.spend().get(&account()).unwrap().settled != Amount(DOLLAR / 4) {
        timeout(SOON, moved.changed()).await.unwrap().unwrap();
    }
    assert_eq!(ledger.spend().of(&limit()).len(), 1);
    assert_eq!(ledger.spend().get(&account()).unwrap().outstanding, Amount(granted.0 - DOLLAR / 4));
    gateway.say(FromGateway::Close).await;
    gateway.end().await;
    ledger.shutdown().await;

    let export = export(&path).await.unwrap();
    assert_eq!(export.rows, [(Epoch(1), settled)]);
    assert_eq!(export.decisions.len(), 1, "what had arrived is committed before the end");
    assert_eq!(SqliteStore::open(&path).await.unwrap().check().await.unwrap(), []);
}

#[tokio::test]
async fn nothing_is_granted_beyond_the_amount_and_the_no_says_exhausted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(1)).await;
    let (mut gateway, _) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    gateway.say(ask(1, 2 * DOLLAR)).await;
    let answer = gateway.answer(|answer| !answer.noes.is_empty()).await;
    assert_eq!((answer.noes[0].ask, answer.noes[0].kind), (AskId(1), NoKind::Exhausted));
    ledger.set_limits(terms(3)).await;
    gateway.answer(|answer| answer.withdrawals == [account()]).await;
    ledger.shutdown().await;
}

#[tokio::test]
async fn the_newest_hello_of_an_epoch_speaks_and_the_older_stream_ends() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(5)).await;
    let (mut old, _) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    let (mut new, welcome) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    assert!(!welcome.epoch_closed);
    let status = old.ended().await;
    assert!(status.message().contains("newer stream"), "{status:?}");
    new.say(ask(1, DOLLAR)).await;
    new.answer(|answer| answer.earmarks == [AskId(1)]).await;
    ledger.shutdown().await;
}

#[tokio::test]
async fn whoever_does_not_say_hello_first_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    let mut gateway = Gateway::connect(channel(&ledger).await).await.unwrap();
    gateway.say(ask(1, 1)).await;
    let status = gateway.ended().await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
    let mut gateway = Gateway::connect(channel(&ledger).await).await.unwrap();
    gateway.say.send(proto::GatewayMessage { message: None }).await.unwrap();
    assert_eq!(gateway.ended().await.code(), tonic::Code::InvalidArgument);
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_changed_budget_reaches_every_gateway_as_one_small_delta() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    let many: Vec<_> = (0..10_000).map(|n| object(&format!("b{n}"), format!("{{\"n\":{n}}}"))).collect();
    ledger.publish(terms(5), many, vec![]).await;
    let channel = channel(&ledger).await;
    let mut gateways = Vec::new();
    for n in 0..4 {
        let (mut gateway, _) = Gateway::greet(channel.clone(), &format!("gw-{n}"), n, vec![]).await;
        assert_eq!(gateway.delta().await.objects.len(), 10_000);
        gateway.say(FromGateway::PolicyAck(PolicyAck { number: 1, rejected: vec![] })).await;
        gateways.push(gateway);
    }
    let changed = object("b7", "{\"n\":\"other\"}".into());
    let key = changed.key.clone();
    let started = Instant::now();
    ledger.publish(terms(4), vec![changed], vec![object("b8", String::new()).key]).await;
    let mut followed = ledger.hub().changed();
    for gateway in &mut gateways {
        let delta = gateway.delta().await;
        assert_eq!((delta.whole, delta.objects.len(), delta.removed.len()), (false, 1, 1));
        gateway.say(FromGateway::PolicyAck(PolicyAck { number: delta.number, rejected: vec![] })).await;
    }
    while ledger.hub().in_force(&key).holding < 4 {
        timeout(SOON, followed.changed()).await.unwrap().unwrap();
    }
    println!("published to acknowledged by 4 gateways, 10,000 objects loaded: {:?}", started.elapsed());
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_gateway_that_does_not_read_is_cut_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    let big: Vec<_> = (0..8).map(|n| object(&format!("b{n}"), "x".repeat(1 << 20))).collect();
    ledger.publish(terms(5), big, vec![]).await;
    // It says Hello, and never takes what it is told: the policy is larger than every window.
    let silent = Gateway::connect(channel(&ledger).await).await.unwrap();
    silent.say(hello("slow", 1, vec![])).await;
    let (mut quick, _) = Gateway::greet(channel(&ledger).await, "quick", 2, vec![]).await;
    let mut changed = ledger.hub().changed();
    let connected =
        |id: &str| ledger.hub().gateways().iter().any(|gateway| gateway.id == id && gateway.connected);
    while !connected("slow") {
        timeout(SOON, changed.changed()).await.unwrap().unwrap();
    }
    quick.delta().await;
    // More than may be under way to one stream.
    for n in 1..7 {
        ledger.publish(terms(5), vec![object("b0", format!("{n}"))], vec![]).await;
        let number = quick.delta().await.number;
        quick.say(FromGateway::PolicyAck(PolicyAck { number, rejected: vec![] })).await;
    }
    quick.say(ask(1, DOLLAR)).await;
    quick.answer(|answer| answer.earmarks == [AskId(1)]).await;
    while connected("slow") {
        timeout(SOON, changed.changed()).await.unwrap().unwrap();
    }
    assert!(connected("quick"));
    ledger.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_gateways_say_hello_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.publish(terms(5_000), vec![object("all", "{}".into())], vec![]).await;
    let before = ledger.metrics().commits.get();
    let started = Instant::now();
    let mut greeted = tokio::task::JoinSet::new();
    for connection in 0..20 {
        let channel = channel(&ledger).await;
        for n in 0..50 {
            let (channel, n) = (channel.clone(), connection * 50 + n);
            greeted.spawn(async move {
                let (mut gateway, welcome) = Gateway::greet(channel, &format!("gw-{n}"), n, vec![]).await;
                gateway.say(ask(1, DOLLAR)).await;
                gateway.answer(|answer| answer.earmarks == [AskId(1)]).await;
                (gateway, welcome)
            });
        }
    }
    let gateways = greeted.join_all().await;
    assert!(gateways.iter().all(|(_, welcome)| !welcome.epoch_closed));
    let commits = ledger.metrics().commits.get() - before;
    println!("1,000 Hellos and asks: {:?}, {commits} commits", started.elapsed());
    assert!(commits < 1_000, "2,000 messages were not gathered: {commits} commits");
    let spent = ledger.spend().get(&account()).unwrap();
    assert!(
        spent.outstanding >= Amount(1_000 * DOLLAR) && spent.outstanding <= Amount(5_000 * DOLLAR),
        "{spent:?}"
    );
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_is_a_clear_state_and_nothing_is_granted_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path().join("l")).await.unwrap());
    let ledger = start(settings(Transport::PlainText), Shared(Arc::clone(&store))).await.unwrap();
    ledger.publish(terms(5), vec![], vec![]).await;
    let (mut gateway, first) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    gateway.say(ask(1, DOLLAR)).await;
    let granted = gateway.answer(|answer| answer.earmarks == [AskId(1)]).await.grants[0].granted;
    // As many pages as it has: the next row that needs one fails.
    store.set_max_pages(1).await;
    let mut state = ledger.state();
    let rows: Vec<_> = (0..2_000).map(|n| row(2 * n + 1, 1, ledger.now())).collect();
    let through = 2 * 2_000;
    let report =
        Report { totals: vec![totals(granted.0, 0, 2_000)], rows, after: 0, through, refills: vec![] };
    gateway.say(FromGateway::Report(report.clone())).await;
    let status = gateway.ended().await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    let failed =
        timeout(SOON, state.wait_for(|state| *state != LedgerState::Serving)).await.unwrap().unwrap().clone();
    let LedgerState::Failed { why } = failed else { panic!("{failed:?}") };
    assert!(why.contains("full"), "{why}");

    store.set_max_pages(0).await;
    timeout(SOON, state.wait_for(|state| *state == LedgerState::Serving)).await.unwrap().unwrap();
    let (mut gateway, again) =
        Gateway::greet(channel(&ledger).await, "gw", 1, vec![totals(granted.0, 0, 0)]).await;
    assert_ne!(again.incarnation, first.incarnation, "noes of the life that failed are void");
    assert_eq!((again.durable, again.holdings[0].granted, again.went_back), (0, granted, false));
    gateway.say(FromGateway::Report(report)).await;
    gateway.answer(|answer| answer.durable == through).await;
    assert_eq!(store.check().await.unwrap(), []);
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_gateway_that_comes_back_before_the_first_plan_keeps_its_policy_and_its_slices() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let all = object("all", "{}".into());
    let ledger = serve(&path).await;
    ledger.publish(terms(10), vec![all.clone()], vec![]).await;
    let (mut gateway, _) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    gateway.say(ask(1, DOLLAR)).await;
    let granted = gateway.answer(|answer| answer.earmarks == [AskId(1)]).await.grants[0].granted;
    ledger.shutdown().await;

    let store = SqliteStore::open(&path).await.unwrap();
    let ledger = start(settings(Transport::PlainText), store).await.unwrap();
    let early = tokio::spawn({
        // Connected by the listener's queue; nobody has accepted it.
        let endpoint = Endpoint::from_shared(format!("http://{}", ledger.address())).unwrap();
        let channel = endpoint.connect_lazy();
        let held = (all.key.clone(), all.version);
        async move {
            let mut gateway = Gateway::connect(channel).await.unwrap();
            let FromGateway::Hello(hello) = hello("gw", 1, vec![totals(granted.0, 0, 0)]) else { panic!() };
            gateway.say(FromGateway::Hello(Hello { policy: vec![held], ..hello })).await;
            let first = gateway.hear().await.unwrap();
            (gateway, first)
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!early.is_finished() && ledger.hub().gateways().is_empty(), "it was let in without a plan");
    ledger.publish(terms(10), vec![all], vec![]).await;
    let (mut gateway, first) = timeout(SOON, early).await.unwrap().unwrap();
    assert!(matches!(first, FromLedger::Welcome(_)), "{first:?}");
    let (mut told, mut answered) = (false, false);
    while !(told && answered) {
        match gateway.hear().await.unwrap() {
            FromLedger::PolicyDelta(delta) => {
                assert!(delta.removed.is_empty() && delta.objects.is_empty(), "{delta:?}");
                told = true;
            }
            FromLedger::Answer(answer) => {
                assert!(answer.grants.iter().all(|grant| grant.recall == 0), "{answer:?}");
                answered |= answer.grants.iter().any(|grant| grant.granted == granted);
            }
            FromLedger::Welcome(_) => panic!("welcomed twice"),
        }
    }
    ledger.shutdown().await;
}

/// A store that the test keeps a hand on.
struct Shared(Arc<SqliteStore>);

impl Store for Shared {
    fn identity(&self) -> &plimsoll::ledger::Identity {
        self.0.identity()
    }
    fn latest(&self) -> UnixMs {
        self.0.latest()
    }
    async fn commit<T: Send>(
        &self,
        touched: Touched,
        now: UnixMs,
        step: impl FnOnce(&mut Rows) -> T + Send,
    ) -> Result<T, plimsoll::ledger::StoreError> {
        self.0.commit(touched, now, step).await
    }
    async fn probe(&self, now: UnixMs) -> Result<(), plimsoll::ledger::StoreError> {
        self.0.probe(now).await
    }
    async fn books(&self) -> Result<plimsoll::ledger::Books, plimsoll::ledger::StoreError> {
        self.0.books().await
    }
    async fn forget(
        &self,
        now: UnixMs,
    ) -> Result<plimsoll::ledger::store::Forgotten, plimsoll::ledger::StoreError> {
        self.0.forget(now).await
    }
}

#[tokio::test]
async fn a_ledger_that_was_restored_from_a_backup_says_that_it_went_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(5)).await;
    let (_other, _) = Gateway::greet(channel(&ledger).await, "other", 2, vec![]).await;
    ledger.shutdown().await;
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(5)).await;
    let (_gateway, welcome) =
        Gateway::greet(channel(&ledger).await, "gw", 1, vec![totals(DOLLAR, 0, 0)]).await;
    assert!(welcome.went_back);
    let mut state = ledger.state();
    timeout(SOON, state.wait_for(|state| *state == LedgerState::WentBack)).await.unwrap().unwrap();
    let (_other, _) = Gateway::greet(channel(&ledger).await, "other", 2, vec![]).await;
    timeout(SOON, state.wait_for(|state| *state == LedgerState::Serving)).await.unwrap().unwrap();
    ledger.shutdown().await;
}

/// An authority, and certificates that it signs.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test]
async fn only_a_gateway_with_a_certificate_of_our_authority_may_connect() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let (cert, key) = ours.sign("localhost");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = TlsFiles {
        ca: write("ca.pem", &ours.certificate.pem()),
        cert: write("cert.pem", &cert),
        key: write("key.pem", &key),
    };
    let store = SqliteStore::open(dir.path().join("l")).await.unwrap();
    let ledger = start(settings(Transport::MutualTls(files)), store).await.unwrap();
    ledger.publish(BTreeMap::new(), vec![], vec![]).await;
    let port = ledger.address().port();
    let endpoint = |scheme: &str| Endpoint::from_shared(format!("{scheme}://localhost:{port}")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ours.certificate.pem()));

    let (cert, key) = ours.sign("gateway");
    let right = tls.clone().identity(Identity::from_pem(cert, key));
    let channel = endpoint("https").tls_config(right).unwrap().connect().await.unwrap();
    let (_gateway, welcome) = Gateway::greet(channel, "gw", 1, vec![]).await;
    assert!(!welcome.epoch_closed);

    let (cert, key) = Authority::new().sign("gateway");
    let foreign = tls.clone().identity(Identity::from_pem(cert, key));
    for wrong in [foreign, tls] {
        let channel = endpoint("https").tls_config(wrong).unwrap().connect_lazy();
        assert!(is_refused(channel).await, "a stranger was let in");
    }
    assert!(is_refused(endpoint("http").connect_lazy()).await, "plain text was let in");
    assert_eq!(ledger.hub().gateways().len(), 1);
    ledger.shutdown().await;
}

async fn is_refused(channel: Channel) -> bool {
    let Ok(mut gateway) = Gateway::connect(channel).await else { return true };
    // TLS 1.3 tells the client only after its first words.
    let _ = gateway.say.send(hello("stranger", 9, vec![]).into()).await;
    gateway.hear().await.is_err()
}
