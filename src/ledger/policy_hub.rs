//! Policy on its way to gateways: what is current, what each gateway holds, what it refused and why.
//!
//! Changes are numbered; a stream remembers how far it has been told, so one changed budget among 10,000
//! costs one small delta, and what changes while a gateway is slow goes in one. A gateway holds an object
//! from its acknowledgement on, and not before. A gateway that leaves without Close may go on serving, and
//! counts until it is given up. What one gateway holds is [`gateway::Gateway`]'s. Nothing here sends.

mod gateway;

use gateway::Gateway;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::StreamId;
use plimsoll_core::policy::{PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::protocol::{PolicyAck, PolicyDelta};
use plimsoll_plan::{Instead, Link};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Deltas that one gateway may leave unacknowledged; then changes are gathered until it answers.
const MAX_UNACKNOWLEDGED: usize = 8;
/// How long a gateway that was there before this process started is taken to be on its way back, in
/// milliseconds: an Envoy that found no operator tries again within 30 s.
const BACK_WITHIN_MS: i64 = 30_000;

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
    objects: BTreeMap<Arc<PolicyKey>, (u64, PolicyObject)>,
    /// Keys by their last change, removed ones among them.
    changes: BTreeMap<u64, Arc<PolicyKey>>,
    /// Removed keys that some stream may not have been told of, by their change.
    removed: BTreeMap<Arc<PolicyKey>, u64>,
    gateways: BTreeMap<String, Gateway>,
    /// What is current is only what is remembered of before this process. Gateways know better, and keep to what
    /// they hold; who holds nothing waits.
    provisional: bool,
    /// All that there is, as what a gateway lacks that has not said what it holds; of which change.
    everything: (u64, Arc<BTreeMap<PolicyKey, Instead>>),
    started: UnixMs,
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
    /// Its stream.
    pub link: Link,
    /// It may not have had the time to come back since this process started.
    pub awaited: bool,
    /// It has said that it ends: it serves nobody, though its Envoy may be seen for a moment yet.
    pub closed: bool,
    /// Current objects that are not in force there, connected or not.
    pub lacks: Arc<BTreeMap<PolicyKey, Instead>>,
    /// Current objects that it did not understand.
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
            if hub.current(&object.key) != Some(object.version) {
                hub.turn(object.key.clone(), Some(object));
            }
        }
        for key in removed {
            if hub.objects.contains_key(&key) {
                hub.turn(key, None);
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

    /// As [`Self::publish`], of what is remembered of before this process, until [`Self::settle`].
    pub(super) fn resume(&self, remembered: Vec<PolicyObject>) {
        self.hub().provisional = true;
        self.publish(remembered, vec![]);
    }

    /// What is current is what there is.
    pub(super) fn settle(&self) {
        if std::mem::take(&mut self.hub().provisional) {
            self.policy.send_modify(|moved| *moved += 1);
        }
    }

    /// Every gateway that is connected or not yet given up, and those that closed lately.
    #[must_use]
    pub fn gateways(&self) -> Vec<GatewayState> {
        let mut hub = self.hub();
        let everything = hub.everything();
        let Hub { objects, gateways, .. } = &*hub;
        let states = gateways.iter().map(|(id, gateway)| {
            let is_current = |(key, rejection): &(&Arc<PolicyKey>, &Rejection)| {
                objects.get(*key).is_some_and(|(_, object)| object.version == rejection.version)
            };
            let rejected = gateway.rejected.iter().filter(is_current);
            GatewayState {
                id: id.clone(),
                link: gateway.link(),
                awaited: gateway.awaited,
                closed: gateway.closed,
                lacks: Arc::clone(if gateway.joined { gateway.lacks() } else { &everything }),
                rejected: rejected.map(|(key, rejection)| ((**key).clone(), rejection.clone())).collect(),
                acknowledged: gateway.acknowledged,
            }
        });
        states.collect()
    }

    /// Who holds the current version of `key`; of a key that is not current, who holds none.
    #[must_use]
    pub fn in_force(&self, key: &PolicyKey) -> InForce {
        let hub = self.hub();
        let version = hub.current(key);
        let mut found = InForce::default();
        for (id, gateway) in hub.gateways.iter().filter(|(_, gateway)| !gateway.closed) {
            found.total += 1;
            if gateway.holds(key, version) == version {
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

    /// These were there when the process before this one ended, and go on with what they hold.
    pub(super) fn await_back(&self, ids: impl IntoIterator<Item = String>, now: UnixMs) {
        let mut hub = self.hub();
        hub.started = now;
        hub.gateways.extend(ids.into_iter().map(|id| (id, Gateway::expected(now))));
        drop(hub);
        self.gateways.send_modify(|moved| *moved += 1);
    }

    /// A gateway said Hello on `stream` and was welcomed.
    pub(super) fn join(&self, id: &str, stream: StreamId, held: Vec<(PolicyKey, PolicyVersion)>) {
        let mut hub = self.hub();
        let awaited = hub.gateways.get(id).is_some_and(|before| before.awaited);
        let mut gateway = Gateway::joining(stream, awaited, held.is_empty());
        let mut held: BTreeMap<PolicyKey, PolicyVersion> = held.into_iter().collect();
        for (key, (_, object)) in &hub.objects {
            let held = held.remove(&**key);
            if held != Some(object.version) {
                gateway.hold(key, held, Some(object.version));
            }
        }
        for (key, version) in held {
            gateway.hold(&Arc::new(key), Some(version), None);
        }
        hub.gateways.insert(id.to_owned(), gateway);
        drop(hub);
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
        let mut changed: Vec<Arc<PolicyKey>> = Vec::new();
        if hub.provisional {
            // Time goes on: without its windows a gateway could not admit. They are sent one after the other, or
            // what is not acknowledged yet would be sent again.
            let windows = gateway.differing().filter(|key| matches!(***key, PolicyKey::Window(_)));
            let windows: Vec<_> = windows.cloned().collect();
            if gateway.is_empty || windows.is_empty() || !gateway.sent.is_empty() {
                return None;
            }
            return Some(gateway.send(windows, &hub.objects, false));
        }
        // It says what it holds, so only the difference goes; who holds nothing gets all.
        let whole = gateway.greet && gateway.is_empty;
        if gateway.greet {
            changed.extend(gateway.differing().chain(gateway.strays()).cloned());
        } else {
            if gateway.told == hub.change {
                return None;
            }
            changed.extend(hub.changes.range(gateway.told + 1..).map(|(_, key)| Arc::clone(key)));
        }
        gateway.greet = false;
        gateway.told = hub.change;
        Some(gateway.send(changed, &hub.objects, whole))
    }

    /// The gateway on `stream` has put deltas into force, up to the one that it names.
    pub(super) fn acknowledge(&self, id: &str, stream: StreamId, ack: PolicyAck, now: UnixMs) {
        let mut guard = self.hub();
        let hub = &mut *guard;
        let Some(gateway) = hub.gateways.get_mut(id).filter(|gateway| gateway.stream == Some(stream)) else {
            return;
        };
        let was_full = gateway.sent.len() >= MAX_UNACKNOWLEDGED;
        let objects = &hub.objects;
        gateway.acknowledge(ack, |key| objects.get(key).map(|(_, object)| object.version), now);
        hub.forget_told();
        drop(guard);
        if was_full {
            self.policy.send_modify(|moved| *moved += 1);
        }
        self.gateways.send_modify(|moved| *moved += 1);
    }

    /// The gateway on `stream` has ended its epoch: its process ends, or serves nobody any more.
    pub(super) fn close(&self, id: &str, stream: StreamId, now: UnixMs) {
        let mut hub = self.hub();
        let Some(gateway) = hub.gateways.get_mut(id).filter(|gateway| gateway.stream == Some(stream)) else {
            return;
        };
        *gateway = Gateway::ended(now);
        drop(hub);
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

    /// Forgets gateways that left before `then`, and waits no longer for those that had the time to come back.
    pub(super) fn forget(&self, then: UnixMs, now: UnixMs) {
        let mut hub = self.hub();
        let before = hub.gateways.len();
        hub.gateways.retain(|_, gateway| gateway.stream.is_some() || gateway.left >= then);
        let mut moved = before != hub.gateways.len();
        let late = now.since(hub.started) > BACK_WITHIN_MS;
        for gateway in hub.gateways.values_mut().filter(|gateway| gateway.awaited && late) {
            gateway.awaited = false;
            moved = true;
        }
        drop(hub);
        if moved {
            self.gateways.send_modify(|moved| *moved += 1);
        }
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// The version of `key` that should be in force.
    fn current(&self, key: &PolicyKey) -> Option<PolicyVersion> {
        self.objects.get(key).map(|(_, object)| object.version)
    }

    /// From now on `object` is current of `key`; `None`: nothing.
    fn turn(&mut self, key: PolicyKey, object: Option<PolicyObject>) {
        // One that was there before, so that all share it.
        let known = self.objects.get_key_value(&key).map(|(key, _)| Arc::clone(key));
        let known = known.or_else(|| self.removed.get_key_value(&key).map(|(key, _)| Arc::clone(key)));
        let key = known.unwrap_or_else(|| Arc::new(key));
        let (before, now) = (self.current(&key), object.as_ref().map(|object| object.version));
        let last = self.objects.get(&key).map(|(change, _)| *change);
        if let Some(last) = last.or_else(|| self.removed.get(&key).copied()) {
            self.changes.remove(&last);
        }
        self.change += 1;
        self.changes.insert(self.change, Arc::clone(&key));
        for gateway in self.gateways.values_mut() {
            gateway.turn(&key, before, now);
        }
        match object {
            Some(object) => {
                self.removed.remove(&key);
                self.objects.insert(key, (self.change, object));
            }
            None => {
                self.objects.remove(&key);
                self.removed.insert(key, self.change);
            }
        }
    }

    /// What a gateway lacks that holds nothing; nothing at all while there is no such gateway.
    fn everything(&mut self) -> Arc<BTreeMap<PolicyKey, Instead>> {
        if self.gateways.values().all(|gateway| gateway.joined) {
            self.everything = Default::default();
        } else if self.everything.0 != self.change {
            let all = self.objects.keys().map(|key| ((**key).clone(), Instead::Nothing));
            self.everything = (self.change, Arc::new(all.collect()));
        }
        Arc::clone(&self.everything.1)
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
        assert_eq!(
            *hub.gateways()[0].lacks,
            [(key.clone(), Instead::Before)].into(),
            "the predecessor stays"
        );
        assert_eq!(hub.gateways()[0].rejected.len(), 1);
        hub.publish(vec![object("a", "3")], vec![]);
        let state = &hub.gateways()[0];
        assert_eq!((state.rejected.len(), state.lacks.len()), (0, 1), "of this version it has said nothing");
        hub.delta(GW.0, GW.1).unwrap();
        ack(&hub, 3, vec![]);
        let state = &hub.gateways()[0];
        assert_eq!((state.rejected.len(), state.lacks.len()), (0, 0));
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
    fn until_there_is_a_plan_gateways_keep_what_they_hold_and_get_windows_alone() {
        let hub = PolicyHub::default();
        let window = |body: &str| PolicyObject {
            key: PolicyKey::Window("Month@UTC".to_owned()),
            version: PolicyVersion::of(body),
            body: body.to_owned(),
        };
        hub.resume(vec![object("a", "1"), window("october")]);
        let held =
            [("a", "2"), ("gone", "1")].map(|(name, body)| (object(name, body).key, PolicyVersion::of(body)));
        let held = [&held[..], &[(window("").key, window("october").version)]].concat();
        hub.join(GW.0, GW.1, held);
        hub.join("new", StreamId(2), vec![]);
        assert_eq!((hub.delta(GW.0, GW.1), hub.delta("new", StreamId(2))), (None, None));
        hub.publish(vec![window("november")], vec![]);
        let delta = hub.delta(GW.0, GW.1).unwrap();
        assert_eq!((names(&delta), delta.whole), ((vec!["november"], 0), false));
        assert_eq!(hub.delta(GW.0, GW.1), None, "it is on its way");
        ack(&hub, delta.number, vec![]);
        assert_eq!((hub.delta(GW.0, GW.1), hub.delta("new", StreamId(2))), (None, None));
        let due = hub.due();
        hub.settle();
        assert!(due.has_changed().unwrap());
        assert_eq!(names(&hub.delta(GW.0, GW.1).unwrap()), (vec!["1"], 1));
        assert!(hub.delta("new", StreamId(2)).unwrap().whole);
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
        hub.close(GW.0, GW.1, NOW);
        assert_eq!(hub.gateways()[0].link, Link::Up);
        assert_eq!(hub.gateways()[0].lacks.len(), 1);
    }

    #[test]
    fn a_gateway_that_left_counts_until_it_is_given_up_and_one_that_closed_no_more() {
        let hub = PolicyHub::default();
        hub.publish(vec![object("a", "1")], vec![]);
        let key = object("a", "1").key;
        hub.join(GW.0, GW.1, vec![(key.clone(), PolicyVersion::of("1"))]);
        hub.leave(GW.0, GW.1, NOW);
        assert_eq!(hub.gateways()[0].link, Link::Down { since: NOW });
        assert_eq!((hub.in_force(&key).holding, hub.in_force(&key).total), (1, 1), "it goes on serving");
        hub.publish(vec![object("a", "2")], vec![]);
        assert_eq!(*hub.gateways()[0].lacks, [(key.clone(), Instead::Before)].into());
        hub.forget(NOW, NOW);
        assert_eq!(hub.gateways().len(), 1);
        hub.forget(NOW.plus(1), NOW);
        assert_eq!(hub.gateways().len(), 0);

        hub.join(GW.0, StreamId(2), vec![]);
        hub.close(GW.0, StreamId(2), NOW);
        hub.leave(GW.0, StreamId(2), NOW.plus(9));
        assert!(hub.gateways()[0].closed && hub.gateways()[0].lacks.is_empty());
        assert_eq!(hub.in_force(&key), InForce::default());
        hub.join(GW.0, StreamId(3), vec![]);
        assert_eq!(hub.in_force(&key).total, 1, "it has begun anew");
    }

    #[test]
    fn who_was_there_before_a_restart_is_awaited_for_a_while_and_then_missed() {
        let hub = PolicyHub::default();
        hub.await_back(["back", "gone"].map(str::to_owned), NOW);
        hub.publish(vec![object("a", "1")], vec![]);
        hub.join("back", StreamId(1), vec![(object("a", "1").key, PolicyVersion::of("1"))]);
        let of = |id: &str| hub.gateways().into_iter().find(|gateway| gateway.id == id).unwrap();
        assert_eq!(
            (of("back").link, of("back").awaited),
            (Link::Up, true),
            "its xDS stream may be under way"
        );
        assert_eq!((of("gone").link, of("gone").awaited), (Link::Expected, true));
        hub.forget(NOW.plus(-600_000), NOW.plus(BACK_WITHIN_MS));
        assert_eq!(of("gone").link, Link::Expected);
        let moved = hub.changed();
        hub.forget(NOW.plus(-600_000), NOW.plus(BACK_WITHIN_MS + 1));
        assert!(moved.has_changed().unwrap());
        assert_eq!((of("gone").link, of("back").awaited), (Link::Down { since: NOW }, false));
        hub.forget(NOW.plus(1), NOW.plus(600_001));
        assert_eq!(hub.gateways().len(), 1);
    }

    #[test]
    fn what_a_gateway_lacks_is_what_it_does_not_hold_after_any_history() {
        let hub = PolicyHub::default();
        let mut seed = 7_u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut stream = 0;
        // What it holds by what it was told, and what it said of it.
        let mut holds: BTreeMap<PolicyKey, PolicyVersion> = BTreeMap::new();
        let mut heard: Vec<PolicyDelta> = Vec::new();
        for step in 0..2_000 {
            let name = draw(6).to_string();
            match draw(8) {
                0..=2 => hub.publish(vec![object(&name, &draw(3).to_string())], vec![]),
                3 => hub.publish(vec![], vec![object(&name, "").key]),
                4 => heard.extend(hub.delta(GW.0, StreamId(stream))),
                5 | 6 => {
                    let Some(number) = heard.last().map(|delta| delta.number) else { continue };
                    let refuses = draw(4) == 0;
                    let rejects = |key: &PolicyKey| refuses && *key == object(&name, "").key;
                    let mut rejected = vec![];
                    for delta in heard.drain(..) {
                        holds.retain(|key, _| !delta.removed.contains(key));
                        for object in delta.objects {
                            if rejects(&object.key) {
                                rejected.push((object.key, "no".to_owned()));
                            } else {
                                holds.insert(object.key, object.version);
                            }
                        }
                    }
                    hub.acknowledge(GW.0, StreamId(stream), PolicyAck { number, rejected }, NOW);
                }
                _ if draw(3) == 0 => {
                    hub.leave(GW.0, StreamId(stream), NOW);
                    heard.clear();
                }
                _ => {
                    stream += 1;
                    heard.clear();
                    let (key, version) = (object(&name, "").key, PolicyVersion::of(&draw(3).to_string()));
                    if draw(2) == 0 {
                        holds.insert(key, version);
                    }
                    let held = holds.iter().map(|(key, version)| (key.clone(), *version)).collect();
                    hub.join(GW.0, StreamId(stream), held);
                }
            }
            // Not after every step: what came between two looks must be seen too.
            if draw(3) > 0 {
                continue;
            }
            let Some(state) = hub.gateways().pop() else { continue };
            let hub = hub.hub();
            let lacks = hub.objects.iter().filter_map(|(key, (_, object))| match holds.get(&**key) {
                Some(version) if *version == object.version => None,
                Some(_) => Some(((**key).clone(), Instead::Before)),
                None => Some(((**key).clone(), Instead::Nothing)),
            });
            assert_eq!(*state.lacks, lacks.collect(), "step {step}");
        }
    }

    #[test]
    fn a_gateway_that_holds_everything_costs_nothing() {
        let hub = PolicyHub::default();
        hub.publish((0..100).map(|n| object(&n.to_string(), "1")).collect(), vec![]);
        hub.join(GW.0, GW.1, vec![]);
        hub.delta(GW.0, GW.1).unwrap();
        ack(&hub, 1, vec![]);
        hub.publish(vec![object("7", "2")], vec![object("8", "").key]);
        hub.delta(GW.0, GW.1).unwrap();
        ack(&hub, 2, vec![]);
        let hub = hub.hub();
        let gateway = &hub.gateways[GW.0];
        assert_eq!((gateway.differing().count(), gateway.strays().count(), gateway.sent.len()), (0, 0, 0));
        assert!(gateway.lacks().is_empty());
    }
}
