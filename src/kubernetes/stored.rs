//! What the API server has of our objects: whose statuses they are, and how those read.
//!
//! Watches and answers to writes tell it ([`Stored::saw`], [`Stored::wrote`], [`Stored::gone`]); the writer
//! of statuses asks it what changed, so that it writes only what differs. No status is kept, only its
//! [`Fingerprint`]: 12,000 objects took 2 to 5 MB.

use plimsoll_api::budget::{GatewayCount, LimitStatus, Stage, Tightest, WindowStatus};
use plimsoll_api::shared::{Condition, Time};
use plimsoll_api::{AIBudgetStatus, ModelBackendStatus, ModelRouteStatus, ObjectId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The part of a status that is ours, for comparison: conditions of other types are somebody else's, and
/// how conditions are ordered says nothing. In three parts, so that two of them say what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Which stages are reached, whether the budget is exhausted, whether somebody must change something.
    pub(super) stage: u64,
    /// What conditions say, and about which generation.
    pub(super) verdict: u64,
    /// Everything, numbers, words and times included.
    pub(super) whole: u64,
}

/// A status of ours, taken apart.
#[derive(Debug)]
pub struct Parts<'a> {
    conditions: &'a [Condition],
    observed_generation: Option<i64>,
    limits: &'a [LimitStatus],
    gateways: Option<GatewayCount>,
    tightest: Option<&'a Tightest>,
    model: Option<&'a str>,
}

/// A status that can be compared with what the API server has.
pub trait Reported: Serialize {
    /// The conditions that Plimsoll writes.
    const CONDITIONS: &'static [&'static str];

    /// All that is in it. Destructured without `..`, so that a new field can't be forgotten.
    fn parts(&self) -> Parts<'_>;
}

impl Reported for AIBudgetStatus {
    const CONDITIONS: &'static [&'static str] = &Self::CONDITIONS;

    fn parts(&self) -> Parts<'_> {
        let Self { conditions, observed_generation, limits, gateways, tightest } = self;
        let (observed_generation, gateways, tightest) = (*observed_generation, *gateways, tightest.as_ref());
        Parts { conditions, observed_generation, limits, gateways, tightest, model: None }
    }
}

impl Reported for ModelRouteStatus {
    const CONDITIONS: &'static [&'static str] = &Self::CONDITIONS;

    fn parts(&self) -> Parts<'_> {
        let Self { conditions, observed_generation, model } = self;
        let (observed_generation, model) = (*observed_generation, model.as_deref());
        Parts { conditions, observed_generation, limits: &[], gateways: None, tightest: None, model }
    }
}

impl Reported for ModelBackendStatus {
    const CONDITIONS: &'static [&'static str] = &Self::CONDITIONS;

    fn parts(&self) -> Parts<'_> {
        let Self { conditions, observed_generation } = self;
        let observed_generation = *observed_generation;
        Parts { conditions, observed_generation, limits: &[], gateways: None, tightest: None, model: None }
    }
}

/// Conditions whose status is a stage, as it were: money is refused, or somebody must act.
const STAGES: [&str; 2] = ["WithinBudget", "Stalled"];

impl Fingerprint {
    /// Of `status`. Equal for the same status before and after its way through an API server.
    #[must_use]
    pub fn of<S: Reported>(status: &S) -> Self {
        let Parts { conditions, observed_generation, limits, gateways, tightest, model } = status.parts();
        let ours = || {
            let find = |kind: &&str| conditions.iter().find(|condition| condition.type_ == *kind);
            S::CONDITIONS.iter().filter_map(find)
        };
        let stages = limits.iter().map(|LimitStatus { name, stages, .. }| (name, stages));
        let stages: Vec<(&String, &Vec<Stage>)> = stages.collect();
        let states = ours().filter(|condition| STAGES.contains(&condition.type_.as_str()));
        let states: Vec<_> = states.map(|condition| (&condition.type_, &condition.status)).collect();
        let verdicts: Vec<_> = ours()
            .map(|condition| {
                let Condition { type_, status, reason, observed_generation, .. } = condition;
                (type_, status, reason, observed_generation)
            })
            .collect();
        Self {
            stage: hash(&(stages, states)),
            verdict: hash(&(observed_generation, verdicts)),
            whole: hash(&(
                observed_generation,
                ours().map(all_of_condition).collect::<Vec<_>>(),
                limits.iter().map(all_of_limit).collect::<Vec<_>>(),
                gateways,
                tightest,
                model,
            )),
        }
    }
}

/// Times as seconds: no more of them is sent, and writing them out takes most of a fingerprint's time.
fn seconds(time: &Time) -> i64 {
    time.0.as_second()
}

fn all_of_condition(condition: &Condition) -> impl Serialize {
    let Condition { type_, status, reason, message, observed_generation, last_transition_time } = condition;
    (type_, status, reason, message, observed_generation, seconds(last_transition_time))
}

