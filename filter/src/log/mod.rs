//! The admission log: what a gateway has let out, and what it cost (LEDGER.md, "Records").
//!
//! An admission is written before its call leaves, its settlement after it. One write(2) each, no fsync:
//! the page cache outlives a killed process, and the boot id in every segment tells when it did not. The
//! log is the queue to the ledger too: [`tail::Tail`] reads it, so that memory stays bounded however long
//! the operator is away. Segments go when the ledger has stored everything in them.

mod frame;
mod open;
mod probe;
mod tail;
#[cfg(test)]
mod tests;

use frame::{Header, Kind};
use plimsoll_core::ids::Epoch;
use plimsoll_core::protocol::LogState;
use plimsoll_wire::proto;
use plimsoll_wire::record::Record;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use open::open;
pub use tail::{Tail, TailError};

/// Bytes after which a new segment begins.
const SEGMENT: u64 = 16 << 20;

/// Why a log is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory can't be used.
    #[error("logDirectory {path}: {error}; the gateway needs a directory of its own that it can write")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Another process has it.
    #[error("logDirectory {0} is used by another process; give each gateway a directory of its own")]
    Locked(PathBuf),
    /// It could not be written.
    #[error("the admission log in {path} can't be written: {error}")]
    Write {
        /// Where.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Bytes that nobody wrote so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is damaged at byte {at}")]
pub struct Damage {
    /// Where in the segment.
    pub at: u64,
    /// What.
    pub what: &'static str,
}

/// The log, as workers see it.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    boot: String,
    segment_bytes: u64,
    writer: Mutex<Writer>,
    /// Settlements that could not be written yet.
    delayed: AtomicU64,
    /// Holds the lock of the directory.
    _lock: File,
}

#[derive(Debug)]
struct Writer {
    epoch: Epoch,
    file: File,
    /// By their first sequence, in order; the last is written to. With their length.
    segments: VecDeque<(u64, u64)>,
    /// The next record's.
    next: u64,
    /// Bytes after the end that a failed write may have left.
    torn: bool,
    /// Settlements that could not be written, as encoded; as many as calls were in flight at most, since no call
    /// is admitted before they are written.
    waiting: VecDeque<Vec<u8>>,
}

