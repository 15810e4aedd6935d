//! How records stand in a segment: a checked header, then a checked payload.
//!
//! The header has a sum of its own: a length that can't be believed would make the middle of a log look
//! like its torn end, and everything after it would be forgotten in silence.

use super::Damage;
use plimsoll_core::ids::Epoch;
use plimsoll_wire::record::Record;

/// Bytes before a record's payload: length 4, kind 1, sequence 8, header's sum 4, payload's sum 4.
pub(super) const FRAME: usize = 21;
/// Bytes before a segment's records.
pub(super) const HEADER: usize = 8 + 16 + BOOT_ID + 8 + 4;
/// The most bytes of a payload: strings in it are bounded, and there are at most 64 accounts.
pub(super) const MOST: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"PLIMLOG1";
const BOOT_ID: usize = 36;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Admission,
    Settlement,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Admission => 1,
            Self::Settlement => 2,
        }
    }
}

/// A segment's first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub epoch: Epoch,
    /// The node's boot id: after another boot the page cache may have been lost.
    pub boot: String,
    /// The sequence of its first record.
    pub first: u64,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.epoch.0.to_be_bytes());
        let mut boot = self.boot.clone().into_bytes();
        boot.resize(BOOT_ID, b' ');
        bytes.extend_from_slice(&boot);
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }

    /// `None`: torn, nothing was ever written after it.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Damage> {
        let Some(bytes) = bytes.get(..HEADER) else { return Ok(None) };
        let (body, sum) = bytes.split_at(HEADER - 4);
        if !body.starts_with(MAGIC) || number32(sum) != crc32fast::hash(body) {
            return Err(Damage { at: 0, what: "a segment's header" });
        }
        let mut epoch = [0; 16];
        epoch.copy_from_slice(&body[8..24]);
        let boot = String::from_utf8_lossy(&body[24..24 + BOOT_ID]).trim_end().to_owned();
        let first = number64(&body[24 + BOOT_ID..]);
        Ok(Some(Self { epoch: Epoch(u128::from_be_bytes(epoch)), boot, first }))
    }
}

/// A record with room for its frame; [`seal`] fills that in when the sequence is known.
pub(super) fn unsealed(record: &impl Record) -> Vec<u8> {
    // Most have less: it grows at most once.
    let mut bytes = Vec::with_capacity(640);
    bytes.resize(FRAME, 0);
    record.encode_to(&mut bytes);
    bytes
}

pub(super) fn seal(bytes: &mut [u8], kind: Kind, sequence: u64) {
    let length = u32::try_from(bytes.len() - FRAME).unwrap_or(u32::MAX);
    let sum = crc32fast::hash(&bytes[FRAME..]);
    bytes[0..4].copy_from_slice(&length.to_be_bytes());
    bytes[4] = kind.number();
    bytes[5..13].copy_from_slice(&sequence.to_be_bytes());
    let head = crc32fast::hash(&bytes[..13]);
    bytes[13..17].copy_from_slice(&head.to_be_bytes());
    bytes[17..21].copy_from_slice(&sum.to_be_bytes());
}

/// A record and how many bytes it takes.
pub(super) struct Framed<'a> {
    pub kind: Kind,
    pub sequence: u64,
    pub payload: &'a [u8],
    pub length: usize,
}

/// The record that `bytes` begin with. `None`: it is not whole.
pub(super) fn read(bytes: &[u8], at: u64) -> Result<Option<Framed<'_>>, Damage> {
    let Some(head) = bytes.get(..FRAME) else { return Ok(None) };
    let damaged = |what| Err(Damage { at, what });
    if number32(&head[13..17]) != crc32fast::hash(&head[..13]) {
        return damaged("a record's header");
    }
    let length = usize::try_from(number32(&head[0..4])).unwrap_or(usize::MAX);
    if length > MOST {
        return damaged("a record's length");
    }
    let kind = match head[4] {
        1 => Kind::Admission,
        2 => Kind::Settlement,
        _ => return damaged("a record's kind"),
    };
    let Some(payload) = bytes.get(FRAME..FRAME + length) else { return Ok(None) };
    if number32(&head[17..21]) != crc32fast::hash(payload) {
        return damaged("a record");
    }
    Ok(Some(Framed { kind, sequence: number64(&head[5..13]), payload, length: FRAME + length }))
}

fn number32(bytes: &[u8]) -> u32 {
    let mut first = [0; 4];
    first.copy_from_slice(&bytes[..4]);
    u32::from_be_bytes(first)
}

fn number64(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    u64::from_be_bytes(first)
}
