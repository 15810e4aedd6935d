//! What the watches have told, and what that changes. Pure.
//!
//! A watch lists, then tells of changes, and lists again when it lost the thread. An object that a
//! second list lacks is gone; one that has the version of before is no news: our own status writes come
//! back as changes, and a list of 10,000 must not be planned anew.

use crate::source::{Change, Fault};
use plimsoll_api::{Object, ObjectId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

/// How long an API server may be away before that is said: a restart or a lost connection is no fault.
const PATIENCE: Duration = Duration::from_secs(10);

/// A watch that has failed, was answered since, and has not failed again for so long, works: nothing else is
/// heard of one that was taken up again and has no news.
const STEADY: Duration = Duration::from_secs(3);

/// The longest pause before a watch that failed is tried again. Shorter than what client-go takes: here are
/// five watches, and what somebody applies meanwhile waits for them.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watch {
    Budgets,
    Routes,
    Backends,
    Namespaces,
    /// The Secrets of one namespace.
    Secrets(String),
}

impl Watch {
    pub(super) const ALWAYS: [Self; 4] = [Self::Budgets, Self::Routes, Self::Backends, Self::Namespaces];
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budgets => f.write_str("AIBudgets"),
            Self::Routes => f.write_str("ModelRoutes"),
            Self::Backends => f.write_str("ModelBackends"),
            Self::Namespaces => f.write_str("Namespaces"),
            Self::Secrets(namespace) => write!(f, "Secrets of namespace {namespace}"),
        }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// A list begins.
    Listing,
    /// It is there.
    There(Seen),
    /// The list ends.
    Listed,
    /// It is gone.
    Gone(ObjectId),
    /// It can't be watched now; it will be tried again.
    Failed(Failure),
}

/// An object as the API server has it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) id: ObjectId,
    pub(super) version: Version,
    /// The object, or why it can't be read.
    pub(super) object: Result<Object, String>,
}

/// Tells one content of an object from another, a re-created one included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) uid: String,
    /// The generation; where a kind has none the resourceVersion, or the part of it that matters.
    pub(super) content: String,
}

/// Why a watch fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may not, until somebody changes something: what, and what to do.
    Denied(String),
    /// It can't; that may pass.
    Away(String),
}

/// One watch and what it has told.
#[derive(Debug, Default)]
struct State {
    known: HashMap<ObjectId, Version>,
    /// What the list that runs has told.
    listing: Option<BTreeSet<ObjectId>>,
    /// Whether a list was complete once.
    listed: bool,
    trouble: Option<Trouble>,
    /// Objects that can't be read, and why; what they were before stays in force.
    unreadable: BTreeMap<ObjectId, String>,
}

#[derive(Debug)]
struct Trouble {
    failure: Failure,
    since: Instant,
    last: Instant,
    /// When it was answered after that.
    answered: Option<Instant>,
}

/// All watches.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    watches: BTreeMap<Watch, State>,
    /// Whether [`Change::Whole`] was said.
    whole: bool,
}

impl Catalogue {
    /// `watch` runs from now on.
    pub(super) fn begin(&mut self, watch: Watch) {
        self.watches.entry(watch).or_default();
    }

    /// `watch` runs no more; what it told is gone.
    pub(super) fn end(&mut self, watch: &Watch) -> Vec<Change> {
        let Some(state) = self.watches.remove(watch) else { return vec![] };
        let mut changes: Vec<Change> = state.known.into_keys().map(Change::Gone).collect();
        changes.extend(readable(watch));
        changes
    }

