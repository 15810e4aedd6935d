//! What each gateway holds of Envoy's configuration, and what it rejected.
//!
//! Filled by the streams, read by the controller for statuses. A gateway is its Envoy node id; when
//! it reconnects before its old stream is seen to end, the later stream speaks for it. What was said on a
//! stream stays true for a while after its end: an Envoy without operator goes on with what it holds.

use super::snapshot::{ResourceKey, Version};
use plimsoll_core::ids::UnixMs;
use plimsoll_plan::GIVEN_UP_AFTER_MS;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A version that a gateway would not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The version.
    pub version: Version,
    /// Envoy's own words about it.
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

/// One gateway's Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envoy {
    /// What it holds, as far as it has said.
    pub held: Arc<Held>,
    /// When its stream ended; absent while it is open.
    pub ended: Option<UnixMs>,
}

#[derive(Debug)]
struct Entry {
    stream: u64,
    envoy: Envoy,
}

/// All gateways that are or were connected.
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
        match by_node.get(node) {
            Some(entry) if entry.stream > stream => return,
            Some(Entry { stream: same, envoy: Envoy { held: known, ended: None } })
                if *same == stream && **known == held =>
            {
                return;
            }
            Some(_) | None => {}
        }
        let envoy = Envoy { held: Arc::new(held), ended: None };
        by_node.insert(node.to_owned(), Entry { stream, envoy });
        drop(by_node);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Stream number `stream` of gateway `node` ended at `now`.
    pub fn gone(&self, node: &str, stream: u64, now: UnixMs) {
        let mut by_node = self.lock();
        let Some(entry) = by_node.get_mut(node).filter(|entry| entry.stream == stream) else { return };
        entry.envoy.ended = Some(now);
        by_node
            .retain(|_, entry| entry.envoy.ended.is_none_or(|ended| now.since(ended) <= GIVEN_UP_AFTER_MS));
        drop(by_node);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Connected Envoys and those that were connected lately, by node id.
    #[must_use]
    pub fn known(&self) -> BTreeMap<String, Envoy> {
        self.lock().iter().map(|(node, entry)| (node.clone(), entry.envoy.clone())).collect()
    }

    /// What the connected gateways hold, by node id.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Arc<Held>> {
        let connected =
            |(node, Envoy { held, ended }): (String, Envoy)| ended.is_none().then_some((node, held));
        self.known().into_iter().filter_map(connected).collect()
    }

    /// Counts changes: wait on it, then read [`Gateways::known`].
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
        gateways.gone("gw", 1, UnixMs(5));
        assert_eq!(gateways.all().get("gw").map(Arc::as_ref), Some(&held("new")));
        gateways.gone("gw", 2, UnixMs(6));
        assert!(gateways.all().is_empty());
    }

    #[test]
    fn what_an_envoy_holds_outlives_its_stream_for_a_while() {
        let gateways = Gateways::default();
        gateways.set("lost", 1, Held::default());
        gateways.gone("lost", 1, UnixMs(5));
        assert_eq!(gateways.known()["lost"].ended, Some(UnixMs(5)));
        for (stream, now) in [(2, 5 + GIVEN_UP_AFTER_MS), (3, 6 + GIVEN_UP_AFTER_MS)] {
            assert!(gateways.known().contains_key("lost"));
            gateways.set("gw", stream, Held::default());
            assert_eq!(gateways.known()["gw"].ended, None, "it is back");
            gateways.gone("gw", stream, UnixMs(now));
        }
        assert_eq!(gateways.known().into_keys().collect::<Vec<_>>(), ["gw"]);
    }
}
