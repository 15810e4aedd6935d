//! What each connected gateway holds of Envoy's configuration, and what it rejected.
//!
//! Filled by the streams, read by the controller for statuses. A gateway is its Envoy node id; when
//! it reconnects before its old stream is seen to end, the later stream speaks for it.

use super::snapshot::{ResourceKey, Version};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A version that a gateway would not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The version.
    pub version: Version,
    /// Envoy's own words.
    pub words: String,
}

/// What one gateway holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Acknowledged, by resource.
    pub acknowledged: BTreeMap<ResourceKey, Version>,
    /// Rejected, by resource; the acknowledged predecessor stays in force.
    pub rejected: BTreeMap<ResourceKey, Rejected>,
}

#[derive(Debug, Default)]
struct Entry {
    stream: u64,
    held: Held,
}

/// All connected gateways.
#[derive(Debug)]
pub struct Gateways {
    by_node: Mutex<BTreeMap<String, Entry>>,
    changes: watch::Sender<u64>,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { by_node: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Gateways {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // A map of plain values is whole at every point where its holder could have panicked.
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stream number `stream` of gateway `node` now holds `held`. A stream that was replaced is ignored.
    pub fn set(&self, node: &str, stream: u64, held: Held) {
        let mut by_node = self.lock();
        match by_node.get_mut(node) {
            Some(entry) if entry.stream > stream => return,
            Some(entry) if entry.stream == stream && entry.held == held => return,
            Some(entry) => *entry = Entry { stream, held },
            None => {
                by_node.insert(node.to_owned(), Entry { stream, held });
            }
        }
        drop(by_node);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Stream number `stream` of gateway `node` ended.
    pub fn gone(&self, node: &str, stream: u64) {
        let mut by_node = self.lock();
        if by_node.get(node).is_none_or(|entry| entry.stream != stream) {
            return;
        }
        by_node.remove(node);
        drop(by_node);
        self.changes.send_modify(|count| *count += 1);
    }

    /// What the connected gateways hold, by node id.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Held> {
        self.lock().iter().map(|(node, entry)| (node.clone(), entry.held.clone())).collect()
    }

    /// Counts changes: wait on it, then read [`Gateways::all`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_stream_neither_speaks_for_its_gateway_nor_ends_it() {
        let gateways = Gateways::default();
        let held = |version: &str| Held {
            acknowledged: BTreeMap::from([(ResourceKey::cluster("a"), Version(version.into()))]),
            rejected: BTreeMap::new(),
        };
        gateways.set("gw", 1, held("old"));
        gateways.set("gw", 2, held("new"));
        gateways.set("gw", 1, held("late"));
        gateways.gone("gw", 1);
        assert_eq!(gateways.all().get("gw"), Some(&held("new")));
        gateways.gone("gw", 2);
        assert!(gateways.all().is_empty());
    }
}