fn all_of_limit(limit: &LimitStatus) -> impl Serialize {
    let LimitStatus { name, window, amount, spent, used_percent, stages, unaccounted, counted_since } = limit;
    let WindowStatus { start, end } = window;
    let times = [start, end, counted_since].map(|time| time.as_ref().map(seconds));
    (name, times, amount, spent, used_percent, stages, unaccounted)
}

fn hash(value: &impl Serialize) -> u64 {
    struct Into(DefaultHasher);
    impl std::io::Write for Into {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut into = Into(DefaultHasher::new());
    // Neither a status nor a hasher can fail.
    let _ = serde_json::to_writer(&mut into, value);
    into.0.finish()
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which object of this name it is: a re-created one is another.
    pub uid: Arc<str>,
    /// Its resourceVersion. A write that names it is refused for any other version, so for a successor too;
    /// naming the uid is no use: the API server does not look at it when the status of a custom resource
    /// is written.
    pub version: Arc<str>,
    /// Its status; None if it has none yet.
    pub status: Option<Fingerprint>,
}

/// All objects, shared by those who see them and those who write.
#[derive(Debug, Default)]
pub struct Stored {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Arc<ObjectId>, Entry>,
    /// Since they were last taken.
    changed: BTreeSet<Arc<ObjectId>>,
}

/// What became of objects: None where they are gone.
pub(super) type Changes = Vec<(Arc<ObjectId>, Option<Entry>)>;

impl Stored {
    /// The API server has `id` like this.
    pub fn saw(&self, id: &ObjectId, uid: &str, version: &str, status: Option<Fingerprint>) {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.get_mut(id)
            && *entry.uid == *uid
            && entry.status == status
        {
            entry.version = version.into();
            return;
        }
        let key =
            inner.entries.get_key_value(id).map_or_else(|| Arc::new(id.clone()), |(key, _)| Arc::clone(key));
        let entry = Entry { uid: uid.into(), version: version.into(), status };
        inner.entries.insert(Arc::clone(&key), entry);
        inner.changed.insert(key);
        drop(inner);
        self.changed.notify_one();
    }

    /// The API server has `id` in this version, which can't be read, and with it its status.
    pub(super) fn saw_unreadable(&self, id: &ObjectId, uid: &str, version: &str) {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.get_mut(id).filter(|entry| *entry.uid == *uid) {
            entry.version = version.into();
            return;
        }
        drop(inner);
        self.saw(id, uid, version, None);
    }

    /// The API server has no `id` any more.
    pub fn gone(&self, id: &ObjectId) {
        let mut inner = self.inner();
        let Some((key, _)) = inner.entries.remove_entry(id) else { return };
        inner.changed.insert(key);
        drop(inner);
        self.changed.notify_one();
    }

    /// The object `uid`, in the version `from`, has taken this status and has the version `to` since; what stands
    /// there now. If that is another by now, or of another version, it stays: the write was for `from` alone, so
    /// what a watch has told meanwhile is newer.
    pub(super) fn wrote(
        &self,
        id: &ObjectId,
        uid: &str,
        [from, to]: [&str; 2],
        status: Option<Fingerprint>,
    ) -> Option<Entry> {
        let mut inner = self.inner();
        let entry = inner.entries.get_mut(id).filter(|entry| *entry.uid == *uid)?;
        if *entry.version == *from {
            entry.version = to.into();
            entry.status = status;
        }
        Some(entry.clone())
    }

    /// How `id` stands.
    #[must_use]
    pub fn get(&self, id: &ObjectId) -> Option<Entry> {
        self.inner().entries.get(id).cloned()
    }

    /// What changed since this was last asked.
    pub(super) fn changes(&self) -> Changes {
        let mut inner = self.inner();
        let changed = std::mem::take(&mut inner.changed);
        changed.into_iter().map(|id| (Arc::clone(&id), inner.entries.get(&id).cloned())).collect()
    }

    /// Resolves as soon as [`Self::changes`] may have something.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status() -> Value {
        json!({
            "observedGeneration": 3,
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "InForce", "message": "in force",
                 "observedGeneration": 3, "lastTransitionTime": "2026-11-24T12:00:00Z"},
                {"type": "WithinBudget", "status": "True", "reason": "WithinBudget", "message": "every limit has room",
                 "observedGeneration": 3, "lastTransitionTime": "2026-11-24T12:00:00Z"},
            ],
            "limits": [{
                "name": "month", "window": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
                "amount": "500.00", "spent": "12.50", "usedPercent": "2.5",
                "countedSince": "2026-11-24T12:00:00Z",
            }],
            "gateways": {"enforcing": 3, "total": 3},
            "tightest": {"limit": "month", "used": "12.50", "of": "500.00 USD", "usedPercent": "2.5",
                "resets": "2026-12-01T00:00+00:00"},
        })
    }

    fn of(value: &Value) -> Fingerprint {
        Fingerprint::of(&serde_json::from_value::<AIBudgetStatus>(value.clone()).unwrap())
    }

    /// Which parts tell `changed` from [`status`].
    fn differs(change: impl FnOnce(&mut Value)) -> [bool; 3] {
        let (before, mut changed) = (of(&status()), status());
        change(&mut changed);
        let after = of(&changed);
        [before.stage != after.stage, before.verdict != after.verdict, before.whole != after.whole]
    }

    #[test]
    fn a_status_is_the_same_after_its_way_through_json() {
        let mut typed: AIBudgetStatus = serde_json::from_value(status()).unwrap();
        // Times with fractions are cut when they are written.
        let fraction = typed.limits[0].counted_since.as_mut().unwrap();
        fraction.0 += std::time::Duration::from_millis(1);
        let back: AIBudgetStatus = serde_json::from_str(&serde_json::to_string(&typed).unwrap()).unwrap();
        assert_ne!(typed, back);
        assert_eq!(Fingerprint::of(&typed), Fingerprint::of(&back));
        assert_eq!(of(&status()), Fingerprint::of(&back));
    }

    #[test]
    fn an_empty_list_and_an_absent_one_are_the_same() {
        assert_eq!(differs(|status| status["limits"][0]["stages"] = json!([])), [false; 3]);
        assert_eq!(of(&json!({"conditions": [], "limits": []})), of(&json!({})));
    }

    #[test]
    fn somebody_elses_condition_makes_no_difference() {
        let other = json!({"type": "example.com/Audited", "status": "True", "reason": "Done", "message": "",
            "lastTransitionTime": "2026-11-25T00:00:00Z"});
        let add = |status: &mut Value| status["conditions"].as_array_mut().unwrap().insert(1, other);
        assert_eq!(differs(add), [false; 3]);
        assert_eq!(differs(|status| status["conditions"].as_array_mut().unwrap().reverse()), [false; 3]);
    }

    #[test]
    fn what_differs_is_told_apart() {
        let set = |pointer: &'static str, to: Value| {
            move |status: &mut Value| *status.pointer_mut(pointer).unwrap() = to
        };
        assert_eq!(differs(set("/limits/0/spent", json!("13.00"))), [false, false, true]);
        assert_eq!(differs(set("/gateways/total", json!(4))), [false, false, true]);
        assert_eq!(differs(set("/tightest/used", json!("13.00"))), [false, false, true]);
        assert_eq!(differs(set("/conditions/0/message", json!("in force!"))), [false, false, true]);
        assert_eq!(differs(set("/observedGeneration", json!(4))), [false, true, true]);
        assert_eq!(differs(set("/conditions/0/status", json!("False"))), [false, true, true]);
        assert_eq!(differs(set("/conditions/1/status", json!("False"))), [true, true, true]);
        let stage = json!([{"trigger": "Used", "percent": 80, "action": "Notify"}]);
        assert_eq!(differs(|status| status["limits"][0]["stages"] = stage), [true, false, true]);
    }

    fn id() -> ObjectId {
        ObjectId { kind: "AIBudget".to_owned(), namespace: "finance".to_owned(), name: "all".to_owned() }
    }

    #[test]
    fn only_what_is_new_is_told_and_once() {
        let stored = Stored::default();
        stored.saw(&id(), "1", "10", None);
        let entry = Entry { uid: "1".into(), version: "10".into(), status: None };
        assert_eq!(stored.changes(), [(Arc::new(id()), Some(entry))]);
        stored.saw(&id(), "1", "11", None);
        assert_eq!(stored.changes(), []);
        assert_eq!(stored.get(&id()).unwrap().version, "11".into());
        stored.gone(&id());
        stored.gone(&id());
        assert_eq!(stored.changes(), [(Arc::new(id()), None)]);
    }

    #[test]
    fn a_late_answer_says_nothing_about_a_re_created_object() {
        let stored = Stored::default();
        stored.saw(&id(), "2", "20", None);
        assert_eq!(stored.wrote(&id(), "1", ["18", "19"], Some(of(&status()))), None);
        assert_eq!(stored.get(&id()).unwrap().status, None);
        stored.gone(&id());
        assert_eq!(stored.wrote(&id(), "2", ["20", "21"], Some(of(&status()))), None);
        assert_eq!(stored.get(&id()), None);
    }

    #[test]
    fn a_late_answer_says_nothing_about_a_version_that_a_watch_has_told_meanwhile() {
        let stored = Stored::default();
        stored.saw(&id(), "1", "9", None);
        // Written to 9, which became 10; edited by somebody since, and that was told first.
        stored.saw(&id(), "1", "11", None);
        let there = stored.wrote(&id(), "1", ["9", "10"], Some(of(&status()))).unwrap();
        assert_eq!((&*there.version, there.status), ("11", None));
        assert_eq!(stored.get(&id()), Some(there));
        let there = stored.wrote(&id(), "1", ["11", "12"], Some(of(&status()))).unwrap();
        assert_eq!((&*there.version, there.status), ("12", Some(of(&status()))));
    }
}
