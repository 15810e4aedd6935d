//! Greetings, grants, policy, and who is let in.

use super::fixture::*;
use plimsoll::ledger::{GatewayState, SqliteStore, TlsFiles, Transport, export, start};
use plimsoll_core::account::{Amount, Charge};
use plimsoll_core::ids::Epoch;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::protocol::{
    Ask, AskId, Decision, FromGateway, FromLedger, Hello, Need, NoKind, PolicyAck, Report,
};
use plimsoll_plan::Link;
use plimsoll_wire::proto;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

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
        |id: &str| ledger.hub().gateways().iter().any(|gateway| gateway.id == id && gateway.link == Link::Up);
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
    let in_there = |gateway: &GatewayState| gateway.link == Link::Up;
    assert!(
        !early.is_finished() && !ledger.hub().gateways().iter().any(in_there),
        "it was let in without a plan"
    );
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

#[tokio::test]
async fn a_call_that_cost_more_than_its_reserve_is_named_once_and_the_next_grant_pays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let ledger = serve(&path).await;
    ledger.set_limits(terms(1_000)).await;
    let (mut gateway, _) = Gateway::greet(channel(&ledger).await, "gw", 1, vec![]).await;
    gateway.say(ask(1, DOLLAR)).await;
    let granted = gateway.answer(|answer| answer.earmarks == [AskId(1)]).await.grants[0].granted.0;
    let mut dear = row(1, DOLLAR, ledger.now());
    dear.charge.usd = NanoUsd(granted + 7);
    let report = Report {
        totals: vec![totals(granted, 0, granted + 7)],
        rows: vec![dear, row(3, 0, ledger.now())],
        after: 0,
        through: 4,
        refills: vec![],
    };
    let overrun = Amount(granted + 7 - DOLLAR);
    let mut moved = ledger.spend().changed();
    // A report that comes twice is counted once.
    gateway.say(FromGateway::Report(report.clone())).await;
    gateway.say(FromGateway::Report(report)).await;
    // Its slice is 7 in debt: that is short as well.
    let need = Need { account: account(), reserve: Amount(DOLLAR), short: Amount(DOLLAR + 7) };
    gateway.say(FromGateway::Ask(Ask { id: AskId(2), needs: vec![need], wait_ms: 1_000 })).await;
    let answer = gateway.answer(|answer| answer.earmarks == [AskId(2)]).await;
    assert!(answer.grants[0].granted >= Amount(granted + DOLLAR + 7));
    while ledger.spend().get(&account()).unwrap().overrun != overrun {
        timeout(SOON, moved.changed()).await.unwrap().unwrap();
    }
    ledger.shutdown().await;
    let ledger = serve(&path).await;
    assert_eq!(ledger.spend().get(&account()).unwrap().overrun, overrun, "a restart forgets nothing");
    ledger.shutdown().await;
}
