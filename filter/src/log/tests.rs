//! Whatever the instant at which a gateway is killed: the log says what left, or that it proves nothing.

use super::open::open_sized;
use super::*;
use plimsoll_core::protocol::{Outcome, UsageRow};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

const BOOT: &str = "11111111-2222-3333-4444-555555555555";

fn reserve() -> Option<proto::Charge> {
    Some(proto::Charge { nano_usd: 100, tokens: 10, requests: 1 })
}

fn admission(id: &str) -> proto::Admission {
    proto::Admission {
        request_id: id.to_owned(),
        accounts: vec!["finance|all|month|USD|Month@UTC|0|".to_owned()],
        caller: Some(proto::Caller::default()),
        backend: "plimsoll-system/openai".to_owned(),
        reserve: reserve(),
        ..proto::Admission::default()
    }
}

fn settlement(of: u64) -> proto::Settlement {
    proto::Settlement {
        admission: of,
        usage: Some(proto::Usage::default()),
        charge: Some(proto::Charge { nano_usd: 1, tokens: 1, requests: 1 }),
        outcome: proto::Outcome::Completed.into(),
        ..proto::Settlement::default()
    }
}

fn reopen(dir: &std::path::Path, boot: &str, segment: u64) -> (Arc<Log>, Found) {
    let (log, found) = open_sized(dir, boot, Epoch(2), segment).unwrap();
    (Arc::new(log), found)
}

fn rows(log: &Arc<Log>) -> Vec<UsageRow> {
    Tail::new(log.clone()).read(usize::MAX).unwrap()
}

/// Admits for `true`, settles the oldest open one for `false`; returns sequences admitted, settled.
fn play(log: &Log, steps: &[bool]) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut open, mut admitted, mut settled) = (VecDeque::new(), BTreeSet::new(), BTreeSet::new());
    for admit in steps {
        if *admit {
            let sequence = log.admit(&admission("r")).unwrap();
            open.push_back(sequence);
            admitted.insert(sequence);
        } else if let Some(sequence) = open.pop_front() {
            log.settle(&settlement(sequence)).unwrap();
            settled.insert(sequence);
        }
    }
    (admitted, settled)
}

#[test]
fn a_log_cut_at_any_byte_replays_what_left_and_nothing_else() {
    let steps = [true, true, false, true, true, false, false, true];
    let whole = tempfile::tempdir().unwrap();
    let segment = 150;
    {
        let (log, found) = reopen(whole.path(), BOOT, segment);
        assert_eq!(found, Found { state: LogState::New, replayed: 0 });
        play(&log, &steps);
        assert!(log.segments() > 2, "the cut must meet several segments");
    }
    let mut files: Vec<_> = std::fs::read_dir(whole.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    for cut_file in 0..files.len() {
        let bytes = std::fs::read(&files[cut_file]).unwrap();
        for cut in 0..=bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            for file in &files[..cut_file] {
                std::fs::copy(file, dir.path().join(file.file_name().unwrap())).unwrap();
            }
            std::fs::write(dir.path().join(files[cut_file].file_name().unwrap()), &bytes[..cut]).unwrap();
            let (log, found) = reopen(dir.path(), BOOT, segment);
            if cut_file == 0 && cut < frame::HEADER {
                assert_eq!(found.state, LogState::New);
                continue;
            }
            assert_eq!(
                (found.state, log.epoch()),
                (LogState::Intact, Epoch(2)),
                "cut at {cut} of {cut_file}"
            );
            let rows = rows(&log);
            let replayed = rows.iter().filter(|row| row.outcome == Outcome::Replayed);
            assert_eq!(replayed.clone().count(), found.replayed);
            assert!(replayed.clone().all(|row| row.charge == row.reserve));
            // Every admission is settled once, in an unbroken sequence.
            let of: BTreeSet<u64> = rows.iter().map(|row| row.sequence).collect();
            assert_eq!(of.len(), rows.len());
            assert_eq!(log.sequence(), 2 * rows.len() as u64);
            // It goes on.
            let next = log.admit(&admission("next")).unwrap();
            assert_eq!(next, 2 * rows.len() as u64 + 1);
            drop(log);
            assert_eq!(reopen(dir.path(), BOOT, segment).1, Found { state: LogState::Intact, replayed: 1 });
        }
    }
}

#[test]
fn a_log_with_a_changed_byte_or_a_missing_segment_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (log, _) = reopen(dir.path(), BOOT, 1_000_000);
        play(&log, &[true, false, true, true]);
    }
    let path = path(dir.path(), 1);
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let broken = tempfile::tempdir().unwrap();
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(super::path(broken.path(), 1), changed).unwrap();
        let (log, found) = open_sized(broken.path(), BOOT, Epoch(9), 1_000_000).unwrap();
        assert_eq!((found.state, log.epoch()), (LogState::Gap, Epoch(9)), "byte {at}");
        assert!(broken.path().join("discarded").is_dir());
    }
    let dir = tempfile::tempdir().unwrap();
    {
        let (log, _) = reopen(dir.path(), BOOT, 300);
        play(&log, &[true; 9]);
        assert!(log.segments() > 2);
    }
    let mut firsts: Vec<u64> = open::tests_segments(dir.path());
    std::fs::remove_file(super::path(dir.path(), firsts.remove(1))).unwrap();
    assert_eq!(reopen(dir.path(), BOOT, 300).1.state, LogState::Gap);
}

