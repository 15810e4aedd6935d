//! A client that has a certificate and no manners: each of its messages is refused by name or ignored, and
//! an honest gateway beside it is served on.

use super::fixture::*;
use plimsoll::ledger::{LedgerState, SqliteStore};
use plimsoll_core::account::{AccountKey, Amount};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::protocol::{Answer, Ask, AskId, FromGateway, FromLedger, Need, NoKind, Report};
use plimsoll_wire::proto;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// A message as it is after generating, and what is done to it.
fn broken(message: FromGateway, change: impl FnOnce(&mut proto::GatewayMessage)) -> proto::GatewayMessage {
    let mut message = message.into();
    change(&mut message);
    message
}

fn named(text: String) -> proto::GatewayMessage {
    broken(ask(1, 1), |message| {
        if let Some(proto::gateway_message::Message::Ask(ask)) = &mut message.message {
            ask.needs[0].account = text;
        }
    })
}

fn report(
    totals: Vec<plimsoll_core::protocol::Totals>,
    rows: Vec<plimsoll_core::protocol::UsageRow>,
) -> Report {
    let through = rows.iter().map(|row| row.settled_sequence).max().unwrap_or(0);
    Report { totals, rows, after: 0, through, refills: vec![] }
}

/// An account whose text form is long, and valid.
fn long(length: usize) -> AccountKey {
    AccountKey { key: "k".repeat(length), ..account() }
}

#[tokio::test]
async fn what_no_gateway_says_is_refused_by_name_and_others_are_served_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let ledger = serve(&path).await;
    ledger.set_limits(terms(1_000)).await;
    let (mut honest, _) = Gateway::greet(channel(&ledger).await, "honest", 1, vec![]).await;
    let now = ledger.now();
    let needs = |count: usize| {
        let need = Need { account: account(), reserve: Amount(1), short: Amount(1) };
        FromGateway::Ask(Ask { id: AskId(1), needs: vec![need; count], wait_ms: 1_000 })
    };
    let mut refunds = row(1, 1, now);
    refunds.charge.usd = NanoUsd(-5 * DOLLAR);
    let (mut early, mut late) = (row(1, 1, now), row(1, 1, now));
    (early.admitted_at, late.settled_at) = (UnixMs(i64::MIN), UnixMs::NEVER);
    let mut everywhere = row(1, 1, now);
    everywhere.accounts = vec![account(); 65];
    // Whether it has said Hello, what it says, and what it is told.
    let cases: Vec<(&str, bool, proto::GatewayMessage, Code, &str)> = vec![
        ("nothing", false, proto::GatewayMessage { message: None }, Code::InvalidArgument, "absent"),
        ("a report first", false, report(vec![], vec![]).said(), Code::FailedPrecondition, "must be Hello"),
        ("an ask first", false, ask(1, 1).into(), Code::FailedPrecondition, "must be Hello"),
        ("no name", false, hello("", 9, vec![]).into(), Code::InvalidArgument, "Hello.gateway is empty"),
        ("5 MB of name", false, hello(&"x".repeat(5 << 20), 9, vec![]).into(), Code::InvalidArgument, "256"),
        (
            "a command",
            false,
            hello("$(reboot)'; \u{1b}[2J", 9, vec![]).into(),
            Code::InvalidArgument,
            "Hello.gateway has characters beside",
        ),
        ("a short epoch", false, short_epoch(), Code::InvalidArgument, "Hello.epoch"),
        ("Hello again", true, hello("bad", 2, vec![]).into(), Code::FailedPrecondition, "once"),
        (
            "no account",
            true,
            named("; DROP TABLE account".into()),
            Code::InvalidArgument,
            "Ask.needs.account",
        ),
        ("5 MB of account", true, named(long(5 << 20).to_string()), Code::InvalidArgument, "1024"),
        ("5 MB of garbage", true, named("x".repeat(5 << 20)), Code::InvalidArgument, "Ask.needs.account"),
        ("65 needs", true, needs(65).into(), Code::InvalidArgument, "64 accounts"),
        ("a refund", true, report(vec![], vec![refunds]).said(), Code::InvalidArgument, "below zero"),
        ("before all years", true, report(vec![], vec![early]).said(), Code::InvalidArgument, "calendar"),
        ("after all years", true, report(vec![], vec![late]).said(), Code::InvalidArgument, "calendar"),
        ("65 accounts", true, report(vec![], vec![everywhere]).said(), Code::InvalidArgument, "64 accounts"),
    ];
    for (n, (what, greeted, message, code, words)) in (1_u64..).zip(cases) {
        let mut bad = match greeted {
            true => Gateway::greet(channel(&ledger).await, "bad", 2, vec![]).await.0,
            false => Gateway::connect(channel(&ledger).await).await.unwrap(),
        };
        bad.say.send(message).await.unwrap();
        let status = bad.ended().await;
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(status.message().contains(words), "{what}: {status:?}");
        assert!(status.message().len() < 4_096, "{what}");
        honest.say(ask(n, 1)).await;
        honest.answer(|answer| answer.earmarks == [AskId(n)]).await;
    }
    assert_eq!(ledger.spend().get(&account()).unwrap().settled, Amount(0));
    assert_eq!(*ledger.state().borrow(), LedgerState::Serving);
    assert_eq!(ledger.metrics().failures.get(), 0);
    ledger.shutdown().await;
}

