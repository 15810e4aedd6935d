//! The provider's bill: one line for each call that it served, by request id.
//!
//! A line is written (write(2)) before the usage that it bills leaves for the client, so that a
//! comparison made after the last answer misses nothing and a killed provider forgets nothing.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a billed call ended, as the provider saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Answered to the end.
    Completed,
    /// The client went away first.
    Disconnected,
    /// The provider broke off (`--truncate-rate`, `x-sim-truncate`).
    Truncated,
}

/// One call's line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `x-request-id` of the call.
    pub request_id: String,
    /// When it was billed, in Unix milliseconds.
    pub at_ms: i64,
    /// The model.
    pub model: String,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Those of the prompt that came from the cache.
    pub cached_tokens: u64,
    /// Output tokens of all choices, reasoning included.
    pub output_tokens: u64,
    /// Those of the output that were reasoning.
    pub reasoning_tokens: u64,
    /// What is asked for it, in nano-dollars.
    pub nano_usd: i64,
    /// How it ended.
    pub end: End,
}

/// The totals of a bill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Lines.
    pub calls: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Nano-dollars.
    pub nano_usd: i64,
}

impl Total {
    fn add(&mut self, line: &Line) {
        self.calls += 1;
        self.prompt_tokens += line.prompt_tokens;
        self.output_tokens += line.output_tokens;
        self.nano_usd = self.nano_usd.saturating_add(line.nano_usd);
    }
}

/// The bill that a running provider writes.
#[derive(Debug, Default)]
pub struct Bill {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<File>,
    lines: Vec<Line>,
    total: Total,
    /// Lines that are in the file alone.
    dropped: u64,
}

/// The most lines that are kept in memory for `GET /bill`; a file keeps all.
pub const KEPT_LINES: usize = 2_000_000;

impl Bill {
    /// A bill in memory, and in `path` where given: lines are appended to what stands there.
    ///
    /// # Errors
    /// When the file can't be opened for appending.
    pub fn open(path: Option<&Path>) -> std::io::Result<Self> {
        let file = path.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        Ok(Self { inner: Mutex::new(Inner { file, ..Inner::default() }) })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// When the file takes it not; the line is counted in memory all the same.
    pub fn record(&self, line: Line) -> std::io::Result<()> {
        let mut inner = self.lock();
        let written = match &mut inner.file {
            Some(file) => {
                let mut text = serde_json::to_vec(&line)?;
                text.push(b'\n');
                file.write_all(&text)
            }
            None => Ok(()),
        };
        inner.total.add(&line);
        if inner.lines.len() < KEPT_LINES {
            inner.lines.push(line);
        } else {
            inner.dropped += 1;
        }
        written
    }

    /// The lines in memory so far; all of them up to [`KEPT_LINES`].
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// The totals so far.
    #[must_use]
    pub fn total(&self) -> Total {
        self.lock().total
    }

    /// Totals and lines as JSON, for `GET /bill`.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Page<'a> {
            total: Total,
            lines_left_out: u64,
            lines: &'a [Line],
        }
        let inner = self.lock();
        let page = Page { total: inner.total, lines_left_out: inner.dropped, lines: &inner.lines };
        serde_json::to_vec(&page).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a bill's file. A last line without its end (the provider was killed in it) is left out.
///
/// # Errors
/// When the file can't be read, or a whole line is not a bill's.
pub fn read(path: &Path) -> std::io::Result<Vec<Line>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut lines = Vec::new();
    let mut text = String::new();
    while reader.read_line(&mut text)? > 0 && text.ends_with('\n') {
        lines.push(serde_json::from_str(&text)?);
        text.clear();
    }
    Ok(lines)
}

/// Nano-dollars by request id: attempts of one request add up.
#[must_use]
pub fn by_request(lines: &[Line]) -> HashMap<&str, i64> {
    let mut sums = HashMap::with_capacity(lines.len());
    for line in lines {
        *sums.entry(line.request_id.as_str()).or_insert(0) += line.nano_usd;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, nano_usd: i64) -> Line {
        Line {
            request_id: id.into(),
            at_ms: 0,
            model: "m".into(),
            prompt_tokens: 1,
            cached_tokens: 0,
            output_tokens: 2,
            reasoning_tokens: 0,
            nano_usd,
            end: End::Completed,
        }
    }

    #[test]
    fn a_torn_last_line_costs_no_other_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bill.jsonl");
        let bill = Bill::open(Some(&path)).unwrap();
        bill.record(line("a", 5)).unwrap();
        bill.record(line("a", 6)).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"request_id\":\"b\"").unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines, bill.lines());
        assert_eq!(by_request(&lines).get("a"), Some(&11));
        assert_eq!(bill.total().nano_usd, 11);
    }
}
