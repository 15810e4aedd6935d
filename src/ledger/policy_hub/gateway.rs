//! What one gateway holds of the policy.
//!
//! It is kept as what differs from what is current: nothing, as a rule, so that hundreds of gateways cost
//! no more than what they lack. Nothing here knows of other gateways, or sends.

use super::Rejection;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::ledger::StreamId;
use plimsoll_core::policy::{PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::protocol::{PolicyAck, PolicyDelta};
use plimsoll_plan::{Instead, Link};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The most characters that are kept of a gateway's reason.
const MOST_WORDS: usize = 1_024;

/// The objects of one delta; `None`: removed.
pub(super) type Sent = Vec<(Arc<PolicyKey>, Option<PolicyVersion>)>;

#[derive(Debug, Default)]
pub(super) struct Gateway {
    pub(super) stream: Option<StreamId>,
    /// It was there before this process started, and may still be on its way back.
    pub(super) awaited: bool,
    /// It has said Hello to this process; what it holds is not known before.
    pub(super) joined: bool,
    /// It has said that it ends; what it was told is in force nowhere.
    pub(super) closed: bool,
    /// The last change that it was told of.
    pub(super) told: u64,
    /// The last delta's number.
    pub(super) number: u64,
    /// Deltas that are not acknowledged.
    pub(super) sent: VecDeque<(u64, Sent)>,
    /// The next delta is due even if it is empty: it answers Hello.
    pub(super) greet: bool,
    /// It held nothing when it said Hello.
    pub(super) is_empty: bool,
    /// What it holds of current keys in place of the current version; `None`: nothing.
    differs: BTreeMap<Arc<PolicyKey>, Option<PolicyVersion>>,
    /// What it holds of keys that are not current.
    strays: BTreeMap<Arc<PolicyKey>, PolicyVersion>,
    /// What `differs` is to a report.
    lacks: Arc<BTreeMap<PolicyKey, Instead>>,
    pub(super) rejected: BTreeMap<Arc<PolicyKey>, Rejection>,
    pub(super) acknowledged: Option<(u64, UnixMs)>,
    pub(super) left: UnixMs,
}

impl Gateway {
    /// One that was there before this process, and is to come back since `now`.
    pub(super) fn expected(now: UnixMs) -> Self {
        Self { awaited: true, left: now, ..Self::default() }
    }

    /// One that has said Hello on `stream`, and nothing yet of what it holds.
    pub(super) fn joining(stream: StreamId, awaited: bool, is_empty: bool) -> Self {
        Self { stream: Some(stream), awaited, joined: true, greet: true, is_empty, ..Self::default() }
    }

    /// One that has said at `now` that it ends.
    pub(super) fn ended(now: UnixMs) -> Self {
        Self { joined: true, closed: true, left: now, ..Self::default() }
    }

    pub(super) fn link(&self) -> Link {
        match self.stream {
            Some(_) => Link::Up,
            None if self.awaited && !self.joined => Link::Expected,
            None => Link::Down { since: self.left },
        }
    }

    /// What is known of it counts: it has said what it holds, and goes on with it.
    fn is_followed(&self) -> bool {
        self.joined && !self.closed
    }

    /// Current keys of which it does not hold the current version. Only of a gateway that has joined.
    pub(super) fn differing(&self) -> impl Iterator<Item = &Arc<PolicyKey>> {
        self.differs.keys()
    }

    /// Keys that are not current of which it holds something.
    pub(super) fn strays(&self) -> impl Iterator<Item = &Arc<PolicyKey>> {
        self.strays.keys()
    }

    /// What it lacks, for a report.
    pub(super) fn lacks(&self) -> &Arc<BTreeMap<PolicyKey, Instead>> {
        &self.lacks
    }

    /// What it holds of `key`, of which `current` is current.
    pub(super) fn holds(&self, key: &PolicyKey, current: Option<PolicyVersion>) -> Option<PolicyVersion> {
        if !self.is_followed() {
            return None;
        }
        match (current, self.differs.get(key)) {
            (Some(_), Some(held)) => *held,
            (Some(current), None) => Some(current),
            (None, _) => self.strays.get(key).copied(),
        }
    }

    /// It holds `held` of `key`, of which `current` is current.
    pub(super) fn hold(
        &mut self,
        key: &Arc<PolicyKey>,
        held: Option<PolicyVersion>,
        current: Option<PolicyVersion>,
    ) {
        match held.filter(|_| current.is_none()) {
            Some(held) => drop(self.strays.insert(Arc::clone(key), held)),
            None => drop(self.strays.remove(key)),
        }
        let lacks = current.is_some() && held != current;
        // The map may be shared with a report: it is taken apart only for a change.
        if lacks {
            self.differs.insert(Arc::clone(key), held);
            let instead = if held.is_some() { Instead::Before } else { Instead::Nothing };
            if self.lacks.get(&**key) != Some(&instead) {
                Arc::make_mut(&mut self.lacks).insert((**key).clone(), instead);
            }
        } else if self.differs.remove(key).is_some() {
            Arc::make_mut(&mut self.lacks).remove(&**key);
        }
    }

    /// Of `key` another version is current now.
    pub(super) fn turn(
        &mut self,
        key: &Arc<PolicyKey>,
        before: Option<PolicyVersion>,
        now: Option<PolicyVersion>,
    ) {
        if self.is_followed() {
            let held = self.holds(key, before);
            self.hold(key, held, now);
        }
    }

    /// The next delta: what is current of `keys`, among `objects`.
    pub(super) fn send(
        &mut self,
        keys: Vec<Arc<PolicyKey>>,
        objects: &BTreeMap<Arc<PolicyKey>, (u64, PolicyObject)>,
        whole: bool,
    ) -> PolicyDelta {
        self.number += 1;
        let mut delta = PolicyDelta { number: self.number, whole, objects: vec![], removed: vec![] };
        let mut sent = Vec::new();
        for key in keys {
            let object = objects.get(&key).map(|(_, object)| object);
            match object {
                Some(object) => delta.objects.push(object.clone()),
                None => delta.removed.push((*key).clone()),
            }
            sent.push((key, object.map(|object| object.version)));
        }
        self.sent.push_back((self.number, sent));
        delta
    }

    /// Takes in what it says of deltas; `current` says which version of a key is current.
    pub(super) fn acknowledge(
        &mut self,
        ack: PolicyAck,
        current: impl Fn(&PolicyKey) -> Option<PolicyVersion>,
        now: UnixMs,
    ) {
        // What a condition shows of it.
        let words = |words: String| words.chars().take(MOST_WORDS).collect();
        let rejected: BTreeMap<PolicyKey, String> =
            ack.rejected.into_iter().map(|(key, reason)| (key, words(reason))).collect();
        while self.sent.front().is_some_and(|(number, _)| *number <= ack.number) {
            let Some((_, objects)) = self.sent.pop_front() else { break };
            for (key, version) in objects {
                match (version, rejected.get(&*key)) {
                    (Some(version), Some(reason)) => {
                        self.rejected.insert(key, Rejection { version, reason: reason.clone() });
                    }
                    (version, _) => {
                        self.rejected.remove(&key);
                        self.hold(&key, version, current(&key));
                    }
                }
            }
        }
        self.acknowledged = Some((ack.number, now));
    }
}
