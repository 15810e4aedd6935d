//! Which status is written next. Pure: `now` is an argument.
//!
//! An object waits as long as what is wanted of it differs from what the API server has, so a later
//! report replaces an earlier one and what came back to what is stored is not written at all. Stage
//! changes go first, then what somebody waits for who edited, then numbers; within these the oldest.
//! Everything costs as much as what changed, never as much as what there is.

use super::stored::{Entry, Fingerprint};
use plimsoll_api::ObjectId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The least time between two writes of one object.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// The most writes in any second.
pub(super) const MOST: usize = 20;

const SECOND: Duration = Duration::from_secs(1);

/// Who has waited for so long gets every [`TURN`]th write, whatever it is: stage changes without end must
/// not hide everything else.
const PATIENCE: Duration = Duration::from_secs(60);

const TURN: u64 = 5;

/// How long an object rests whose status was refused, and how often that doubles.
const REFUSED_FOR: Duration = Duration::from_secs(30);
const MOST_DOUBLINGS: u32 = 3;

/// What an object's status should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The object that it was made for, and no other of that name.
    pub(super) uid: Arc<str>,
    pub(super) status: Fingerprint,
}

/// A status to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) id: Arc<ObjectId>,
    pub(super) uid: Arc<str>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Write this. The queue expects [`Queue::written`], [`Queue::failed`],
    /// [`Queue::refused`], [`Queue::late`] or [`Queue::gone`].
    Write(Job),
    /// Nothing before this instant, unless something changes.
    Wait(Instant),
    /// Nothing, unless something changes.
    Nothing,
}

/// How urgent a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Stage,
    Verdict,
    Numbers,
}

#[derive(Debug, Default)]
struct Object {
    wanted: Option<Wanted>,
    stored: Option<Entry>,
    /// What was written last and what the API server made of it. While it stays at that, writing the same
    /// again would change nothing: what differs is somebody else's.
    settled: Option<Box<(Fingerprint, Fingerprint)>>,
    /// Not before.
    rests: Option<Instant>,
    /// Since it differs, and its place among those that wait.
    waits: Option<(Instant, u64)>,
    /// Whether the last write was for an older version.
    late: bool,
    /// How often in a row its status was refused.
    refusals: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// As it should be.
    #[default]
    Still,
    Ready(Class, u64),
    Resting(Instant, u64),
    /// On its way to the API server, with this.
    Flying(Fingerprint),
}

impl Object {
    /// How what is wanted differs from what is stored, if it does.
    fn class(&self) -> Option<Class> {
        let (wanted, stored) = (self.wanted.as_ref()?, self.stored.as_ref()?);
        if wanted.uid != stored.uid {
            // One of both is late.
            return None;
        }
        let Some(there) = stored.status else { return Some(Class::Verdict) };
        if there == wanted.status || self.settled.as_deref() == Some(&(wanted.status, there)) {
            return None;
        }
        Some(match wanted.status {
            Fingerprint { stage, .. } if stage != there.stage => Class::Stage,
            Fingerprint { verdict, .. } if verdict != there.verdict => Class::Verdict,
            _ => Class::Numbers,
        })
    }
}

/// Statuses of a kind: all, or those in one namespace.
pub(super) type Bar = (String, Option<String>);

/// All statuses, and which of them wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    objects: HashMap<Arc<ObjectId>, Object>,
    /// By [`Class`], then by place.
    ready: [BTreeMap<u64, Arc<ObjectId>>; 3],
    resting: BTreeMap<(Instant, u64), Arc<ObjectId>>,
    flying: usize,
    /// Where nothing can be written before.
    barred: HashMap<Bar, Instant>,
    /// When the last writes were given out.
    given: VecDeque<Instant>,
    writes: u64,
    turn: u64,
    only_stages: bool,
}

impl Queue {
    /// The status of `id` should be `wanted`; None: nothing is said about it any more.
    pub(super) fn want(&mut self, id: &Arc<ObjectId>, wanted: Option<Wanted>, now: Instant) {
        self.change(id, now, |object| object.wanted = wanted);
    }

