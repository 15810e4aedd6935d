//! Opening the log: what an earlier process left, what it proves, and the replay of what it left open.

use super::frame::{self, Header, Kind};
use super::{Damage, Found, Log, LogError, SEGMENT, Writer, create, path};
use plimsoll_core::ids::Epoch;
use plimsoll_core::protocol::LogState;
use plimsoll_wire::proto;
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

/// Opens the log in `directory`, and replays it: admissions without a settlement are settled at their
/// reserve. A log that proves nothing is put aside (`discarded/`), and a new epoch begins. `fresh` is the
/// epoch to use then; `boot` is this node's boot id.
///
/// # Errors
/// The directory can't be used, is used by another process, or can't be written.
pub fn open(directory: &Path, boot: &str, fresh: Epoch) -> Result<(Log, Found), LogError> {
    open_sized(directory, boot, fresh, SEGMENT)
}

pub(super) fn open_sized(
    directory: &Path,
    boot: &str,
    fresh: Epoch,
    segment_bytes: u64,
) -> Result<(Log, Found), LogError> {
    let unusable = |error| LogError::Directory { path: directory.to_owned(), error };
    fs::create_dir_all(directory).map_err(unusable)?;
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"));
    let lock = lock.map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(LogError::Locked(directory.to_owned())),
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    let left = read(directory).map_err(unusable)?;
    let state = match &left {
        Left::Nothing => LogState::New,
        Left::Gap => LogState::Gap,
        Left::Whole(whole) if whole.boot != boot => LogState::NodeCrashed,
        Left::Whole(_) => LogState::Intact,
    };
    let (writer, open) = match left {
        Left::Whole(whole) if state == LogState::Intact => {
            let Whole { epoch, segments, next, open, .. } = whole;
            let (first, length) = segments.back().copied().unwrap_or_default();
            let file = OpenOptions::new().append(true).open(path(directory, first)).map_err(unusable)?;
            // A torn record was never admitted: its call did not leave.
            file.set_len(length).map_err(unusable)?;
            (Writer { epoch, file, segments, next, torn: false, waiting: VecDeque::new() }, open)
        }
        Left::Whole(_) | Left::Gap | Left::Nothing => {
            discard(directory).map_err(unusable)?;
            let header = Header { epoch: fresh, boot: boot.to_owned(), first: 1 };
            let file = create(directory, &header).map_err(unusable)?;
            let segments = VecDeque::from([(1, frame::HEADER as u64)]);
            let waiting = VecDeque::new();
            (Writer { epoch: fresh, file, segments, next: 1, torn: false, waiting }, BTreeMap::new())
        }
    };
    let log = Log {
        directory: directory.to_owned(),
        boot: boot.to_owned(),
        segment_bytes,
        writer: Mutex::new(writer),
        delayed: AtomicU64::new(0),
        _lock: lock,
    };
    let replayed = open.len();
    for (sequence, admission) in open {
        // The call may have left and been answered: it is charged the most that it can have cost. A disk that
        // is full now makes it wait; until then nothing is admitted.
        let _ = log.settle(&proto::Settlement {
            sequence: 0,
            admission: sequence,
            settled_at: admission.admitted_at,
            usage: Some(proto::Usage::default()),
            charge: admission.reserve,
            best_tier_nano_usd: admission.reserve.map_or(0, |reserve| reserve.nano_usd),
            outcome: proto::Outcome::Replayed.into(),
        });
    }
    Ok((log, Found { state, replayed }))
}

enum Left {
    Nothing,
    Gap,
    Whole(Whole),
}

struct Whole {
    epoch: Epoch,
    boot: String,
    segments: VecDeque<(u64, u64)>,
    next: u64,
    open: BTreeMap<u64, proto::Admission>,
}

fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let first =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        if let Some(first) = first.and_then(|digits| digits.parse().ok()) {
            found.push((first, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Puts the segments aside, in place of what was put aside before.
pub(super) fn discard(directory: &Path) -> io::Result<()> {
    let found = segments(directory)?;
    if found.is_empty() {
        return Ok(());
    }
    let aside = directory.join("discarded");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir(&aside)?;
    for (_, path) in found {
        if let Some(name) = path.file_name() {
            fs::rename(&path, aside.join(name))?;
        }
    }
    Ok(())
}

fn read(directory: &Path) -> io::Result<Left> {
    let found = segments(directory)?;
    let mut whole: Option<Whole> = None;
    for (i, (first, path)) in found.iter().enumerate() {
        let last = i + 1 == found.len();
        // SEGMENT bounds what is read at once.
        let bytes = fs::read(path)?;
        let header = match Header::decode(&bytes) {
            Ok(Some(header)) => header,
            // The process died while it began this segment.
            Ok(None) if last => {
                fs::remove_file(path)?;
                break;
            }
            Ok(None) | Err(_) => return Ok(Left::Gap),
        };
        let state = whole.get_or_insert_with(|| Whole {
            epoch: header.epoch,
            boot: header.boot.clone(),
            segments: VecDeque::new(),
            next: header.first,
            open: BTreeMap::new(),
        });
        let follows = header.epoch == state.epoch
            && header.boot == state.boot
            && header.first == state.next
            && header.first == *first;
        if !follows {
            return Ok(Left::Gap);
        }
        match scan(&bytes, state) {
            Ok(end) if end == bytes.len() || last => state.segments.push_back((*first, end as u64)),
            Ok(_) | Err(Damage { .. }) => return Ok(Left::Gap),
        }
    }
    Ok(whole.map_or(Left::Nothing, Left::Whole))
}

/// Reads a segment's records into `state`; returns where they end.
fn scan(bytes: &[u8], state: &mut Whole) -> Result<usize, Damage> {
    let mut at = frame::HEADER;
    while let Some(record) = frame::read(&bytes[at..], at as u64)? {
        let damaged = |what| Damage { at: at as u64, what };
        if record.sequence != state.next {
            return Err(damaged("the sequence"));
        }
        match record.kind {
            Kind::Admission => {
                let admission =
                    proto::Admission::decode(record.payload).map_err(|_| damaged("an admission"))?;
                state.open.insert(record.sequence, admission);
            }
            Kind::Settlement => {
                let settlement =
                    proto::Settlement::decode(record.payload).map_err(|_| damaged("a settlement"))?;
                state.open.remove(&settlement.admission);
            }
        }
        state.next += 1;
        at += record.length;
    }
    Ok(at)
}

#[cfg(test)]
pub(super) fn tests_segments(directory: &Path) -> Vec<u64> {
    segments(directory).expect("the directory can be read").into_iter().map(|(first, _)| first).collect()
}