    /// What `told` changes.
    pub(super) fn hear(&mut self, watch: &Watch, told: Told, now: Instant) -> Vec<Change> {
        // A watch that was just ended may still have had a word on its way.
        let Some(state) = self.watches.get_mut(watch) else { return vec![] };
        let mut changes = Vec::new();
        let works = !matches!(told, Told::Failed(_) | Told::Listing);
        match told {
            Told::Failed(failure) => {
                let since = state.trouble.as_ref().map_or(now, |trouble| trouble.since);
                let fresh = state.trouble.as_ref().is_none_or(|trouble| trouble.failure != failure);
                if let (Watch::Secrets(namespace), Failure::Denied(why), true) = (watch, &failure, fresh) {
                    changes
                        .push(Change::SecretsDenied { namespace: namespace.clone(), why: Some(why.clone()) });
                }
                state.trouble = Some(Trouble { failure, since, last: now, answered: None });
            }
            // A list is begun before it is asked for, so this doesn't say that anything works.
            Told::Listing => state.listing = Some(BTreeSet::new()),
            Told::There(Seen { id, version, object }) => {
                if let Some(listing) = &mut state.listing {
                    listing.insert(id.clone());
                }
                match object {
                    Ok(object) => {
                        state.unreadable.remove(&id);
                        if state.known.get(&id) != Some(&version) {
                            state.known.insert(id, version);
                            changes.push(Change::Put(object));
                        }
                    }
                    Err(why) => drop(state.unreadable.insert(id, why)),
                }
            }
            Told::Gone(id) => changes.extend(state.forget(&id)),
            Told::Listed => {
                // An end without a beginning names nothing, and would take everything away.
                let Some(listed) = state.listing.take() else { return changes };
                state.listed = true;
                let known = state.known.keys().chain(state.unreadable.keys());
                let gone: BTreeSet<ObjectId> = known.filter(|id| !listed.contains(*id)).cloned().collect();
                changes.extend(gone.iter().filter_map(|id| state.forget(id)));
            }
        }
        if works && state.trouble.take().is_some() {
            changes.extend(readable(watch));
        }
        changes
    }

    /// A list or a watch of this kind was answered at `at`.
    pub(super) fn answered(&mut self, watch: &Watch, at: Instant) {
        let trouble = self.watches.get_mut(watch).and_then(|state| state.trouble.as_mut());
        if let Some(trouble) = trouble.filter(|trouble| at > trouble.last) {
            trouble.answered.get_or_insert(at);
        }
    }

    /// What has become so by the passing of time: watches that work again, and that everything was read.
    pub(super) fn settle(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (watch, state) in &mut self.watches {
            let works = |trouble: &mut Trouble| trouble.answered.is_some_and(|at| now >= at + STEADY);
            if state.trouble.take_if(works).is_some() {
                changes.extend(readable(watch));
            }
        }
        let is_whole =
            || self.is_listed(now) && self.watches.values().all(|state| state.unreadable.is_empty());
        if !self.whole && is_whole() {
            self.whole = true;
            changes.push(Change::Whole);
        }
        changes
    }

    /// Whether everything there is was told: then it can be planned. Secrets that may not be read are not
    /// waited for: that is a condition on who needs them. But for a while they are: an API server that starts may
    /// know no rights yet.
    pub(super) fn is_listed(&self, now: Instant) -> bool {
        self.watches.iter().all(|(watch, state)| {
            let denied = state.trouble.as_ref().is_some_and(|trouble| {
                matches!(trouble.failure, Failure::Denied(_)) && now >= trouble.since + PATIENCE
            });
            state.listed || (denied && matches!(watch, Watch::Secrets(_)))
        })
    }

    /// What is wrong now.
    pub(super) fn faults(&self, now: Instant) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut away = None;
        for (watch, state) in &self.watches {
            match &state.trouble {
                Some(Trouble { failure: Failure::Denied(why), .. }) => faults.push(Fault {
                    place: "API server".to_owned(),
                    object: None,
                    message: format!("{watch} can't be read: {why}"),
                }),
                Some(Trouble { failure: Failure::Away(why), since, .. }) if now >= *since + PATIENCE => {
                    away.get_or_insert_with(|| why.clone());
                }
                Some(_) | None => {}
            }
            faults.extend(state.unreadable.iter().map(|(id, why)| Fault {
                place: "API server".to_owned(),
                object: Some(id.to_string()),
                message: why.clone(),
            }));
        }
        // Watches fail together, each with words of its own about one thing.
        faults.extend(away.map(|why| Fault {
            place: "API server".to_owned(),
            object: None,
            message: format!("{why}. The last state stays in force"),
        }));
        faults.sort();
        faults
    }

    /// When [`Catalogue::settle`] and [`Catalogue::faults`] may say something else although nothing is heard.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let troubles = self.watches.values().filter_map(|state| state.trouble.as_ref());
        let due = troubles
            .flat_map(|trouble| [Some(trouble.since + PATIENCE), trouble.answered.map(|at| at + STEADY)]);
        due.flatten().filter(|due| *due > now).min()
    }
}

