//! An admission encoded from borrowed parts is byte for byte what the generated code writes.
#![allow(missing_docs, clippy::unwrap_used)]

use plimsoll_core::account::Charge;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::Caller;
use plimsoll_wire::proto;
use plimsoll_wire::record::{Admission, Record};
use proptest::collection::vec;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    // Empty, short, not ASCII, and long enough for a length of two bytes.
    prop_oneof![Just(String::new()), ".{0,9}", "[a-z]{120,140}"]
}

proptest! {
    #[test]
    fn an_admission_is_what_the_generated_code_writes(
        request_id in text(),
        attempt in any::<u32>(),
        (paused_at, admitted_at) in any::<(i64, i64)>(),
        (accounts, observed) in (vec(text(), 0..4), vec(("[a-z]{1,9}", "[a-z]{1,9}"), 0..3)),
        caller in vec(text(), 6),
        names in vec(text(), 3),
        (usd, tokens, requests) in any::<(i64, u64, u64)>(),
        price_version in prop_oneof![Just(0), any::<u64>()],
    ) {
        let observed: Vec<ObjectName> =
            observed.into_iter().map(|(namespace, name)| ObjectName::new(namespace, name)).collect();
        let [namespace, feature, customer, user_hash, service_account, session] = caller.try_into().unwrap();
        let caller = Caller { namespace, feature, customer, user_hash, service_account, session };
        let backend = ObjectName::new("plimsoll-system", "openai");
        let reserve = Charge { usd: NanoUsd(usd), tokens, requests };
        let generated = proto::Admission {
            sequence: 0,
            request_id: request_id.clone(),
            attempt,
            paused_at,
            admitted_at,
            accounts: accounts.clone(),
            observed: observed.iter().map(ToString::to_string).collect(),
            caller: Some(caller.clone().into()),
            route: names[0].clone(),
            tier: names[1].clone(),
            backend: backend.to_string(),
            model: names[2].clone(),
            reserve: Some(reserve.into()),
            price_version,
        };
        let borrowed = Admission {
            request_id: &request_id,
            attempt,
            paused_at: UnixMs(paused_at),
            admitted_at: UnixMs(admitted_at),
            accounts: accounts.iter().map(String::as_str),
            observed: &observed,
            caller: &caller,
            route: &names[0],
            tier: &names[1],
            backend: &backend,
            model: &names[2],
            reserve,
            price_version: PriceVersion(price_version),
        };
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        generated.encode_to(&mut expected);
        borrowed.encode_to(&mut got);
        prop_assert_eq!(got, expected);
    }
}
