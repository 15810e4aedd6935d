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
            let rest = self.late.get(other).filter(|late| *late >= at).map_or(*at + EVERY, |at| *at + SECOND);
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