    /// The API server has `id` like this; None: it has no such object.
    pub(super) fn see(&mut self, id: &Arc<ObjectId>, stored: Option<Entry>, now: Instant) {
        self.change(id, now, |object| {
            let uid = |entry: &Option<Entry>| entry.as_ref().map(|entry| Arc::clone(&entry.uid));
            if stored.is_some() && uid(&object.stored) != uid(&stored) {
                // A status that was there before us may have been written just now, by the process
                // before; and a gateway that reconnects to us need not be told away in it.
                let written = stored.as_ref().is_some_and(|entry| entry.status.is_some());
                object.rests = written.then(|| now + EVERY);
                object.settled = None;
                object.late = false;
                object.refusals = 0;
            }
            object.stored = stored;
        });
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        self.barred.retain(|_, until| *until > now);
        while let Some(entry) = self.resting.first_entry().filter(|entry| entry.key().0 <= now) {
            let id = entry.remove();
            self.place(&id, now);
        }
        loop {
            let Some((class, turn)) = self.first(now) else {
                let resting = self.resting.first_key_value();
                return resting.map_or(Next::Nothing, |((until, _), _)| Next::Wait(*until));
            };
            let id = Arc::clone(&self.ready[class as usize][&turn]);
            if let Some(until) = self.barred(&id) {
                self.rest(&id, until, now);
                continue;
            }
            if let Some(first) = self.given.front().filter(|_| self.given.len() >= MOST)
                && *first + SECOND > now
            {
                return Next::Wait(*first + SECOND);
            }
            let Some(job) = self.give(&id, now) else { continue };
            return Next::Write(job);
        }
    }

    /// What [`Self::next`] gave out is written. The API server made `status` of it, and has `there` now: somebody
    /// may have written since.
    pub(super) fn written(
        &mut self,
        job: &Job,
        status: Option<Fingerprint>,
        there: Option<Entry>,
        now: Instant,
    ) {
        self.land(&job.id, now, |object, sent| {
            object.waits = None;
            object.late = false;
            object.refusals = 0;
            let is_it = |entry: &Entry| entry.uid == job.uid;
            let Some(stored) = object.stored.as_mut().filter(|stored| is_it(stored)) else { return };
            if let Some(there) = there.filter(is_it) {
                *stored = there;
            }
            let other = status.filter(|status| *status != sent);
            object.settled = other.map(|status| Box::new((sent, status)));
        });
    }

    /// What [`Self::next`] gave out could not be written, or nobody knows; it goes to the end.
    pub(super) fn failed(&mut self, job: &Job, now: Instant) {
        self.turn += 1;
        let turn = self.turn;
        self.land(&job.id, now, |object, _| {
            if let Some((_, place)) = &mut object.waits {
                *place = turn;
            }
        });
    }

    /// What [`Self::next`] gave out is refused, and would be again: somebody must act first. It rests for
    /// [`REFUSED_FOR`], twice as long each time.
    pub(super) fn refused(&mut self, job: &Job, now: Instant) {
        self.land(&job.id, now, |object, _| {
            object.rests = Some(now + REFUSED_FOR * 2_u32.pow(object.refusals));
            object.refusals = (object.refusals + 1).min(MOST_DOUBLINGS);
        });
    }

    /// What [`Self::next`] gave out was for an older version of the object; nothing was written.
    pub(super) fn late(&mut self, job: &Job, now: Instant) {
        self.land(&job.id, now, |object, _| {
            if object.stored.as_ref().is_none_or(|stored| stored.uid != job.uid) {
                return;
            }
            // Once more at once, when it is known what stands there now. Who is late again is not told.
            if !std::mem::replace(&mut object.late, true) {
                object.rests = Some(now + SECOND);
            }
        });
    }

    /// The API server has no such object.
    pub(super) fn gone(&mut self, job: &Job, now: Instant) {
        self.land(&job.id, now, |object, _| {
            if object.stored.as_ref().is_some_and(|stored| stored.uid == job.uid) {
                object.stored = None;
            }
        });
    }

    /// Nothing there can be written before `until`.
    pub(super) fn bar(&mut self, bar: Bar, until: Instant) {
        self.barred.insert(bar, until);
    }

    /// Only stage changes are written from now on.
    pub(super) fn keep_stages(&mut self) {
        self.only_stages = true;
        let objects = &self.objects;
        self.resting.retain(|_, id| objects.get(id).and_then(Object::class) == Some(Class::Stage));
        self.ready[Class::Verdict as usize].clear();
        self.ready[Class::Numbers as usize].clear();
    }

    /// How many are not as they should be.
    pub(super) fn len(&self) -> usize {
        self.ready.iter().map(BTreeMap::len).sum::<usize>() + self.resting.len() + self.flying
    }

