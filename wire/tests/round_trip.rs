//! What goes over the wire comes back as it was, and what is damaged says where.
#![allow(missing_docs)]

use plimsoll_core::account::{AccountKey, Amount, Charge, LimitKey, Unit};
use plimsoll_core::ids::{Epoch, Incarnation, ObjectName, UnixMs};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::*;
use plimsoll_core::usage::Usage;
use plimsoll_wire::proto;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,8}"
}

fn object() -> impl Strategy<Value = ObjectName> {
    (name(), name()).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

fn amount() -> impl Strategy<Value = Amount> {
    any::<i64>().prop_map(Amount)
}

fn at() -> impl Strategy<Value = UnixMs> {
    any::<i64>().prop_map(UnixMs)
}

fn account() -> impl Strategy<Value = AccountKey> {
    let unit = prop_oneof![Just(Unit::Usd), Just(Unit::Tokens), Just(Unit::Requests)];
    (object(), name(), unit, "[A-Z][a-z]{2,5}@[A-Z][a-z]{2,5}/[A-Z][a-z]{2,5}", at(), ".{0,6}").prop_map(
        |(budget, limit, unit, window, start, key)| AccountKey {
            limit: LimitKey::new(budget, limit, unit, window),
            start,
            key,
        },
    )
}

fn charge() -> impl Strategy<Value = Charge> {
    any::<(i64, u64, u64)>().prop_map(|(usd, tokens, requests)| Charge {
        usd: NanoUsd(usd),
        tokens,
        requests,
    })
}

fn totals() -> impl Strategy<Value = Totals> {
    (account(), amount(), amount(), amount(), amount(), amount(), amount(), any::<u64>()).prop_map(
        |(account, granted, returned, settled, reserved, rate, w_max, recall_seen)| Totals {
            account,
            granted,
            returned,
            settled,
            reserved,
            rate,
            w_max,
            recall_seen,
        },
    )
}

fn row() -> impl Strategy<Value = UsageRow> {
    let caller = (name(), name(), name(), name(), name(), name()).prop_map(
        |(namespace, feature, customer, user_hash, service_account, session)| Caller {
            namespace,
            feature,
            customer,
            user_hash,
            service_account,
            session,
        },
    );
    let usage = any::<(u64, u64, u64, u64, u64)>().prop_map(
        |(input, cached_input, cache_write, output, reasoning)| Usage {
            input,
            cached_input,
            cache_write,
            output,
            reasoning,
        },
    );
    let outcome = prop_oneof![
        Just(Outcome::Completed),
        Just(Outcome::UsageMissing),
        Just(Outcome::ProviderError),
        Just(Outcome::Abandoned),
        Just(Outcome::Replayed)
    ];
    let head = (
        any::<(u64, u64, u32)>(),
        ".{0,9}",
        at(),
        at(),
        at(),
        vec(account(), 0..3),
        vec(object(), 0..2),
        caller,
    );
    let tail = (name(), name(), object(), name(), usage, charge(), charge(), any::<(i64, u64)>(), outcome);
    (head, tail).prop_map(|(head, tail)| {
        let (
            (sequence, settled_sequence, attempt),
            request_id,
            paused_at,
            admitted_at,
            settled_at,
            accounts,
            observed,
            caller,
        ) = head;
        let (route, tier, backend, model, usage, charge, reserve, (best, price), outcome) = tail;
        UsageRow {
            sequence,
            settled_sequence,
            request_id,
            attempt,
            paused_at,
            admitted_at,
            settled_at,
            accounts,
            observed,
            caller,
            route,
            tier,
            backend,
            model,
            usage,
            charge,
            reserve,
            best_tier_cost: NanoUsd(best),
            price_version: PriceVersion(price),
            outcome,
        }
    })
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    prop_oneof![
        Just(PolicyKey::Installation),
        "[A-Z][a-z]{2,5}@[A-Z]{3}/[a-z]{3}".prop_map(PolicyKey::Window),
        object().prop_map(PolicyKey::Backend),
        object().prop_map(PolicyKey::Route),
        object().prop_map(PolicyKey::Budget),
    ]
}

fn from_gateway() -> impl Strategy<Value = FromGateway> {
    let log = prop_oneof![
        Just(LogState::New),
        Just(LogState::Intact),
        Just(LogState::Gap),
        Just(LogState::NodeCrashed)
    ];
    let held = vec((policy_key(), any::<u64>().prop_map(PolicyVersion)), 0..3);
    let hello = (name(), any::<u128>(), log, vec(totals(), 0..3), any::<u64>(), held).prop_map(
        |(gateway, epoch, log, totals, sequence, policy)| {
            FromGateway::Hello(Hello { gateway, epoch: Epoch(epoch), log, totals, sequence, policy })
        },
    );
    let report = (vec(totals(), 0..3), vec(row(), 0..3), any::<(u64, u64)>(), vec(account(), 0..3)).prop_map(
        |(totals, rows, (after, through), refills)| {
            FromGateway::Report(Report { totals, rows, after, through, refills })
        },
    );
    let need = (account(), amount(), amount()).prop_map(|(account, reserve, short)| Need {
        account,
        reserve,
        short,
    });
    let ask = (any::<u64>(), vec(need, 0..3), any::<i64>())
        .prop_map(|(id, needs, wait_ms)| FromGateway::Ask(Ask { id: AskId(id), needs, wait_ms }));
    let decision = (
        name(),
        option::of(account()),
        vec(account(), 0..2),
        name(),
        name(),
        charge(),
        at(),
        at(),
    )
        .prop_map(|(request_id, account, accounts, stage, reason, reserve, paused_at, answered_at)| {
            Decision { request_id, account, accounts, stage, reason, reserve, paused_at, answered_at }
        });
    let ack = (any::<u64>(), vec((policy_key(), ".{0,9}"), 0..3))
        .prop_map(|(number, rejected)| FromGateway::PolicyAck(PolicyAck { number, rejected }));
    prop_oneof![
        hello,
        report,
        ask,
        any::<u64>().prop_map(|id| FromGateway::Cancel(AskId(id))),
        vec(decision, 0..3).prop_map(FromGateway::Decisions),
        ack,
        Just(FromGateway::Close),
    ]
}

fn from_ledger() -> impl Strategy<Value = FromLedger> {
    let holding = (account(), amount(), amount(), amount())
        .prop_map(|(account, granted, returned, settled)| Holding { account, granted, returned, settled });
    let welcome =
        (any::<u128>(), at(), any::<u64>(), vec(holding, 0..3), any::<[u8; 32]>(), any::<(bool, bool)>())
            .prop_map(|(incarnation, now, durable, holdings, hmac_key, (went_back, epoch_closed))| {
                let incarnation = Incarnation(incarnation);
                FromLedger::Welcome(Welcome {
                    incarnation,
                    now,
                    durable,
                    holdings,
                    hmac_key,
                    went_back,
                    epoch_closed,
                })
            });
    let grant = (account(), amount(), amount(), any::<(bool, u64, bool)>()).prop_map(
        |(account, granted, size, (small, recall, recalled))| Grant {
            account,
            granted,
            size,
            small,
            recall,
            recalled,
        },
    );
    let kind = prop_oneof![Just(NoKind::Exhausted), Just(NoKind::Contended)];
    let no = (any::<u64>(), account(), kind, amount(), amount())
        .prop_map(|(ask, account, kind, reserve, used)| No { ask: AskId(ask), account, kind, reserve, used });
    let answer =
        (vec(grant, 0..3), vec(any::<u64>(), 0..3), vec(no, 0..3), vec(account(), 0..3), any::<u64>(), at())
            .prop_map(|(grants, earmarks, noes, withdrawals, durable, now)| {
                let earmarks = earmarks.into_iter().map(AskId).collect();
                FromLedger::Answer(Answer { grants, earmarks, noes, withdrawals, durable, now })
            });
    let policy = (policy_key(), any::<u64>(), ".{0,20}").prop_map(|(key, version, body)| PolicyObject {
        key,
        version: PolicyVersion(version),
        body,
    });
    let delta = (any::<(u64, bool)>(), vec(policy, 0..3), vec(policy_key(), 0..3)).prop_map(
        |((number, whole), objects, removed)| {
            FromLedger::PolicyDelta(PolicyDelta { number, whole, objects, removed })
        },
    );
    prop_oneof![welcome, answer, delta]
}

proptest! {
    #[test]
    fn what_a_gateway_says_arrives_as_it_was_said(message in from_gateway()) {
        let bytes = proto::GatewayMessage::from(message.clone()).encode_to_vec();
        let heard = proto::GatewayMessage::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(FromGateway::try_from(heard), Ok(message));
    }

    #[test]
    fn what_the_ledger_says_arrives_as_it_was_said(message in from_ledger()) {
        let bytes = proto::LedgerMessage::from(message.clone()).encode_to_vec();
        let heard = proto::LedgerMessage::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(FromLedger::try_from(heard), Ok(message));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = proto::GatewayMessage::decode(bytes.as_slice()) {
            let _ = FromGateway::try_from(message);
        }
        if let Ok(message) = proto::LedgerMessage::decode(bytes.as_slice()) {
            let _ = FromLedger::try_from(message);
        }
    }
}

#[test]
fn a_damaged_message_names_its_field() {
    let wire = |message| {
        FromGateway::try_from(proto::GatewayMessage { message: Some(message) }).unwrap_err().to_string()
    };
    use proto::gateway_message::Message;
    let hello = proto::Hello { epoch: vec![1; 3], log: 1, ..proto::Hello::default() };
    assert!(wire(Message::Hello(hello)).starts_with("Hello.epoch: 3 bytes where 16 belong"));
    let rows = vec![proto::UsageRow::default()];
    assert!(
        wire(Message::Report(proto::Report { rows, ..Default::default() })).starts_with("UsageRow.admission")
    );
    let needs = vec![proto::Need { account: "x".into(), ..Default::default() }];
    assert!(
        wire(Message::Ask(proto::Ask { id: 1, needs, wait_ms: 1 })).starts_with("Ask.needs.account: \"x\"")
    );
}