#[test]
fn a_log_of_another_boot_proves_nothing_and_one_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = reopen(dir.path(), BOOT, 1_000);
    play(&log, &[true]);
    assert!(matches!(open_sized(dir.path(), BOOT, Epoch(3), 1_000), Err(LogError::Locked(_))));
    drop(log);
    let (log, found) = open_sized(dir.path(), "another", Epoch(3), 1_000).unwrap();
    assert_eq!((found.state, log.epoch(), log.sequence()), (LogState::NodeCrashed, Epoch(3), 0));
}

#[test]
fn segments_go_when_everything_in_them_is_stored_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = reopen(dir.path(), BOOT, 600);
    let mut tail = Tail::new(log.clone());
    let long = log.admit(&admission("long")).unwrap();
    for _ in 0..20 {
        play(&log, &[true, false]);
    }
    let rows = tail.read(usize::MAX).unwrap();
    assert_eq!(rows.len(), 20);
    let many = log.segments();
    tail.forget(u64::MAX);
    assert_eq!(log.segments(), many, "a call of the first segment is in flight");
    log.settle(&settlement(long)).unwrap();
    let last = tail.read(usize::MAX).unwrap().remove(0);
    tail.forget(last.settled_sequence - 1);
    assert_eq!(log.segments(), many, "its row is not stored");
    tail.forget(last.settled_sequence);
    assert_eq!(log.segments(), 1);
    // What is left is whole by itself, though settled admissions of it are gone.
    drop(tail);
    drop(log);
    assert_eq!(reopen(dir.path(), BOOT, 600).1, Found { state: LogState::Intact, replayed: 0 });
}

#[test]
fn a_read_that_fails_for_a_while_loses_no_row_and_a_segment_that_is_gone_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = reopen(dir.path(), BOOT, 300);
    for _ in 0..12 {
        play(&log, &[true, false]);
    }
    let whole: Vec<u64> = rows(&log).iter().map(|row| row.settled_sequence).collect();
    assert!(whole.len() == 12 && log.segments() > 3);
    let second = super::path(dir.path(), open::tests_segments(dir.path())[1]);
    let aside = dir.path().join("aside");
    std::fs::rename(&second, &aside).unwrap();
    // A directory opens, but can't be read.
    std::fs::create_dir(&second).unwrap();
    let mut tail = Tail::new(log.clone());
    let mut read: Vec<u64> = tail.read(usize::MAX).unwrap().iter().map(|row| row.settled_sequence).collect();
    assert!(!read.is_empty() && read.len() < 12, "{read:?}");
    for _ in 0..2 {
        assert!(matches!(tail.read(usize::MAX), Err(TailError::Read(_))));
    }
    std::fs::remove_dir(&second).unwrap();
    std::fs::rename(&aside, &second).unwrap();
    read.extend(tail.read(usize::MAX).unwrap().iter().map(|row| row.settled_sequence));
    assert_eq!(read, whole);

    std::fs::remove_file(&second).unwrap();
    assert!(matches!(Tail::new(log.clone()).read(usize::MAX), Err(TailError::Damaged(_))));
}

#[test]
fn a_settlement_that_cannot_be_written_waits_and_admits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("log");
    let (log, _) = reopen(&inner, BOOT, 1);
    let first = log.admit(&admission("a")).unwrap();
    // No new segment can be made without its directory.
    let away = dir.path().join("away");
    std::fs::rename(&inner, &away).unwrap();
    assert!(log.settle(&settlement(first)).is_err());
    assert!(log.admit(&admission("b")).is_err());
    assert!(log.retry().is_err());
    assert_eq!(log.delayed(), 1);
    std::fs::rename(&away, &inner).unwrap();
    log.retry().unwrap();
    assert_eq!(log.delayed(), 0);
    let rows = rows(&log);
    assert_eq!((rows.len(), rows[0].outcome), (1, Outcome::Completed));
    assert_eq!(log.admit(&admission("b")).unwrap(), 3);
}

#[test]
fn a_new_epoch_keeps_nothing_of_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = reopen(dir.path(), BOOT, 300);
    play(&log, &[true, false, true, false]);
    log.restart(Epoch(7)).unwrap();
    assert_eq!((log.epoch(), log.sequence(), rows(&log).len()), (Epoch(7), 0, 0));
    play(&log, &[true]);
    drop(log);
    let (log, found) = reopen(dir.path(), BOOT, 300);
    assert_eq!((log.epoch(), found.replayed), (Epoch(7), 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_tail_gives_each_row_once_in_order_however_it_is_read(
        steps in prop::collection::vec(any::<bool>(), 0..80),
        most in 1_usize..9,
        segment in 100_u64..2_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = reopen(dir.path(), BOOT, segment);
        let mut tail = Tail::new(log.clone());
        let mut seen = Vec::new();
        let mut settled = BTreeSet::new();
        for part in steps.chunks(5) {
            settled.extend(play(&log, part).1);
            loop {
                let rows = tail.read(most).unwrap();
                prop_assert!(rows.len() <= most);
                if rows.is_empty() { break; }
                seen.extend(rows.iter().map(|row| (row.settled_sequence, row.sequence)));
                tail.forget(rows.last().unwrap().settled_sequence);
            }
        }
        prop_assert!(seen.is_sorted());
        let of: BTreeSet<u64> = seen.iter().map(|row| row.1).collect();
        prop_assert_eq!(of.len(), seen.len());
        prop_assert_eq!(of, settled);
    }
}
