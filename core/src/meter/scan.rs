//! A scanner of one JSON object in chunks: the value of its last top-level `usage` member.
//!
//! Exact where a search is not: a `usage` in a string, or in an object within, is not the answer's.
//! It keeps the value alone, never the object, and skips strings (the bulk of an answer) by `memchr2`.

/// A usage object is some hundred bytes; what is longer is none.
const MOST_VALUE: usize = 16 * 1024;

/// Reads one JSON object as it comes.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// At depth 1: a colon has come and no comma since.
    in_value: bool,
    /// The key being read, or the last one, at depth 1; cut where it can't be `usage` any more.
    key: Vec<u8>,
    in_key: bool,
    /// Taking down the value of `usage`.
    capturing: bool,
    capture: Vec<u8>,
    /// The last whole value of `usage`.
    value: Option<Vec<u8>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum State {
    #[default]
    Before,
    Within,
    Closed,
    /// Not an object, or something stands after it.
    Broken,
}

impl Scanner {
    /// The next bytes.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let mut at = 0;
        while at < chunk.len() {
            let from = at;
            // The colon that begins a value is not of it.
            let capturing = self.capturing;
            if self.in_string {
                at = self.string(chunk, from);
            } else {
                at += 1;
                // The byte that ends a captured value is not of it.
                if self.structure(chunk[from]) {
                    self.end_value();
                    continue;
                }
            }
            if capturing {
                self.take_down(&chunk[from..at]);
            }
        }
    }

    /// The value of the last top-level `usage` so far.
    pub(super) fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Whether the object has closed, and nothing but space came after it.
    pub(super) fn closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Goes on in a string; where it ends or the chunk does.
    fn string(&mut self, chunk: &[u8], from: usize) -> usize {
        let mut at = from;
        while at < chunk.len() {
            if self.escaped {
                self.escaped = false;
                at += 1;
                continue;
            }
            match memchr::memchr2(b'"', b'\\', &chunk[at..]) {
                None => at = chunk.len(),
                Some(skip) => {
                    at += skip + 1;
                    if chunk[at - 1] == b'"' {
                        self.in_string = false;
                        self.read_key(&chunk[from..at - 1]);
                        self.in_key = false;
                        return at;
                    }
                    self.escaped = true;
                }
            }
        }
        self.read_key(&chunk[from..at]);
        at
    }

    fn read_key(&mut self, part: &[u8]) {
        const MOST_KEY: usize = b"usage".len() + 1;
        if self.in_key {
            let room = MOST_KEY.saturating_sub(self.key.len());
            self.key.extend_from_slice(&part[..part.len().min(room)]);
        }
    }

    /// A byte outside strings. Whether it ends a top-level member.
    fn structure(&mut self, byte: u8) -> bool {
        match (self.state, byte) {
            (_, b' ' | b'\t' | b'\r' | b'\n') | (State::Broken, _) => return false,
            (State::Before, b'{') => self.state = State::Within,
            (State::Before | State::Closed, _) => {
                self.state = State::Broken;
                return false;
            }
            (State::Within, _) => {}
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 && !self.in_value {
                    self.in_key = true;
                    self.key.clear();
                }
            }
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.state = State::Closed;
                    return true;
                }
            }
            b':' if self.depth == 1 => {
                self.in_value = true;
                self.capturing = self.key == b"usage";
                self.capture.clear();
            }
            b',' if self.depth == 1 => return true,
            _ => {}
        }
        false
    }

    fn end_value(&mut self) {
        self.in_value = false;
        if std::mem::take(&mut self.capturing) {
            let value =
                if self.capture.len() > MOST_VALUE { Vec::new() } else { std::mem::take(&mut self.capture) };
            self.value = Some(value);
        }
    }

    fn take_down(&mut self, part: &[u8]) {
        if self.capture.len() <= MOST_VALUE {
            let room = MOST_VALUE + 1 - self.capture.len();
            self.capture.extend_from_slice(&part[..part.len().min(room)]);
        }
    }
}
