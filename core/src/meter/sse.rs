//! Server-sent events: lines across chunks, and the usage in them.
//!
//! A data line is taken for an event of its own, as every OpenAI-style server writes them. Nothing is
//! parsed that holds no `"usage"`, and nothing that says only that there is none yet.

use super::Measured;
use super::openai::{Chunk, usage};
use crate::usage::Usage;
use memchr::memmem::Finder;
use std::sync::LazyLock;

/// The longest line that is kept until its end comes. What is longer is part of an answer, not usage.
const MOST_LINE: usize = 256 * 1024;

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    carry: Vec<u8>,
    /// In a line that is too long to keep.
    long: bool,
}

/// A line, or a part of one.
pub(super) enum Line<'a> {
    /// With its end, which is absent from a stream's last line.
    Whole(&'a [u8]),
    /// A part of a line that is too long to keep.
    Part(&'a [u8]),
}

impl Lines {
    /// Cuts `chunk`, after what was carried over.
    pub(super) fn push(&mut self, mut chunk: &[u8], mut each: impl FnMut(Line<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at(end + 1);
            chunk = rest;
            if std::mem::take(&mut self.long) {
                each(Line::Part(line));
            } else if self.carry.is_empty() {
                each(Line::Whole(line));
            } else {
                self.carry.extend_from_slice(line);
                each(Line::Whole(&self.carry));
                self.carry.clear();
            }
        }
        if self.long {
            each(Line::Part(chunk));
        } else if self.carry.len() + chunk.len() > MOST_LINE {
            each(Line::Part(&self.carry));
            each(Line::Part(chunk));
            self.carry = Vec::new();
            self.long = true;
        } else {
            self.carry.extend_from_slice(chunk);
        }
    }

    /// Whether nothing is carried over.
    pub(super) fn is_empty(&self) -> bool {
        self.carry.is_empty()
    }

    /// The last line, if the stream did not end it.
    pub(super) fn finish(&mut self, each: impl FnOnce(Line<'_>)) {
        let last = std::mem::take(&mut self.carry);
        if !last.is_empty() {
            each(Line::Whole(&last));
        }
    }
}

/// The data of a data line, without the space that may stand before it and the line's end.
pub(super) fn data(line: &[u8]) -> Option<&[u8]> {
    let data = line.strip_prefix(b"data:")?;
    let data = data.strip_suffix(b"\n").unwrap_or(data);
    let data = data.strip_suffix(b"\r").unwrap_or(data);
    Some(data.strip_prefix(b" ").unwrap_or(data))
}

/// Where the first `"usage"` stands, be it one or not.
pub(super) fn find_usage(data: &[u8]) -> Option<usize> {
    // Made once: to prepare a search costs more than to search one event.
    static KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));
    KEY.find(data)
}

/// Reads one stream.
#[derive(Debug, Default)]
pub(super) struct SseMeter {
    lines: Lines,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    usage: Option<Usage>,
    done: bool,
}

impl SseMeter {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let Self { lines, seen } = self;
        lines.push(chunk, |line| seen.line(&line));
    }

    pub(super) fn finish(mut self) -> Measured {
        let Self { lines, seen } = &mut self;
        lines.finish(|line| seen.line(&line));
        Measured { usage: self.seen.usage, complete: self.seen.done }
    }
}

impl Seen {
    fn line(&mut self, line: &Line<'_>) {
        let Line::Whole(line) = line else { return };
        let Some(data) = data(line) else { return };
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        let Some(at) = find_usage(data) else { return };
        // Every chunk of a stream with include_usage says `"usage":null`, but the last.
        let rest = &data[at + b"\"usage\"".len()..];
        if rest.starts_with(b":null") && find_usage(rest).is_none() {
            return;
        }
        let Some(chunk) = Chunk::read(data) else { return };
        let Some(value) = chunk.usage() else { return };
        self.usage = usage(value.as_bytes()).after(self.usage);
        self.done |= chunk.is_usage_event();
    }
}
