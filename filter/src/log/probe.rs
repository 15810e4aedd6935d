//! Whether the log can be written, asked by the client while nobody writes to it: a gateway that is not ready
//! gets no call whose admission would tell.

use super::frame::{self, Header, Kind};
use super::{Log, LogError, Writer, create};
use std::io::{self, Write};

/// Bytes that must find room: more than most records have.
const ROOM: usize = 4 << 10;

impl Log {
    /// Tries to write, and takes back what it wrote.
    ///
    /// # Errors
    /// [`LogError::Write`]: an admission would fail too.
    pub fn probe(&self) -> Result<(), LogError> {
        let mut writer = self.lock();
        self.flush(&mut writer)
            .and_then(|()| self.write_and_cut(&mut writer))
            .map_err(|error| self.failed(error))
    }

    fn write_and_cut(&self, writer: &mut Writer) -> io::Result<()> {
        let mut length = writer.segments.back().map_or(0, |segment| segment.1);
        if length >= self.segment_bytes && length > frame::HEADER as u64 {
            // The next record needs a new segment, so that is what must be possible.
            let first = writer.next;
            let header = Header { epoch: writer.epoch, boot: self.boot.clone(), first };
            writer.file = create(&self.directory, &header)?;
            writer.torn = false;
            length = frame::HEADER as u64;
            writer.segments.push_back((first, length));
        }
        if writer.torn {
            writer.file.set_len(length)?;
        }
        writer.torn = true;
        let written = writer.file.write_all(&unfinished(writer.next));
        writer.file.set_len(length)?;
        writer.torn = false;
        written
    }
}

/// A record without its last byte: if the process dies before it is cut off, the next start takes it for one that
/// was never finished, which is the truth.
fn unfinished(sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; frame::FRAME + ROOM];
    frame::seal(&mut bytes, Kind::Settlement, sequence);
    bytes.pop();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::ids::Epoch;
    use plimsoll_core::protocol::LogState;
    use plimsoll_wire::proto;

    #[test]
    fn a_process_killed_in_the_middle_of_a_probe_leaves_a_whole_log() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = super::super::open(dir.path(), "boot", Epoch(1)).unwrap();
        log.admit(&proto::Admission::default()).unwrap();
        log.probe().unwrap();
        log.admit(&proto::Admission::default()).unwrap();
        drop(log);
        let segment = super::super::path(dir.path(), 1);
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes.extend(unfinished(3));
        std::fs::write(&segment, bytes).unwrap();
        let (log, found) = super::super::open(dir.path(), "boot", Epoch(2)).unwrap();
        assert_eq!((found.state, found.replayed, log.epoch()), (LogState::Intact, 2, Epoch(1)));
    }
}
