//! Policy on its way to gateways: what is current, what each gateway holds, what it refused and why.
//!
//! Changes are numbered; a stream remembers how far it has been told, so one changed budget among 10,000
//! costs one small delta, and what changes while a gateway is slow goes in one. A gateway holds an object
//! from its acknowledgement on, and not before. Nothing here sends.

use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::StreamId;
use plimsoll_core::policy::{PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::protocol::{PolicyAck, PolicyDelta};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The most characters that are kept of a gateway's reason.
const MOST_WORDS: usize = 1_024;
/// Deltas that one gateway may leave unacknowledged; then changes are gathered until it answers.
const MAX_UNACKNOWLEDGED: usize = 8;

/// The policy, and who holds it.
#[derive(Debug, Default)]
pub struct PolicyHub {
    hub: Mutex<Hub>,
    /// Moves when there may be something to send.
    policy: watch::Sender<u64>,
    /// Moves when a gateway comes, goes or acknowledges.
    gateways: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Hub {
    /// The number of the last change.
    change: u64,
    /// Current objects, with the change that brought them.
    objects: BTreeMap<PolicyKey, (u64, PolicyObject)>,
    /// Keys by their last change, removed ones among them.
    changes: BTreeMap<u64, PolicyKey>,
    /// Removed keys that some stream may not have been told of, by their change.
    removed: BTreeMap<PolicyKey, u64>,
    gateways: BTreeMap<String, Gateway>,
}

/// The objects of one delta; `None`: removed.
type Sent = Vec<(PolicyKey, Option<PolicyVersion>)>;

#[derive(Debug)]
struct Gateway {
    stream: Option<StreamId>,
    /// The last change that it was told of.
    told: u64,
    /// The last delta's number.
    number: u64,
    /// Deltas that are not acknowledged, with their objects; `None`: removed.
    sent: VecDeque<(u64, Sent)>,
    /// The next delta is due even if it is empty: it answers Hello.
    greet: bool,
    holds: Arc<BTreeMap<PolicyKey, PolicyVersion>>,
    rejected: BTreeMap<PolicyKey, Rejection>,
    acknowledged: Option<(u64, UnixMs)>,
    left: UnixMs,
}

/// An object that a gateway does not understand; the predecessor stays in force there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What was rejected.
    pub version: PolicyVersion,
    /// The gateway's reason.
    pub reason: String,
}

/// One gateway, as far as policy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayState {
    /// Envoy's node id.
    pub id: String,
    /// Whether it is on a stream.
    pub connected: bool,
    /// What is in force there, connected or not.
    pub holds: Arc<BTreeMap<PolicyKey, PolicyVersion>>,
    /// What it did not understand.
    pub rejected: BTreeMap<PolicyKey, Rejection>,
    /// The last delta of its stream that it acknowledged, and when.
    pub acknowledged: Option<(u64, UnixMs)>,
}

/// Who holds one object in its current version.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InForce {
    /// Gateways that hold it.
    pub holding: usize,
    /// All known gateways.
    pub total: usize,
    /// Those that don't hold it yet.
    pub missing: Vec<String>,
    /// Those that rejected it, and why.
    pub rejected: Vec<(String, String)>,
}

impl PolicyHub {
    /// Puts new and changed objects into force and takes removed ones out, in one step. What is the same
    /// as before is not sent. Tell the ledger of its limits first (see `LedgerHandle::publish`).
    pub fn publish(&self, changed: Vec<PolicyObject>, removed: Vec<PolicyKey>) {
        let mut hub = self.hub();
        let before = hub.change;
        for object in changed {
            if hub.objects.get(&object.key).is_some_and(|(_, current)| current.version == object.version) {
                continue;
            }
            let change = hub.next_change(&object.key);
            hub.removed.remove(&object.key);
            hub.objects.insert(object.key.clone(), (change, object));
        }
        for key in removed {
            if hub.objects.contains_key(&key) {
                let change = hub.next_change(&key);
                hub.objects.remove(&key);
                hub.removed.insert(key, change);
            }
        }
        let after = hub.change;
        hub.forget_told();
        drop(hub);
        if after != before {
            self.policy.send_modify(|moved| *moved += 1);
            self.gateways.send_modify(|moved| *moved += 1);
        }
    }

