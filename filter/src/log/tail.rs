//! The tail: reads the log behind its writer, and joins each settlement with its admission.
//!
//! Rows come in order of settlement. What is held in memory is bounded by the calls in flight at the
//! place that is read, not by how far behind that is.

use super::frame::{self, Kind};
use super::{Damage, Log, path};
use plimsoll_core::protocol::UsageRow;
use plimsoll_wire::{Malformed, proto};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Why the tail can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The file can't be read now; nothing is lost, the next read tries again.
    #[error("the admission log can't be read: {0}")]
    Read(#[from] io::Error),
    /// The file was changed under our feet.
    #[error("the admission log {0}")]
    Damaged(#[from] Damage),
    /// A record means nothing.
    #[error("the admission log holds a record that can't be used: {0}")]
    Malformed(#[from] Malformed),
}

/// Reads one log from its oldest record on.
#[derive(Debug)]
pub struct Tail {
    log: Arc<Log>,
    segment: u64,
    file: Option<File>,
    at: u64,
    buffer: Vec<u8>,
    /// Admissions without a settlement so far.
    open: BTreeMap<u64, proto::Admission>,
    /// Segments that were begun: first sequence, and the last settlement that a row of it has.
    needed: VecDeque<(u64, u64)>,
}

impl Tail {
    /// A tail at the oldest record.
    #[must_use]
    pub fn new(log: Arc<Log>) -> Self {
        let segment = log.first();
        let needed = VecDeque::from([(segment, 0)]);
        Self {
            log,
            segment,
            file: None,
            at: frame::HEADER as u64,
            buffer: Vec::new(),
            open: BTreeMap::new(),
            needed,
        }
    }

    /// Calls in flight, as far as was read.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether everything that was written has been read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.log.extent(self.segment).is_some_and(|(length, next)| next.is_none() && self.at >= length)
    }

    /// The next rows, at most `most`, in order of settlement; fewer when there are no more now.
    ///
    /// # Errors
    /// [`TailError::Read`]: try again later. Otherwise the log was damaged while it was in use.
    pub fn read(&mut self, most: usize) -> Result<Vec<UsageRow>, TailError> {
        let mut rows = Vec::new();
        while rows.len() < most {
            let Some((length, next)) = self.log.extent(self.segment) else { break };
            if self.at >= length {
                let Some(next) = next else { break };
                (self.segment, self.at, self.file) = (next, frame::HEADER as u64, None);
                self.needed.push_back((next, 0));
                continue;
            }
            match self.read_chunk(length) {
                Ok(()) => self.take(most, &mut rows)?,
                // Rows that were read will not be read again; the next read meets the error.
                Err(TailError::Read(_)) if !rows.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(rows)
    }

    fn read_chunk(&mut self, length: u64) -> Result<(), TailError> {
        self.fill(length).map_err(|error| {
            // Opened anew at the next read.
            self.file = None;
            match error.kind() {
                // No later read will find what is gone.
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
                    Damage { at: self.at, what: "a segment's file" }.into()
                }
                _ => TailError::Read(error),
            }
        })
    }

    fn fill(&mut self, length: u64) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(File::open(path(&self.log.directory, self.segment))?),
        };
        let left = usize::try_from(length - self.at).unwrap_or(usize::MAX);
        // A record that is larger than a chunk is read whole: see `frame::MOST`.
        let mut head = [0; 4];
        file.read_exact_at(&mut head, self.at)?;
        let record =
            frame::FRAME + usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX).min(frame::MOST);
        self.buffer.resize(left.min(CHUNK.max(record)), 0);
        file.read_exact_at(&mut self.buffer, self.at)
    }

    fn take(&mut self, most: usize, rows: &mut Vec<UsageRow>) -> Result<(), TailError> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut done = 0;
        let mut result = Ok(());
        while rows.len() < most {
            match frame::read(&buffer[done..], self.at) {
                Ok(Some(record)) => {
                    done += record.length;
                    self.at += record.length as u64;
                    if let Err(error) = self.join(&record, rows) {
                        result = Err(error);
                        break;
                    }
                }
                // The rest of it stands in the next chunk.
                Ok(None) if done > 0 => break,
                Ok(None) => {
                    result = Err(Damage { at: self.at, what: "a record's end" }.into());
                    break;
                }
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
            if done == buffer.len() {
                break;
            }
        }
        self.buffer = buffer;
        result
    }

    fn join(&mut self, record: &frame::Framed<'_>, rows: &mut Vec<UsageRow>) -> Result<(), TailError> {
        let undecodable = |_| Damage { at: self.at, what: "a record's content" };
        match record.kind {
            Kind::Admission => {
                let admission = proto::Admission::decode(record.payload).map_err(undecodable)?;
                self.open
                    .insert(record.sequence, proto::Admission { sequence: record.sequence, ..admission });
            }
            Kind::Settlement => {
                let settlement = proto::Settlement::decode(record.payload).map_err(undecodable)?;
                // Its admission stood in a segment that was deleted, so the ledger has stored the row.
                let Some(admission) = self.open.remove(&settlement.admission) else { return Ok(()) };
                // Both segments that hold a part of the row stay until it is stored.
                for part in [admission.sequence, record.sequence] {
                    let holding = self.needed.iter_mut().rev().find(|(first, _)| *first <= part);
                    if let Some((_, needed)) = holding {
                        *needed = (*needed).max(record.sequence);
                    }
                }
                let settlement = proto::Settlement { sequence: record.sequence, ..settlement };
                rows.push(
                    proto::UsageRow { admission: Some(admission), settlement: Some(settlement) }
                        .try_into()?,
                );
            }
        }
        Ok(())
    }

    /// The ledger has stored every row up to the settlement `durable`: segments that hold nothing else go.
    pub fn forget(&mut self, durable: u64) {
        while let [(first, needed), (next, _), ..] = self.needed.make_contiguous() {
            let is_open = self.open.keys().next().is_some_and(|sequence| sequence < next);
            if is_open || *needed > durable {
                break;
            }
            self.log.forget(*first);
            self.needed.pop_front();
        }
    }
}
