//! The stripper: takes out of a stream what our `include_usage` put in.
//!
//! OpenAI then adds `"usage":null` to every chunk and one event with empty `choices` and the usage; both
//! go, and every other byte stays, so that a client sees what it would have seen. (A server that writes
//! `"usage":null` unasked loses it too: the two can't be told apart.) Only the line that is not complete
//! yet is held back.

use super::openai::Chunk;
use super::sse::{Line, Lines, data, find_usage};

/// Takes the usage that the client did not ask for out of its stream.
#[derive(Debug, Default)]
pub struct Stripper {
    lines: Lines,
    /// The event before was taken out; the empty line that ends it goes with it.
    after_event: bool,
}

impl Stripper {
    /// What of `chunk`, and of what was held back, goes to the client: appended to `out`.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        let Self { lines, after_event } = self;
        lines.push(chunk, |line| strip(&line, after_event, out));
    }

    /// Whether nothing is held back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What is left at the stream's end: appended to `out`.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let Self { lines, after_event } = self;
        lines.finish(|line| strip(&line, after_event, out));
    }
}

fn strip(line: &Line<'_>, after_event: &mut bool, out: &mut Vec<u8>) {
    let line = match line {
        Line::Whole(line) => *line,
        Line::Part(part) => {
            *after_event = false;
            out.extend_from_slice(part);
            return;
        }
    };
    if std::mem::take(after_event) && matches!(line, b"\n" | b"\r\n") {
        return;
    }
    match data(line).filter(|data| find_usage(data).is_some()).and_then(added) {
        None => out.extend_from_slice(line),
        Some(Added::Event) => *after_event = true,
        Some(Added::Member(member)) => {
            let start = member.as_ptr().addr() - line.as_ptr().addr();
            out.extend_from_slice(&line[..start]);
            out.extend_from_slice(&line[start + member.len()..]);
        }
    }
}

/// What `include_usage` adds.
enum Added<'a> {
    /// A whole event.
    Event,
    /// A member of an event, with one comma.
    Member(&'a [u8]),
}

/// What of an event's data is there because usage was asked for.
fn added(data: &[u8]) -> Option<Added<'_>> {
    const NULL: &[u8] = b",\"usage\":null";
    // What the last brace follows is a member of the event itself, so this needs no reading.
    if let Some(before) = data.strip_suffix(b"}")
        && before.ends_with(NULL)
        && find_usage(data) == Some(before.len() + 1 - NULL.len())
    {
        return Some(Added::Member(&before[before.len() - NULL.len()..]));
    }
    let chunk = Chunk::read(data)?;
    if chunk.is_usage_event() {
        return Some(Added::Event);
    }
    let null = chunk.usage().filter(|value| *value == "null")?;
    let end = null.as_ptr().addr() - data.as_ptr().addr() + null.len();
    let key = data[..end - null.len()].trim_ascii_end().strip_suffix(b":")?.trim_ascii_end();
    // A key written with escapes is nobody's; it stays.
    let before = key.strip_suffix(b"\"usage\"")?;
    let trimmed = before.trim_ascii_end();
    if trimmed.ends_with(b",") {
        return Some(Added::Member(&data[trimmed.len() - 1..end]));
    }
    let after = data[end..].trim_ascii_start();
    let comma = usize::from(after.starts_with(b","));
    Some(Added::Member(&data[before.len()..data.len() - after.len() + comma]))
}