    /// Whether something of `kind` waits.
    pub(super) fn has(&self, kind: &str) -> bool {
        self.objects.iter().any(|(id, object)| id.kind == kind && object.waits.is_some())
    }

    /// For how long the oldest has waited.
    pub(super) fn oldest(&self, now: Instant) -> Duration {
        let since = self.objects.values().filter_map(|object| object.waits).map(|(since, _)| since).min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn change(&mut self, id: &Arc<ObjectId>, now: Instant, change: impl FnOnce(&mut Object)) {
        change(self.objects.entry(Arc::clone(id)).or_default());
        self.place(id, now);
    }

    fn land(&mut self, id: &Arc<ObjectId>, now: Instant, change: impl FnOnce(&mut Object, Fingerprint)) {
        let Some(object) = self.objects.get_mut(id) else { return };
        let Place::Flying(sent) = object.place else { return };
        self.flying -= 1;
        object.place = Place::Still;
        change(object, sent);
        self.place(id, now);
    }

    /// Puts `id` where it belongs after a change.
    fn place(&mut self, id: &Arc<ObjectId>, now: Instant) {
        let Some(object) = self.objects.get_mut(id) else { return };
        let place = match (object.place, object.class()) {
            // What it became meanwhile counts when it lands.
            (Place::Flying(_), _) => return,
            (_, None) => {
                object.waits = None;
                Place::Still
            }
            (_, Some(class)) if self.only_stages && class != Class::Stage => Place::Still,
            (_, Some(class)) => {
                let (_, turn) = *object.waits.get_or_insert_with(|| {
                    self.turn += 1;
                    (now, self.turn)
                });
                match object.rests.filter(|until| *until > now) {
                    Some(until) => Place::Resting(until, turn),
                    None => Place::Ready(class, turn),
                }
            }
        };
        let before = std::mem::replace(&mut object.place, place);
        let empty = object.wanted.is_none() && object.stored.is_none();
        self.take(before);
        match place {
            Place::Still if empty => drop(self.objects.remove(id)),
            Place::Still | Place::Flying(_) => {}
            Place::Ready(class, turn) => drop(self.ready[class as usize].insert(turn, Arc::clone(id))),
            Place::Resting(until, turn) => drop(self.resting.insert((until, turn), Arc::clone(id))),
        }
    }

    fn take(&mut self, place: Place) {
        match place {
            Place::Still | Place::Flying(_) => {}
            Place::Ready(class, turn) => drop(self.ready[class as usize].remove(&turn)),
            Place::Resting(until, turn) => drop(self.resting.remove(&(until, turn))),
        }
    }

    fn barred(&self, id: &ObjectId) -> Option<Instant> {
        if self.barred.is_empty() {
            return None;
        }
        let bars = [None, Some(id.namespace.clone())];
        bars.into_iter().filter_map(|namespace| self.barred.get(&(id.kind.clone(), namespace))).max().copied()
    }

    fn rest(&mut self, id: &Arc<ObjectId>, until: Instant, now: Instant) {
        if let Some(object) = self.objects.get_mut(id) {
            object.rests = object.rests.max(Some(until));
        }
        self.place(id, now);
    }

    /// Whose turn it is.
    fn first(&self, now: Instant) -> Option<(Class, u64)> {
        let firsts = [Class::Stage, Class::Verdict, Class::Numbers];
        let mut firsts = firsts.into_iter().filter_map(|class| {
            let (turn, id) = self.ready[class as usize].first_key_value()?;
            Some((class, *turn, id))
        });
        if self.writes % TURN == TURN - 1 {
            let (class, turn, id) = firsts.clone().min_by_key(|(_, turn, _)| *turn)?;
            let since = self.objects.get(id).and_then(|object| object.waits).map(|(since, _)| since);
            if since.is_some_and(|since| now >= since + PATIENCE) {
                return Some((class, turn));
            }
        }
        firsts.next().map(|(class, turn, _)| (class, turn))
    }

    fn give(&mut self, id: &Arc<ObjectId>, now: Instant) -> Option<Job> {
        let object = self.objects.get_mut(id)?;
        let Wanted { uid, status } = object.wanted.clone()?;
        object.rests = Some(now + EVERY);
        let before = std::mem::replace(&mut object.place, Place::Flying(status));
        self.take(before);
        self.flying += 1;
        self.writes += 1;
        self.given.push_back(now);
        if self.given.len() > MOST {
            self.given.pop_front();
        }
        Some(Job { id: Arc::clone(id), uid })
    }
}

#[cfg(test)]
mod tests;