/// How the log was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it proves.
    pub state: LogState,
    /// Admissions that were open, and settled now at their reserve.
    pub replayed: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Writer> {
        // What the writer says of the file is true at every step.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: io::Error) -> LogError {
        LogError::Write { path: self.directory.clone(), error }
    }

    /// This life of the log.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// The last sequence.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.lock().next - 1
    }

    /// Settlements that wait for the log to be writable again.
    #[must_use]
    pub fn delayed(&self) -> u64 {
        self.delayed.load(Relaxed)
    }

    /// Segments held.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.lock().segments.len()
    }

    /// Writes an admission. Only after it may the call leave.
    ///
    /// # Errors
    /// [`LogError::Write`]: the call must not leave, its settlement could be forgotten.
    pub fn admit(&self, admission: &impl Record) -> Result<u64, LogError> {
        let mut bytes = frame::unsealed(admission);
        let mut writer = self.lock();
        // What waits goes first: a call admitted before it could spend what the replay would charge again.
        self.flush(&mut writer)
            .and_then(|()| self.append(&mut writer, Kind::Admission, &mut bytes))
            .map_err(|error| self.failed(error))
    }

    /// Writes a settlement, or keeps it until that is possible; `Err` tells of the delay only.
    ///
    /// # Errors
    /// [`LogError::Write`]: it waits; nothing needs to be done.
    pub fn settle(&self, settlement: &proto::Settlement) -> Result<(), LogError> {
        let mut bytes = frame::unsealed(settlement);
        let mut writer = self.lock();
        let written =
            self.flush(&mut writer).and_then(|()| self.append(&mut writer, Kind::Settlement, &mut bytes));
        match written {
            Ok(_) => Ok(()),
            Err(error) => {
                writer.waiting.push_back(bytes);
                self.note_delayed(&writer);
                Err(self.failed(error))
            }
        }
    }

    /// Writes the settlements that wait, if that is possible now.
    ///
    /// # Errors
    /// [`LogError::Write`]: some still wait.
    pub fn retry(&self) -> Result<(), LogError> {
        if self.delayed() == 0 {
            return Ok(());
        }
        self.flush(&mut self.lock()).map_err(|error| self.failed(error))
    }

    fn note_delayed(&self, writer: &Writer) {
        self.delayed.store(u64::try_from(writer.waiting.len()).unwrap_or(u64::MAX), Relaxed);
    }

    fn flush(&self, writer: &mut Writer) -> io::Result<()> {
        while let Some(mut bytes) = writer.waiting.pop_front() {
            let written = self.append(writer, Kind::Settlement, &mut bytes);
            if written.is_err() {
                writer.waiting.push_front(bytes);
            }
            self.note_delayed(writer);
            written?;
        }
        Ok(())
    }

    fn append(&self, writer: &mut Writer, kind: Kind, bytes: &mut [u8]) -> io::Result<u64> {
        if bytes.len() > frame::FRAME + frame::MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a record is too large"));
        }
        let mut length = writer.segments.back().map_or(0, |segment| segment.1);
        if writer.torn {
            // `torn` is unset only when the file ends where it should.
            writer.file.set_len(length)?;
            writer.torn = false;
        }
        // A segment is named by its first record, so it has one before the next begins.
        if length >= self.segment_bytes && length > frame::HEADER as u64 {
            let first = writer.next;
            let header = Header { epoch: writer.epoch, boot: self.boot.clone(), first };
            writer.file = create(&self.directory, &header)?;
            writer.segments.push_back((first, frame::HEADER as u64));
            length = frame::HEADER as u64;
        }
        let sequence = writer.next;
        frame::seal(bytes, kind, sequence);
        if let Err(error) = writer.file.write_all(bytes) {
            writer.torn = true;
            if writer.file.set_len(length).is_ok() {
                writer.torn = false;
            }
            return Err(error);
        }
        writer.next += 1;
        if let Some(segment) = writer.segments.back_mut() {
            segment.1 = length + bytes.len() as u64;
        }
        Ok(sequence)
    }

    /// How far the segment that begins with `first` may be read, and where the next one begins.
    fn extent(&self, first: u64) -> Option<(u64, Option<u64>)> {
        let writer = self.lock();
        let at = writer.segments.iter().position(|segment| segment.0 == first)?;
        Some((writer.segments[at].1, writer.segments.get(at + 1).map(|segment| segment.0)))
    }

    fn first(&self) -> u64 {
        self.lock().segments.front().map_or(0, |segment| segment.0)
    }

    /// Deletes the oldest segment, if it is the one that begins with `first` and another is written to.
    fn forget(&self, first: u64) {
        let mut writer = self.lock();
        if writer.segments.len() > 1 && writer.segments.front().is_some_and(|segment| segment.0 == first) {
            // A file that can't be removed stays a valid, older part of the log: the next start reads it again.
            if std::fs::remove_file(path(&self.directory, first)).is_ok() {
                writer.segments.pop_front();
            }
        }
    }

    /// Begins a new life: nothing of the old one is kept. No call may be in flight.
    ///
    /// # Errors
    /// [`LogError::Write`]: the old one goes on.
    pub fn restart(&self, epoch: Epoch) -> Result<(), LogError> {
        let mut writer = self.lock();
        open::discard(&self.directory).map_err(|error| self.failed(error))?;
        let header = Header { epoch, boot: self.boot.clone(), first: 1 };
        let file = create(&self.directory, &header).map_err(|error| self.failed(error))?;
        let segments = VecDeque::from([(1, frame::HEADER as u64)]);
        *writer = Writer { epoch, file, segments, next: 1, torn: false, waiting: VecDeque::new() };
        self.note_delayed(&writer);
        Ok(())
    }
}

fn path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.log"))
}

/// A new segment with its header.
fn create(directory: &Path, header: &Header) -> io::Result<File> {
    let path = path(directory, header.first);
    // A crash may have left one whose header is torn: it holds nothing.
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    if let Err(error) = file.write_all(&header.encode()) {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    // Appends must follow the end, wherever a failed write is cut off.
    drop(file);
    OpenOptions::new().append(true).open(&path)
}
