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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn id(number: usize) -> Arc<ObjectId> {
        Arc::new(ObjectId {
            kind: if number % 4 == 3 { "ModelRoute" } else { "AIBudget" }.to_owned(),
            namespace: "finance".to_owned(),
            name: number.to_string(),
        })
    }

    fn status(stage: u64, verdict: u64, whole: u64) -> Fingerprint {
        Fingerprint { stage, verdict, whole: (stage * 100 + verdict) * 100 + whole }
    }

    fn wanted(uid: &str, status: Fingerprint) -> Option<Wanted> {
        Some(Wanted { uid: uid.into(), status })
    }

    /// What stands there after a write, if nobody else wrote.
    fn entry(job: &Job, status: Option<Fingerprint>) -> Option<Entry> {
        stored(&job.uid, status)
    }

    fn stored(uid: &str, status: Option<Fingerprint>) -> Option<Entry> {
        Some(Entry { uid: uid.into(), version: "1".into(), status })
    }

    /// A queue in which each of `count` objects has a status that was seen long ago.
    fn settled(count: usize) -> (Queue, Instant) {
        let (mut queue, start) = (Queue::default(), Instant::now());
        for number in 0..count {
            queue.see(&id(number), stored("1", Some(status(0, 0, 0))), start);
            queue.want(&id(number), wanted("1", status(0, 0, 0)), start);
        }
        (queue, start + seconds(100))
    }

    fn want(queue: &mut Queue, number: usize, status: Fingerprint, now: Instant) {
        queue.want(&id(number), wanted("1", status), now);
    }

    fn job(queue: &mut Queue, now: Instant) -> Option<Job> {
        match queue.next(now) {
            Next::Write(job) => Some(job),
            Next::Wait(_) | Next::Nothing => None,
        }
    }

    /// Writes what can be written now; the objects' names, in order.
    fn drain(queue: &mut Queue, status: Fingerprint, now: Instant) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(job) = job(queue, now) {
            queue.written(&job, Some(status), entry(&job, Some(status)), now);
            names.push(job.id.name.clone());
        }
        names
    }

    #[test]
    fn after_a_restart_nothing_is_written_that_is_there_already() {
        let (mut queue, now) = settled(10_000);
        assert_eq!((queue.next(now), queue.len()), (Next::Nothing, 0));
    }

    #[test]
    fn a_status_of_the_process_before_is_left_alone_for_ten_seconds() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.see(&id(0), stored("1", Some(status(0, 0, 0))), now);
        queue.see(&id(1), stored("1", None), now);
        want(&mut queue, 0, status(0, 1, 0), now);
        want(&mut queue, 1, status(0, 1, 0), now);
        assert_eq!(drain(&mut queue, status(0, 1, 0), now), ["1"]);
        assert_eq!(queue.next(now), Next::Wait(now + EVERY));
        // The gateways have come back.
        want(&mut queue, 0, status(0, 0, 0), now + seconds(3));
        assert_eq!(queue.next(now + EVERY), Next::Nothing);
    }

    #[test]
    fn stage_changes_go_first_then_verdicts_then_numbers_and_within_these_the_oldest() {
        let (mut queue, now) = settled(6);
        for (number, status) in [
            (0, status(0, 0, 1)),
            (1, status(0, 1, 0)),
            (2, status(1, 0, 0)),
            (3, status(0, 0, 1)),
            (4, status(0, 1, 0)),
            (5, status(1, 0, 0)),
        ] {
            want(&mut queue, number, status, now);
        }
        let names = std::iter::from_fn(|| job(&mut queue, now)).map(|job| job.id.name.clone());
        assert_eq!(names.collect::<Vec<_>>(), ["2", "5", "1", "4", "0", "3"]);
    }

    #[test]
    fn a_later_report_replaces_what_is_wanted_and_keeps_the_place() {
        let (mut queue, now) = settled(3);
        want(&mut queue, 0, status(0, 0, 1), now);
        want(&mut queue, 1, status(0, 0, 1), now);
        want(&mut queue, 2, status(0, 0, 1), now);
        want(&mut queue, 0, status(0, 0, 2), now + seconds(1));
        want(&mut queue, 1, status(0, 0, 0), now + seconds(1));
        assert_eq!(queue.oldest(now + seconds(3)), seconds(3));
        assert_eq!(drain(&mut queue, status(0, 0, 2), now + seconds(1)), ["0", "2"]);
    }

    #[test]
    fn what_changes_while_it_is_written_is_written_again_ten_seconds_later() {
        let (mut queue, now) = settled(1);
        want(&mut queue, 0, status(0, 0, 1), now);
        let job = job(&mut queue, now).unwrap();
        want(&mut queue, 0, status(1, 0, 2), now);
        assert_eq!(queue.next(now), Next::Nothing);
        queue.written(&job, Some(status(0, 0, 1)), entry(&job, Some(status(0, 0, 1))), now + seconds(2));
        assert_eq!(queue.next(now + seconds(2)), Next::Wait(now + EVERY));
        assert_eq!(drain(&mut queue, status(1, 0, 2), now + EVERY), ["0"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn what_somebody_else_overwrote_is_written_back() {
        let (mut queue, now) = settled(1);
        queue.see(&id(0), stored("1", Some(status(0, 0, 9))), now);
        assert_eq!(drain(&mut queue, status(0, 0, 0), now), ["0"]);
    }

    #[test]
    fn a_write_that_changes_nothing_is_not_repeated_until_something_does() {
        let (mut queue, now) = settled(1);
        want(&mut queue, 0, status(0, 0, 1), now);
        // Somebody else's entry stays beside ours.
        assert_eq!(drain(&mut queue, status(0, 0, 7), now), ["0"]);
        queue.see(&id(0), stored("1", Some(status(0, 0, 7))), now);
        assert_eq!(queue.next(now + seconds(60)), Next::Nothing);
        want(&mut queue, 0, status(0, 0, 2), now + seconds(60));
        assert_eq!(drain(&mut queue, status(0, 0, 8), now + seconds(60)), ["0"]);
        queue.see(&id(0), stored("1", Some(status(0, 0, 9))), now + seconds(61));
        assert_eq!(drain(&mut queue, status(0, 0, 8), now + seconds(70)), ["0"]);
    }

    #[test]
    fn a_re_created_object_waits_for_its_own_status_and_is_then_written_at_once() {
        let (mut queue, now) = settled(1);
        want(&mut queue, 0, status(0, 0, 1), now);
        let late = job(&mut queue, now).unwrap();
        queue.see(&id(0), None, now);
        queue.see(&id(0), stored("2", None), now);
        queue.written(&late, Some(status(0, 0, 1)), None, now);
        assert_eq!(queue.next(now), Next::Nothing);
        queue.want(&id(0), wanted("2", status(0, 0, 1)), now);
        assert_eq!(job(&mut queue, now).unwrap().uid, "2".into());
    }

    #[test]
    fn an_object_that_is_gone_leaves_the_queue_and_takes_no_room() {
        let (mut queue, now) = settled(3);
        for number in 0..3 {
            want(&mut queue, number, status(1, 0, 0), now);
        }
        queue.see(&id(0), None, now);
        queue.want(&id(0), None, now);
        queue.want(&id(1), None, now);
        queue.see(&id(1), None, now);
        let job = job(&mut queue, now).unwrap();
        queue.gone(&job, now);
        queue.want(&id(2), None, now);
        assert_eq!((queue.next(now), queue.len()), (Next::Nothing, 0));
        assert!(queue.objects.is_empty());
    }

    #[test]
    fn a_kind_that_may_not_be_written_holds_up_no_other() {
        let (mut queue, now) = settled(4);
        for number in [3, 2] {
            want(&mut queue, number, status(0, 0, 1), now);
        }
        queue.bar(("ModelRoute".to_owned(), None), now + seconds(30));
        assert_eq!(drain(&mut queue, status(0, 0, 1), now), ["2"]);
        assert!(queue.has("ModelRoute") && !queue.has("AIBudget"));
        assert_eq!(queue.next(now), Next::Wait(now + seconds(30)));
        assert_eq!(drain(&mut queue, status(0, 0, 1), now + seconds(30)), ["3"]);
    }

    #[test]
    fn what_failed_goes_to_the_end() {
        let (mut queue, now) = settled(3);
        want(&mut queue, 0, status(0, 0, 1), now);
        let first = job(&mut queue, now).unwrap();
        want(&mut queue, 1, status(0, 0, 1), now);
        queue.failed(&first, now);
        let names = std::iter::from_fn(|| job(&mut queue, now + EVERY)).map(|job| job.id.name.clone());
        assert_eq!(names.collect::<Vec<_>>(), ["1", "0"]);
        assert_eq!(queue.oldest(now + EVERY), EVERY, "it waits since it differs");
    }

    #[test]
    fn what_was_written_for_an_older_version_is_tried_again_in_a_second_and_then_no_faster_than_usual() {
        let (mut queue, now) = settled(1);
        want(&mut queue, 0, status(0, 0, 1), now);
        let first = job(&mut queue, now).unwrap();
        queue.late(&first, now);
        assert_eq!(queue.next(now), Next::Wait(now + SECOND));
        let second = job(&mut queue, now + SECOND).unwrap();
        queue.late(&second, now + SECOND);
        assert_eq!(queue.next(now + SECOND), Next::Wait(now + SECOND + EVERY));
        assert_eq!(drain(&mut queue, status(0, 0, 1), now + SECOND + EVERY), ["0"]);
    }

    #[test]
    fn at_the_end_only_stage_changes_are_written() {
        let (mut queue, now) = settled(5);
        want(&mut queue, 0, status(0, 0, 1), now);
        let flying = job(&mut queue, now).unwrap();
        want(&mut queue, 0, status(0, 0, 2), now);
        want(&mut queue, 1, status(0, 1, 0), now);
        want(&mut queue, 2, status(1, 0, 0), now);
        queue.keep_stages();
        queue.written(&flying, Some(status(0, 0, 1)), entry(&flying, Some(status(0, 0, 1))), now);
        assert_eq!(drain(&mut queue, status(1, 0, 0), now), ["2"]);
        assert_eq!(queue.next(now + EVERY), Next::Nothing);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(usize, u64, u64, u64),
        Unwant(usize),
        /// Somebody else writes.
        Tamper(usize, u64),
        Gone(usize),
        /// Deleted and created again.
        Create(usize),
        Bar,
        Pass(u64),
        Written,
        Failed,
        Late,
    }

    const OBJECTS: usize = 60;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => (0..OBJECTS, 0..2_u64, 0..2_u64, 0..5_u64).prop_map(|(n, s, v, w)| Step::Want(n, s, v, w)),
            1 => (0..OBJECTS).prop_map(Step::Unwant),
            1 => (0..OBJECTS, 0..5_u64).prop_map(|(n, w)| Step::Tamper(n, w)),
            1 => (0..OBJECTS).prop_map(Step::Gone),
            1 => (0..OBJECTS).prop_map(Step::Create),
            1 => Just(Step::Bar),
            3 => (0..4000_u64).prop_map(Step::Pass),
            1 => (60_000..90_000_u64).prop_map(Step::Pass),
            6 => Just(Step::Written),
            1 => Just(Step::Failed),
            1 => Just(Step::Late),
        ]
    }

    /// What the rules say, computed anew from everything at each step.
    #[derive(Default)]
    struct Model {
        wanted: BTreeMap<usize, (u64, Fingerprint)>,
        stored: BTreeMap<usize, (u64, Option<Fingerprint>)>,
        seen: BTreeMap<usize, Instant>,
        given: Vec<(Instant, usize, u64)>,
        /// Those whose last write was for an older version, and when that was said.
        late: BTreeMap<usize, Instant>,
        flying: Vec<(Job, usize, Fingerprint)>,
        barred: Option<Instant>,
        uids: u64,
    }

    impl Model {
        fn differs(&self, number: usize) -> Option<Class> {
            let ((uid, wanted), (there, stored)) = (self.wanted.get(&number)?, self.stored.get(&number)?);
            let Some(stored) = stored else { return (uid == there).then_some(Class::Verdict) };
            if uid != there || wanted == stored {
                return None;
            }
            Some(match wanted {
                Fingerprint { stage, .. } if *stage != stored.stage => Class::Stage,
                Fingerprint { verdict, .. } if *verdict != stored.verdict => Class::Verdict,
                Fingerprint { .. } => Class::Numbers,
            })
        }

        fn may(&self, number: usize, now: Instant) -> bool {
            let uid = self.stored.get(&number).map(|(uid, _)| *uid);
            let rested = |(at, other, of): &(Instant, usize, u64)| {
                let rest =
                    self.late.get(other).filter(|late| *late >= at).map_or(*at + EVERY, |at| *at + SECOND);
                *other != number || Some(*of) != uid || now >= rest
            };
            let is_barred = number % 4 == 3 && self.barred.is_some_and(|until| now < until);
            !is_barred
                && self.differs(number).is_some()
                && self.given.iter().all(rested)
                && self.seen.get(&number).is_none_or(|at| now >= *at + EVERY)
                && self.flying.iter().all(|(_, other, _)| *other != number)
        }

        /// How many were given in the second that ends now.
        fn lately(&self, now: Instant) -> usize {
            self.given.iter().filter(|(at, _, _)| *at + SECOND > now).count()
        }

        fn give(&mut self, job: Job, queue: &Queue, now: Instant) {
            let number: usize = job.id.name.parse().unwrap();
            assert!(self.may(number, now), "{number} may not be written");
            assert!(self.lately(now) < MOST, "more than {MOST} in a second");
            let (uid, status) = self.wanted[&number];
            assert_eq!(job.uid, uid.to_string().into());
            let waits = |number: usize| queue.objects[&id(number)].waits.unwrap();
            let patient = now >= waits(number).0 + PATIENCE;
            for other in (0..OBJECTS).filter(|other| self.may(*other, now)) {
                let (mine, its) = (self.differs(number), self.differs(other));
                assert!(patient || mine <= its, "{other} is more urgent than {number}");
                assert!(mine != its || waits(number).1 <= waits(other).1, "{other} is older than {number}");
            }
            self.given.push((now, number, uid));
            self.flying.push((job, number, status));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        /// Rates, order and that nothing is forgotten, whatever happens.
        #[test]
        fn the_rules_hold_whatever_happens(steps in proptest::collection::vec(step(), 1..400)) {
            let (mut queue, mut model, mut now) = (Queue::default(), Model::default(), Instant::now());
            let see = |queue: &mut Queue, model: &Model, number: usize, now: Instant| {
                let entry = model.stored.get(&number);
                let entry = entry.and_then(|(uid, status)| stored(&uid.to_string(), *status));
                queue.see(&id(number), entry, now);
            };
            for number in 0..OBJECTS {
                let there = (number % 3 > 0).then(|| status(0, 0, 0));
                model.stored.insert(number, (0, there));
                if there.is_some() {
                    model.seen.insert(number, now);
                }
                see(&mut queue, &model, number, now);
            }
            let quiet = std::iter::repeat_n([Step::Pass(1000), Step::Written], 60).flatten();
            for step in steps.into_iter().chain(quiet) {
                match step {
                    Step::Want(number, stage, verdict, whole) => {
                        let uid = model.stored.get(&number).map_or(0, |(uid, _)| *uid);
                        let wanted_status = status(stage, verdict, whole);
                        model.wanted.insert(number, (uid, wanted_status));
                        queue.want(&id(number), wanted(&uid.to_string(), wanted_status), now);
                    }
                    Step::Unwant(number) => {
                        model.wanted.remove(&number);
                        queue.want(&id(number), None, now);
                    }
                    Step::Tamper(number, whole) => {
                        if let Some((_, there)) = model.stored.get_mut(&number) {
                            *there = Some(status(0, 0, whole));
                        }
                        see(&mut queue, &model, number, now);
                    }
                    Step::Gone(number) => {
                        model.stored.remove(&number);
                        see(&mut queue, &model, number, now);
                    }
                    Step::Create(number) => {
                        model.uids += 1;
                        model.stored.insert(number, (model.uids, None));
                        model.seen.remove(&number);
                        model.late.remove(&number);
                        see(&mut queue, &model, number, now);
                    }
                    Step::Bar => {
                        model.barred = Some(now + seconds(30));
                        queue.bar(("ModelRoute".to_owned(), None), now + seconds(30));
                    }
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    Step::Written => {
                        for (job, number, sent) in std::mem::take(&mut model.flying) {
                            model.late.remove(&number);
                            if let Some((uid, there)) = model.stored.get_mut(&number)
                                && job.uid == uid.to_string().into()
                            {
                                *there = Some(sent);
                            }
                            queue.written(&job, Some(sent), entry(&job, Some(sent)), now);
                        }
                    }
                    Step::Late => {
                        // The first in a row; those after it rest as if they were written.
                        for (job, number, _) in std::mem::take(&mut model.flying) {
                            if job.uid == model.stored.get(&number).map_or(0, |(uid, _)| *uid).to_string().into() {
                                model.late.entry(number).or_insert(now);
                            }
                            queue.late(&job, now);
                        }
                    }
                    Step::Failed => {
                        for (job, _, _) in std::mem::take(&mut model.flying) {
                            queue.failed(&job, now);
                        }
                    }
                }
                loop {
                    match queue.next(now) {
                        Next::Write(job) => model.give(job, &queue, now),
                        Next::Wait(until) => {
                            prop_assert!(until > now);
                            let idle = (0..OBJECTS).all(|number| !model.may(number, now));
                            prop_assert!(idle || model.lately(now) == MOST, "somebody waits in vain");
                            break;
                        }
                        Next::Nothing => {
                            let idle = (0..OBJECTS).all(|number| !model.may(number, now));
                            prop_assert!(idle, "somebody is forgotten");
                            break;
                        }
                    }
                }
            }
            let left: Vec<usize> = (0..OBJECTS).filter(|number| model.differs(*number).is_some()).collect();
            prop_assert!(left.is_empty(), "after a minute of peace {left:?} are not written");
            prop_assert_eq!(queue.len(), 0);
        }
    }

    #[test]
    fn numbers_are_written_under_stage_changes_without_end() {
        const NUMBERS: usize = 40;
        let (mut queue, start) = settled(300);
        let mut now = start;
        for number in 260..260 + NUMBERS {
            want(&mut queue, number, status(0, 0, 1), now);
        }
        let (mut stage, mut written) = (0, 0);
        while written < NUMBERS {
            stage += 1;
            for number in 0..260 {
                want(&mut queue, number, status(stage, 0, 0), now);
            }
            while let Some(job) = job(&mut queue, now) {
                written += usize::from(job.id.name.parse::<usize>().unwrap() >= 260);
                let status = queue.objects[&job.id].wanted.as_ref().map(|wanted| wanted.status);
                queue.written(&job, status, entry(&job, status), now);
            }
            now += seconds(1);
            assert!(now < start + PATIENCE + seconds(20), "{written} of {NUMBERS} after 80 s");
        }
    }
}
