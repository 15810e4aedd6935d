//! The log under kills at any byte, full disks and wrong files.

use super::*;
use plimsoll_core::protocol::{LogState, Outcome};
use plimsoll_wire::proto::Charge;
use std::fs;

const BOOT: &str = "0a1b2c3d-0000-0000-0000-000000000001";

fn admission(id: u64) -> Admission {
    Admission {
        request_id: format!("r{id}"),
        admitted_at: 1_000 + i64::try_from(id).unwrap(),
        accounts: vec!["finance|all|month|USD|Month@UTC|0|".into()],
        backend: "finance/sim".into(),
        model: "m".into(),
        reserve: Some(Charge { nano_usd: 500, tokens: 50, requests: 1 }),
        caller: Some(plimsoll_wire::proto::Caller::default()),
        ..Admission::default()
    }
}

fn settlement(admission: u64) -> Settlement {
    Settlement {
        admission,
        settled_at: 2_000,
        charge: Some(Charge { nano_usd: 100, tokens: 10, requests: 1 }),
        usage: Some(plimsoll_wire::proto::Usage::default()),
        outcome: plimsoll_wire::proto::Outcome::Completed.into(),
        ..Settlement::default()
    }
}

fn rows(log: Log, durable: u64) -> Vec<plimsoll_core::protocol::UsageRow> {
    Tail::new(Arc::new(log)).unwrap().read(usize::MAX, durable).unwrap()
}

#[test]
fn a_log_killed_at_any_byte_settles_every_call_that_left_exactly_once() {
    let directory = tempfile::tempdir().unwrap();
    let (log, state) = open(directory.path(), BOOT, Epoch(1)).unwrap();
    assert_eq!(state, LogState::New);
    // What stood in the file when each call left, and when each was settled.
    let (mut left, mut settled) = (Vec::new(), Vec::new());
    for id in 0..4 {
        let sequence = log.admit(&admission(id)).unwrap();
        left.push((log.end().1, sequence));
        if id % 2 == 0 {
            log.settle(settlement(sequence));
            settled.push((log.end().1, sequence));
        }
    }
    drop(log);
    let path = directory.path().join("0000000001.log");
    let whole = fs::read(&path).unwrap();
    for cut in usize::try_from(open::header_length()).unwrap()..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let (log, state) = open(directory.path(), BOOT, Epoch(2)).unwrap();
        assert_eq!((state, log.epoch()), (LogState::Intact, Epoch(1)), "cut at {cut}");
        let rows = rows(log, 0);
        let by = |at: &[(u64, u64)]| {
            at.iter().filter(|(end, _)| *end <= cut as u64).map(|(_, seq)| *seq).collect::<Vec<_>>()
        };
        let mut replayed: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
        replayed.sort_unstable();
        assert_eq!(replayed, by(&left), "cut at {cut}");
        for row in rows {
            let completed = by(&settled).contains(&row.sequence);
            assert_eq!(row.outcome == Outcome::Completed, completed, "cut at {cut}");
            assert_eq!(row.charge.usd.0, if completed { 100 } else { 500 }, "cut at {cut}");
        }
    }
}

#[test]
fn a_flipped_bit_or_a_missing_segment_is_a_gap_and_another_boot_a_crashed_node() {
    let directory = tempfile::tempdir().unwrap();
    let fill = || {
        let (log, _) = open(directory.path(), BOOT, Epoch(1)).unwrap();
        for id in 0..3 {
            let sequence = log.admit(&admission(id)).unwrap();
            log.settle(settlement(sequence));
        }
    };
    fill();
    let path = directory.path().join("0000000001.log");
    let whole = fs::read(&path).unwrap();
    for at in [3, 20, 60, 70, whole.len() - 300, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
        let (log, state) = open(directory.path(), BOOT, Epoch(9)).unwrap();
        assert_eq!((state, log.epoch(), log.last_sequence()), (LogState::Gap, Epoch(9), 0), "bit at {at}");
        drop(log);
        fs::remove_dir_all(directory.path()).unwrap();
        fs::create_dir(directory.path()).unwrap();
    }
    fill();
    let other_boot = "0a1b2c3d-0000-0000-0000-000000000002";
    let (log, state) = open(directory.path(), other_boot, Epoch(7)).unwrap();
    assert_eq!((state, log.epoch()), (LogState::NodeCrashed, Epoch(7)));
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = open(directory.path(), BOOT, Epoch(1)).unwrap();
    assert!(matches!(open(directory.path(), BOOT, Epoch(2)), Err(LogError::Held(_))));
    drop(log);
    assert!(open(directory.path(), BOOT, Epoch(2)).is_ok());
}

#[test]
fn segments_follow_each_other_and_are_forgotten_only_when_everything_in_them_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = open(directory.path(), BOOT, Epoch(1)).unwrap();
    let log = Arc::new(log);
    let mut tail = Tail::new(log.clone()).unwrap();
    let long_stream = log.admit(&admission(0)).unwrap();
    let mut big = admission(1);
    big.route = "r".repeat(100_000);
    let mut read = 0;
    while log.end().0 < 3 {
        let sequence = log.admit(&big).unwrap();
        log.settle(settlement(sequence));
        read += tail.read(usize::MAX, 0).unwrap().len();
    }
    let count = || open::segments(directory.path()).unwrap().len();
    tail.forget(log.last_sequence());
    assert_eq!(count(), 3, "the first segment holds a call in flight");
    log.settle(settlement(long_stream));
    read += tail.read(usize::MAX, 0).unwrap().len();
    tail.forget(log.last_sequence() - 1);
    assert_eq!(count(), 3, "its settlement is not stored yet");
    tail.forget(log.last_sequence());
    assert_eq!(count(), 1);
    assert_eq!(tail.open(), 0);
    assert_eq!(u64::try_from(read).unwrap() * 2, log.last_sequence());
    drop(tail);
    drop(log);
    let (log, state) = open(directory.path(), BOOT, Epoch(2)).unwrap();
    assert_eq!((state, log.epoch()), (LogState::Intact, Epoch(1)), "what was forgotten is no gap");
}
