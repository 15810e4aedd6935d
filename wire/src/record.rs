//! What the gateway's log holds, encoded from what a worker has at hand.
//!
//! An admission is written for every call before it leaves, so it is encoded from borrowed parts: building
//! [`proto::Admission`] first cost a copy of every name in it. The bytes are the same (a test says so).

use crate::proto;
use plimsoll_core::account::Charge;
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::Caller;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// A record of the log.
pub trait Record {
    /// Adds its bytes.
    fn encode_to(&self, bytes: &mut Vec<u8>);
}

impl Record for proto::Admission {
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        // A Vec takes whatever is encoded.
        let _ = self.encode(bytes);
    }
}

impl Record for proto::Settlement {
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        let _ = self.encode(bytes);
    }
}

/// An admission, before it has a sequence: see [`plimsoll_core::protocol::UsageRow`].
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named as there")]
pub struct Admission<'a, A> {
    pub request_id: &'a str,
    pub attempt: u32,
    pub paused_at: UnixMs,
    pub admitted_at: UnixMs,
    /// The accounts' texts.
    pub accounts: A,
    pub observed: &'a [ObjectName],
    pub caller: &'a Caller,
    pub route: &'a str,
    pub tier: &'a str,
    pub backend: &'a ObjectName,
    pub model: &'a str,
    pub reserve: Charge,
    pub price_version: PriceVersion,
}

impl<'a, A: Iterator<Item = &'a str> + Clone> Record for Admission<'a, A> {
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        let Self {
            request_id,
            attempt,
            paused_at,
            admitted_at,
            accounts,
            observed,
            caller,
            route,
            tier,
            backend,
            model,
            reserve,
            price_version,
        } = self;
        text(2, request_id, bytes);
        number(3, u64::from(*attempt), bytes);
        number(4, paused_at.0.cast_unsigned(), bytes);
        number(5, admitted_at.0.cast_unsigned(), bytes);
        for account in accounts.clone() {
            item(6, &[account], bytes);
        }
        for budget in *observed {
            item(7, &name(budget), bytes);
        }
        let Caller { namespace, feature, customer, user_hash, service_account, session } = caller;
        let fields = [namespace, feature, customer, user_hash, service_account, session];
        let fields = || (1..).zip(fields).filter(|(_, value)| !value.is_empty());
        encode_key(8, WireType::LengthDelimited, bytes);
        encode_varint(fields().map(|(tag, value)| text_len(tag, value)).sum(), bytes);
        fields().for_each(|(tag, value)| text(tag, value, bytes));
        text(9, route, bytes);
        text(10, tier, bytes);
        item(11, &name(backend), bytes);
        text(12, model, bytes);
        let reserve = proto::Charge::from(*reserve);
        encode_key(13, WireType::LengthDelimited, bytes);
        encode_varint(length(reserve.encoded_len()), bytes);
        let _ = reserve.encode(bytes);
        if price_version.0 != 0 {
            encode_key(14, WireType::SixtyFourBit, bytes);
            bytes.extend_from_slice(&price_version.0.to_le_bytes());
        }
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// As an object's name is written.
fn name(object: &ObjectName) -> [&str; 3] {
    [&object.namespace, "/", &object.name]
}

fn number(tag: u32, value: u64, bytes: &mut Vec<u8>) {
    if value != 0 {
        encode_key(tag, WireType::Varint, bytes);
        encode_varint(value, bytes);
    }
}

fn text(tag: u32, value: &str, bytes: &mut Vec<u8>) {
    if !value.is_empty() {
        item(tag, &[value], bytes);
    }
}

fn text_len(tag: u32, value: &str) -> u64 {
    length(key_len(tag) + encoded_len_varint(length(value.len())) + value.len())
}

/// One text, in parts; of a repeated field it is written though it is empty.
fn item(tag: u32, parts: &[&str], bytes: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, bytes);
    encode_varint(length(parts.iter().map(|part| part.len()).sum()), bytes);
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
    }
}