trait Said {
    fn said(self) -> proto::GatewayMessage;
}

impl Said for Report {
    fn said(self) -> proto::GatewayMessage {
        FromGateway::Report(self).into()
    }
}

fn short_epoch() -> proto::GatewayMessage {
    broken(hello("bad", 9, vec![]), |message| {
        if let Some(proto::gateway_message::Message::Hello(hello)) = &mut message.message {
            hello.epoch.truncate(3);
        }
    })
}

/// Bytes as they are, where a message belongs.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;
    fn encode(&mut self, bytes: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        use prost::bytes::BufMut;
        into.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = tonic::Status;
    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, tonic::Status> {
        Ok(Some(()))
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_end_their_own_stream_only() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(1_000)).await;
    let (mut honest, _) = Gateway::greet(channel(&ledger).await, "honest", 1, vec![]).await;
    // The last one announces 64 MiB and more of itself.
    for bytes in [vec![0xff; 100], vec![0x0a; 5 << 20], vec![0; (64 << 20) + 1]] {
        let mut client = tonic::client::Grpc::new(channel(&ledger).await);
        client.ready().await.unwrap();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/plimsoll.ledger.v1.Ledger/Connect");
        let said = tonic::Request::new(tokio_stream::once(bytes));
        let ended = async {
            let mut answers = client.streaming(said, path, Raw).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        let status: tonic::Status = timeout(SOON, ended).await.unwrap().unwrap_err();
        assert!(matches!(status.code(), Code::Internal | Code::OutOfRange), "{status:?}");
    }
    honest.say(ask(1, 1)).await;
    honest.answer(|answer| answer.earmarks == [AskId(1)]).await;
    ledger.shutdown().await;
}

#[tokio::test]
async fn numbers_that_lie_move_nothing_and_numbers_that_overflow_stop_at_the_largest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let ledger = serve(&path).await;
    ledger.set_limits(terms(1_000)).await;
    let (mut bad, _) = Gateway::greet(channel(&ledger).await, "bad", 1, vec![]).await;
    bad.say(ask(1, DOLLAR)).await;
    let granted = bad.answer(|answer| answer.earmarks == [AskId(1)]).await.grants[0].granted.0;
    let now = ledger.now();
    let spent = || ledger.spend().get(&account()).unwrap();
    // What is shown may lag the answer.
    let mut moved = ledger.spend().changed();
    let mut settle_at = async |settled: i64| {
        while spent().settled != Amount(settled) {
            timeout(SOON, moved.changed()).await.unwrap_or_else(|_| panic!("{:?}", spent())).unwrap();
        }
    };

    // Rows forwards, backwards, twice: each once. Totals beyond what was granted, and below zero.
    let rows = vec![row(5, 10, now), row(3, 10, now), row(5, 10, now), row(7, 10, now)];
    bad.say(FromGateway::Report(report(vec![totals(i64::MAX, i64::MAX, 20)], rows))).await;
    bad.answer(|answer| answer.durable == 8).await;
    settle_at(20).await;
    assert_eq!(spent().outstanding, Amount(0), "it has returned all it had");
    let rows = vec![row(9, 10, now)];
    bad.say(FromGateway::Report(Report { after: 8, ..report(vec![totals(i64::MIN, -5, i64::MIN)], rows) }))
        .await;
    bad.answer(|answer| answer.durable == 10).await;
    // A row that was stored, and one of a report that never came.
    bad.say(FromGateway::Report(Report { after: 4, ..report(vec![], vec![row(7, 10, now)]) })).await;
    bad.say(FromGateway::Report(Report { after: 900, ..report(vec![], vec![row(901, 10, now)]) })).await;
    // Heard after them.
    bad.say(ask(2, 1)).await;
    bad.answer(|answer| answer.earmarks == [AskId(2)]).await;
    settle_at(30).await;
    assert!(spent().outstanding <= Amount(granted), "{:?}", spent());

    // Nobody is granted anything here any more, and the commit does not fail on the sum.
    let endless = |sequence| {
        let mut row = row(sequence, i64::MAX, now);
        (row.charge.tokens, row.charge.requests) = (u64::MAX, u64::MAX);
        (row.usage.input, row.usage.output, row.usage.cached_input) = (u64::MAX, u64::MAX, u64::MAX);
        row
    };
    bad.say(FromGateway::Report(Report { after: 10, ..report(vec![], vec![endless(11), endless(13)]) }))
        .await;
    bad.answer(|answer| answer.durable == 14).await;
    bad.say(FromGateway::Report(Report { after: 14, ..report(vec![], vec![endless(15)]) })).await;
    bad.answer(|answer| answer.durable == 16).await;
    settle_at(i64::MAX).await;
    assert_eq!(ledger.metrics().failures.get(), 0);

    let (mut honest, _) = Gateway::greet(channel(&ledger).await, "honest", 2, vec![]).await;
    honest.say(ask(1, 1)).await;
    let answer = honest.answer(|answer| !answer.noes.is_empty()).await;
    assert_eq!(answer.noes[0].kind, NoKind::Exhausted);
    ledger.shutdown().await;
    assert_eq!(SqliteStore::open(&path).await.unwrap().check().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_asks_are_answered_and_do_not_keep_others_from_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = serve(&dir.path().join("l")).await;
    ledger.set_limits(terms(1)).await;
    let (mut honest, _) = Gateway::greet(channel(&ledger).await, "honest", 1, vec![]).await;
    // It holds all there is, so that nothing that others ask for can be met.
    honest.say(ask(1, DOLLAR)).await;
    honest.answer(|answer| answer.earmarks == [AskId(1)]).await;
    let (bad, _) = Gateway::greet(channel(&ledger).await, "bad", 2, vec![]).await;
    let Gateway { say, mut heard } = bad;
    const ASKS: u64 = 100_000;
    let asking = tokio::spawn(async move {
        for id in 0..ASKS {
            let need = Need { account: account(), reserve: Amount(1), short: Amount(1) };
            let ask = Ask { id: AskId(id), needs: vec![need], wait_ms: i64::MAX };
            say.send(FromGateway::Ask(ask).into()).await.unwrap();
        }
        say
    });
    let refused = tokio::spawn(async move {
        let mut refused = 0;
        while refused < ASKS {
            let message =
                timeout(Duration::from_secs(60), heard.message()).await.expect("asks are forgotten");
            if let Ok(FromLedger::Answer(Answer { noes, .. })) = message.unwrap().unwrap().try_into() {
                assert!(noes.iter().all(|no| no.kind == NoKind::Contended));
                refused += u64::try_from(noes.len()).unwrap();
            }
        }
    });
    let mut most = 0;
    for id in 2..20 {
        // It is answered at its own time, whatever waits beside it.
        honest.say(ask(id, 2 * DOLLAR)).await;
        let answer = honest.answer(|answer| answer.noes.iter().any(|no| no.ask == AskId(id))).await;
        assert_eq!(answer.noes[0].kind, NoKind::Exhausted);
        most = most.max(ledger.metrics().waiting.get());
    }
    let _say = asking.await.unwrap();
    refused.await.unwrap();
    assert!(most <= 10_000 + 1, "{most} asks of one gateway wait");
    assert_eq!(ledger.metrics().failures.get(), 0);
    ledger.shutdown().await;
}