    /// Every known gateway.
    #[must_use]
    pub fn gateways(&self) -> Vec<GatewayState> {
        let hub = self.hub();
        let states = hub.gateways.iter().map(|(id, gateway)| GatewayState {
            id: id.clone(),
            connected: gateway.stream.is_some(),
            holds: Arc::clone(&gateway.holds),
            rejected: gateway.rejected.clone(),
            acknowledged: gateway.acknowledged,
        });
        states.collect()
    }

    /// Who holds the current version of `key`; of a key that is not current, who holds none.
    #[must_use]
    pub fn in_force(&self, key: &PolicyKey) -> InForce {
        let hub = self.hub();
        let version = hub.objects.get(key).map(|(_, object)| object.version);
        let mut found = InForce { total: hub.gateways.len(), ..InForce::default() };
        for (id, gateway) in &hub.gateways {
            if gateway.holds.get(key).copied() == version {
                found.holding += 1;
                continue;
            }
            match gateway.rejected.get(key) {
                Some(rejection) if Some(rejection.version) == version => {
                    found.rejected.push((id.clone(), rejection.reason.clone()));
                }
                Some(_) | None => found.missing.push(id.clone()),
            }
        }
        found
    }

    /// Changes when a gateway comes, goes or acknowledges, and when policy is published.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.gateways.subscribe()
    }

    /// Changes when there may be a delta to send.
    pub(super) fn due(&self) -> watch::Receiver<u64> {
        self.policy.subscribe()
    }

    /// A gateway said Hello on `stream` and was welcomed.
    pub(super) fn join(&self, id: &str, stream: StreamId, held: Vec<(PolicyKey, PolicyVersion)>) {
        let gateway = Gateway {
            stream: Some(stream),
            told: 0,
            number: 0,
            sent: VecDeque::new(),
            greet: true,
            holds: Arc::new(held.into_iter().collect()),
            rejected: BTreeMap::new(),
            acknowledged: None,
            left: UnixMs(0),
        };
        self.hub().gateways.insert(id.to_owned(), gateway);
        self.gateways.send_modify(|moved| *moved += 1);
    }

    /// What `stream` must be told now.
    pub(super) fn delta(&self, id: &str, stream: StreamId) -> Option<PolicyDelta> {
        let mut hub = self.hub();
        let hub = &mut *hub;
        let gateway = hub.gateways.get_mut(id).filter(|gateway| gateway.stream == Some(stream))?;
        if gateway.sent.len() >= MAX_UNACKNOWLEDGED {
            return None;
        }
        let mut objects = Vec::new();
        let mut removed = Vec::new();
        let mut whole = false;
        if gateway.greet {
            // It says what it holds, so only the difference goes; who holds nothing gets all.
            whole = gateway.holds.is_empty();
            let differs = |object: &PolicyObject| gateway.holds.get(&object.key) != Some(&object.version);
            objects.extend(
                hub.objects.values().map(|(_, object)| object).filter(|object| differs(object)).cloned(),
            );
            removed.extend(gateway.holds.keys().filter(|key| !hub.objects.contains_key(key)).cloned());
        } else {
            if gateway.told == hub.change {
                return None;
            }
            for key in hub.changes.range(gateway.told + 1..).map(|(_, key)| key) {
                match hub.objects.get(key) {
                    Some((_, object)) => objects.push(object.clone()),
                    None => removed.push(key.clone()),
                }
            }
        }
        gateway.greet = false;
        gateway.told = hub.change;
        gateway.number += 1;
        let sent = objects.iter().map(|object| (object.key.clone(), Some(object.version)));
        let sent = sent.chain(removed.iter().map(|key| (key.clone(), None))).collect();
        gateway.sent.push_back((gateway.number, sent));
        Some(PolicyDelta { number: gateway.number, whole, objects, removed })
    }

    /// The gateway on `stream` has put deltas into force, up to the one that it names.
    pub(super) fn acknowledge(&self, id: &str, stream: StreamId, ack: PolicyAck, now: UnixMs) {
        let mut hub = self.hub();
        let Some(gateway) = hub.gateways.get_mut(id).filter(|gateway| gateway.stream == Some(stream)) else {
            return;
        };
        let was_full = gateway.sent.len() >= MAX_UNACKNOWLEDGED;
        // What a condition shows of it.
        let words = |words: String| words.chars().take(MOST_WORDS).collect();
        let rejected: BTreeMap<PolicyKey, String> =
            ack.rejected.into_iter().map(|(key, reason)| (key, words(reason))).collect();
        let holds = Arc::make_mut(&mut gateway.holds);
        while gateway.sent.front().is_some_and(|(number, _)| *number <= ack.number) {
            let Some((_, objects)) = gateway.sent.pop_front() else { break };
            for (key, version) in objects {
                match (version, rejected.get(&key)) {
                    (Some(version), Some(reason)) => {
                        gateway.rejected.insert(key, Rejection { version, reason: reason.clone() });
                    }
                    (Some(version), None) => {
                        gateway.rejected.remove(&key);
                        holds.insert(key, version);
                    }
                    (None, _) => {
                        gateway.rejected.remove(&key);
                        holds.remove(&key);
                    }
                }
            }
        }
        gateway.acknowledged = Some((ack.number, now));
        hub.forget_told();
        drop(hub);
        if was_full {
            self.policy.send_modify(|moved| *moved += 1);
        }
        self.gateways.send_modify(|moved| *moved += 1);
    }

    /// `stream` ended. What the gateway holds stays in force there.
    pub(super) fn leave(&self, id: &str, stream: StreamId, now: UnixMs) {
        let mut hub = self.hub();
        let Some(gateway) = hub.gateways.get_mut(id).filter(|gateway| gateway.stream == Some(stream)) else {
            return;
        };
        (gateway.stream, gateway.left) = (None, now);
        gateway.sent.clear();
        drop(hub);
        self.gateways.send_modify(|moved| *moved += 1);
    }

    /// Forgets gateways that left before `then`.
    pub(super) fn forget(&self, then: UnixMs) {
        let mut hub = self.hub();
        let before = hub.gateways.len();
        hub.gateways.retain(|_, gateway| gateway.stream.is_some() || gateway.left >= then);
        let gone = before != hub.gateways.len();
        drop(hub);
        if gone {
            self.gateways.send_modify(|moved| *moved += 1);
        }
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    fn next_change(&mut self, key: &PolicyKey) -> u64 {
        let last =
            self.objects.get(key).map(|(change, _)| *change).or_else(|| self.removed.get(key).copied());
        if let Some(last) = last {
            self.changes.remove(&last);
        }
        self.change += 1;
        self.changes.insert(self.change, key.clone());
        self.change
    }

    /// Forgets removals that every stream has been told of; new ones compare what they hold.
    fn forget_told(&mut self) {
        let streams = self.gateways.values().filter(|gateway| gateway.stream.is_some() && !gateway.greet);
        let told = streams.map(|gateway| gateway.told).min().unwrap_or(self.change);
        let Self { removed, changes, .. } = self;
        removed.retain(|_, change| {
            let keep = *change > told;
            if !keep {
                changes.remove(change);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::ids::ObjectName;

    fn object(name: &str, body: &str) -> PolicyObject {
        let key = PolicyKey::Budget(ObjectName::new("finance", name));
        PolicyObject { key, version: PolicyVersion::of(body), body: body.into() }
    }

    fn names(delta: &PolicyDelta) -> (Vec<&str>, usize) {
        (delta.objects.iter().map(|object| object.body.as_str()).collect(), delta.removed.len())
    }

    const GW: (&str, StreamId) = ("gw", StreamId(1));
    const NOW: UnixMs = UnixMs(5);

    fn ack(hub: &PolicyHub, number: u64, rejected: Vec<(PolicyKey, String)>) {
        hub.acknowledge(GW.0, GW.1, PolicyAck { number, rejected }, NOW);
    }

    #[test]
    fn a_gateway_holds_an_object_from_its_acknowledgement_on() {
        let hub = PolicyHub::default();
        hub.publish(vec![object("a", "1")], vec![]);
        let key = object("a", "1").key;
        hub.join(GW.0, GW.1, vec![]);
        let delta = hub.delta(GW.0, GW.1).unwrap();
        assert!(delta.whole);
        assert_eq!(names(&delta), (vec!["1"], 0));
        assert_eq!(hub.in_force(&key).missing, ["gw"]);
        ack(&hub, 1, vec![]);
        assert_eq!(hub.in_force(&key).holding, 1);
        hub.publish(vec![object("a", "2")], vec![]);
        assert_eq!(hub.in_force(&key).missing, ["gw"], "the old version is not the budget");
        assert_eq!(names(&hub.delta(GW.0, GW.1).unwrap()), (vec!["2"], 0));
        ack(&hub, 2, vec![(key.clone(), "unknown field".into())]);
        assert_eq!(hub.in_force(&key).rejected, [("gw".into(), "unknown field".into())]);
        assert_eq!(hub.gateways()[0].holds[&key], PolicyVersion::of("1"), "the predecessor stays");
        hub.publish(vec![object("a", "3")], vec![]);
        hub.delta(GW.0, GW.1).unwrap();
        ack(&hub, 3, vec![]);
        assert!(hub.gateways()[0].rejected.is_empty());
    }

    #[test]
    fn a_gateway_that_comes_back_gets_the_difference() {
        let hub = PolicyHub::default();
        hub.publish(vec![object("a", "1"), object("b", "1"), object("c", "1")], vec![]);
        let held = ["a", "b", "gone"].map(|name| (object(name, "1").key, PolicyVersion::of("1"))).to_vec();
        hub.publish(vec![object("b", "2")], vec![]);
        hub.join(GW.0, GW.1, held);
        let delta = hub.delta(GW.0, GW.1).unwrap();
        assert!(!delta.whole);
        assert_eq!(names(&delta), (vec!["2", "1"], 1));
        assert_eq!(hub.delta(GW.0, GW.1), None);
    }

    #[test]
    fn changes_while_a_gateway_is_slow_go_in_one_delta() {
        let hub = PolicyHub::default();
        hub.join(GW.0, GW.1, vec![]);
        for n in 1..100 {
            hub.publish(vec![object("a", &n.to_string())], vec![]);
            hub.delta(GW.0, GW.1);
        }
        ack(&hub, 8, vec![]);
        assert_eq!(names(&hub.delta(GW.0, GW.1).unwrap()), (vec!["99"], 0));
        hub.publish(vec![object("b", "1")], vec![object("a", "").key]);
        assert_eq!(names(&hub.delta(GW.0, GW.1).unwrap()), (vec!["1"], 1));
        ack(&hub, 10, vec![]);
        assert!(hub.hub().removed.is_empty(), "told to all, a removal is forgotten");
        assert_eq!(hub.hub().changes.len(), 1);
    }

    #[test]
    fn an_older_stream_changes_nothing() {
        let hub = PolicyHub::default();
        hub.publish(vec![object("a", "1")], vec![]);
        hub.join(GW.0, GW.1, vec![]);
        hub.delta(GW.0, GW.1).unwrap();
        hub.join(GW.0, StreamId(2), vec![]);
        ack(&hub, 1, vec![]);
        hub.leave(GW.0, GW.1, NOW);
        assert!(hub.gateways()[0].connected && hub.gateways()[0].holds.is_empty());
        hub.leave(GW.0, StreamId(2), NOW);
        hub.forget(NOW);
        assert_eq!(hub.gateways().len(), 1);
        hub.forget(NOW.plus(1));
        assert_eq!(hub.gateways().len(), 0);
    }
}