impl State {
    fn forget(&mut self, id: &ObjectId) -> Option<Change> {
        let unreadable = self.unreadable.remove(id).is_some();
        // One that could never be read may be remembered from before.
        (self.known.remove(id).is_some() || unreadable).then(|| Change::Gone(id.clone()))
    }
}

/// What is said when `watch` can be read, or need not be.
fn readable(watch: &Watch) -> Option<Change> {
    match watch {
        Watch::Secrets(namespace) => Some(Change::SecretsDenied { namespace: namespace.clone(), why: None }),
        Watch::Budgets | Watch::Routes | Watch::Backends | Watch::Namespaces => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(name: &str, uid: &str, generation: &str) -> Told {
        let manifest = json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "AIBudget",
            "metadata": {"name": name, "namespace": "finance"}, "spec": {"limits": [{"name": "m", "amount": 1}]}});
        let object = plimsoll_api::validate(&manifest).unwrap();
        let version = Version { uid: uid.to_owned(), content: generation.to_owned() };
        Told::There(Seen { id: object.id(), version, object: Ok(object) })
    }

    fn id(name: &str) -> ObjectId {
        ObjectId { kind: "AIBudget".to_owned(), namespace: "finance".to_owned(), name: name.to_owned() }
    }

    fn torn(name: &str) -> Told {
        let version = Version { uid: "1".to_owned(), content: "1".to_owned() };
        Told::There(Seen { id: id(name), version, object: Err("no limits".to_owned()) })
    }

    /// A catalogue of one watch, with what it is told, and the words of the changes.
    struct Told1(Catalogue, Instant);

    impl Told1 {
        fn new() -> Self {
            let mut catalogue = Catalogue::default();
            catalogue.begin(Watch::Budgets);
            Self(catalogue, Instant::now())
        }

        fn hear(&mut self, told: Told) -> Vec<String> {
            let word = |change| match change {
                Change::Put(object) => format!("put {}", object.id().name),
                Change::Gone(id) => format!("gone {}", id.name),
                Change::Whole => "whole".to_owned(),
                other => format!("{other:?}"),
            };
            let mut changes = self.0.hear(&Watch::Budgets, told, self.1);
            changes.extend(self.0.settle(self.1));
            changes.into_iter().map(word).collect()
        }

        fn list(&mut self, all: Vec<Told>) -> Vec<String> {
            let mut words = self.hear(Told::Listing);
            words.extend(all.into_iter().flat_map(|told| self.hear(told)).collect::<Vec<_>>());
            words.extend(self.hear(Told::Listed));
            words
        }
    }

    #[test]
    fn a_second_list_tells_only_what_differs() {
        let mut watch = Told1::new();
        assert_eq!(watch.list(vec![seen("a", "1", "1"), seen("b", "1", "1")]), ["put a", "put b", "whole"]);
        assert!(watch.list(vec![seen("a", "1", "1"), seen("b", "1", "1")]).is_empty());
        assert_eq!(watch.list(vec![seen("b", "1", "2"), seen("c", "1", "1")]), ["put b", "put c", "gone a"]);
    }

    #[test]
    fn a_status_that_comes_back_is_no_news_and_a_re_created_object_is() {
        let mut watch = Told1::new();
        watch.list(vec![seen("a", "1", "1")]);
        assert!(watch.hear(seen("a", "1", "1")).is_empty());
        assert_eq!(watch.hear(seen("a", "2", "1")), ["put a"]);
        assert_eq!(watch.hear(Told::Gone(id("a"))), ["gone a"]);
        assert!(watch.hear(Told::Gone(id("a"))).is_empty());
    }

    #[test]
    fn a_list_that_breaks_off_deletes_nothing() {
        let mut watch = Told1::new();
        watch.list(vec![seen("a", "1", "1"), seen("b", "1", "1")]);
        watch.hear(Told::Listing);
        watch.hear(seen("a", "1", "1"));
        watch.hear(Told::Failed(Failure::Away("gone".to_owned())));
        assert!(watch.list(vec![seen("a", "1", "1"), seen("b", "1", "1")]).is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_is_named_and_nothing_counts_as_deleted_meanwhile() {
        let mut watch = Told1::new();
        assert_eq!(watch.list(vec![torn("a"), seen("b", "1", "1")]), ["put b"]);
        let faults = watch.0.faults(watch.1);
        assert_eq!(faults[0].object.as_deref(), Some("AIBudget finance/a"));
        assert_eq!(watch.hear(seen("a", "1", "2")), ["put a", "whole"]);
        assert!(watch.0.faults(watch.1).is_empty());
        // It turns bad: what it was stays known, and its end is told.
        assert!(watch.hear(torn("a")).is_empty());
        assert_eq!(watch.hear(Told::Gone(id("a"))), ["gone a"]);
    }

    #[test]
    fn an_api_server_that_is_away_for_a_moment_is_no_fault() {
        let mut watch = Told1::new();
        watch.list(vec![seen("a", "1", "1")]);
        let start = watch.1;
        let away = || Told::Failed(Failure::Away("the API server can't be reached".to_owned()));
        watch.hear(away());
        assert!(watch.0.faults(start).is_empty());
        assert_eq!(watch.0.wake(start), Some(start + PATIENCE));
        watch.1 += PATIENCE;
        watch.hear(away());
        let [fault] = &watch.0.faults(watch.1)[..] else { panic!("one fault is expected") };
        assert!(fault.message.ends_with("The last state stays in force"), "{fault}");
        // A server that hangs says nothing either: it is away for as long as it does not answer.
        let hour = Duration::from_secs(3600);
        assert!(watch.0.settle(watch.1 + hour).is_empty());
        assert_eq!(watch.0.faults(watch.1 + hour).len(), 1);
        // An answer, and another failure: that is no recovery.
        watch.0.answered(&Watch::Budgets, watch.1 + Duration::from_secs(1));
        watch.1 += Duration::from_secs(2);
        watch.hear(away());
        watch.0.settle(watch.1 + hour);
        assert_eq!(watch.0.faults(watch.1 + hour).len(), 1);
        // Nothing but an answer is heard of a watch that just works again.
        watch.1 += Duration::from_secs(1);
        watch.0.answered(&Watch::Budgets, watch.1);
        assert_eq!(watch.0.wake(watch.1), Some(watch.1 + STEADY));
        watch.0.settle(watch.1 + STEADY);
        assert!(watch.0.faults(watch.1 + STEADY).is_empty());
    }

    #[test]
    fn secrets_that_may_not_be_read_are_told_and_hold_nothing_up() {
        let mut catalogue = Catalogue::default();
        let (start, secrets) = (Instant::now(), Watch::Secrets("p".to_owned()));
        let now = start + PATIENCE;
        catalogue.begin(Watch::Budgets);
        catalogue.begin(secrets.clone());
        catalogue.hear(&Watch::Budgets, Told::Listing, now);
        catalogue.hear(&Watch::Budgets, Told::Listed, now);
        assert!(!catalogue.is_listed(now));
        let denied = |why: &str| Told::Failed(Failure::Denied(why.to_owned()));
        let told = catalogue.hear(&secrets, denied("grant list"), start);
        let expected = |why: Option<&str>| Change::SecretsDenied {
            namespace: "p".to_owned(),
            why: why.map(str::to_owned),
        };
        assert_eq!(told, [expected(Some("grant list"))]);
        // An API server that has just started may know no rights yet.
        assert!(!catalogue.is_listed(start) && catalogue.settle(start).is_empty());
        assert_eq!(catalogue.wake(start), Some(now));
        assert_eq!(catalogue.settle(now), [Change::Whole]);
        assert!(catalogue.is_listed(now));
        assert!(catalogue.hear(&secrets, denied("grant list"), now).is_empty());
        assert_eq!(catalogue.faults(now).len(), 1);
        catalogue.hear(&secrets, Told::Listing, now);
        assert_eq!(catalogue.hear(&secrets, Told::Listed, now), [expected(None)]);
        assert!(catalogue.faults(now).is_empty());
        // Denied again, and granted again: a watch that is taken up where it was says nothing.
        catalogue.hear(&secrets, denied("grant watch"), now);
        catalogue.answered(&secrets, now + STEADY);
        assert_eq!(catalogue.settle(now + STEADY * 2), [expected(None)]);
    }
}
