//! Postings: what stands under a hash, in a map that is cheap to copy and change.
//!
//! A snapshot is swapped whole, so a change copies it first; copying must not cost what is not changed.
//! The map is cut into shards behind `Arc`s: a copy is 256 counters, a change copies one shard. Hashes
//! may collide: whoever looks up checks what is found.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// The hash of a key of texts. The same everywhere in a process.
#[must_use]
pub(crate) fn hash(parts: &[&str]) -> u64 {
    // FNV-1a over words of eight bytes would be faster still; at 30 bytes a key this is 20 ns.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // The shards and the tables take different bits of it; FNV's are not equally good.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// A key that is a hash already.
#[derive(Clone, Copy, Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Shard<T> = HashMap<u64, Vec<Arc<T>>, BuildHasherDefault<AsIs>>;

const SHARDS: usize = 256;

/// What stands under each hash, in order of arrival.
#[derive(Debug)]
pub(crate) struct Postings<T> {
    shards: Vec<Arc<Shard<T>>>,
}

impl<T> Default for Postings<T> {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: vec![empty; SHARDS] }
    }
}

impl<T> Clone for Postings<T> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone() }
    }
}

impl<T> Postings<T> {
    /// What stands under `hash`.
    pub(crate) fn get(&self, hash: u64) -> &[Arc<T>] {
        self.shards[shard_of(hash)].get(&hash).map_or(&[], Vec::as_slice)
    }

    /// Puts `item` under `hash`, once.
    pub(crate) fn insert(&mut self, hash: u64, item: &Arc<T>) {
        let list = Arc::make_mut(&mut self.shards[shard_of(hash)]).entry(hash).or_default();
        if !list.iter().any(|known| Arc::ptr_eq(known, item)) {
            list.push(item.clone());
        }
    }

    /// Takes `item` from under `hash`.
    pub(crate) fn remove(&mut self, hash: u64, item: &Arc<T>) {
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        if let Some(list) = shard.get_mut(&hash) {
            list.retain(|known| !Arc::ptr_eq(known, item));
            if list.is_empty() {
                shard.remove(&hash);
            }
        }
    }

    /// Everything, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.shards.iter().flat_map(|shard| shard.values().flatten())
    }
}

fn shard_of(hash: u64) -> usize {
    // The top byte is the table's own tag; the next is free.
    usize::from(hash.to_le_bytes()[5])
}
