//! One JSON answer: its top-level `usage`, whatever the chunks.
//!
//! Small answers are kept and searched from their end, where usage stands; a find counts only when what
//! follows closes the object, which proves that it stands at the top. All else goes through the exact
//! scanner, and is not kept.

use super::Measured;
use super::openai::{Said, usage};
use super::scan::Scanner;
use serde_json::value::RawValue;

/// Answers up to this size are kept whole.
const MOST_KEPT: usize = 64 * 1024;

/// Reads one JSON answer.
#[derive(Debug, Default)]
pub(super) struct JsonMeter {
    kept: Vec<u8>,
    scanner: Option<Scanner>,
}

impl JsonMeter {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        if let Some(scanner) = &mut self.scanner {
            scanner.push(chunk);
            return;
        }
        if self.kept.len() + chunk.len() <= MOST_KEPT {
            self.kept.extend_from_slice(chunk);
            return;
        }
        let mut scanner = Scanner::default();
        scanner.push(&std::mem::take(&mut self.kept));
        scanner.push(chunk);
        self.scanner = Some(scanner);
    }

    pub(super) fn finish(self) -> Measured {
        let scanner = match self.scanner {
            Some(scanner) => scanner,
            None => {
                if let Some(said) = from_end(&self.kept) {
                    return Measured { usage: said.after(None), complete: true };
                }
                let mut scanner = Scanner::default();
                scanner.push(&self.kept);
                scanner
            }
        };
        let usage = scanner.value().and_then(|value| usage(value).after(None));
        Measured { usage, complete: scanner.closed() }
    }
}

/// What the last top-level `usage` of `answer` says, if a look from its end can prove that it is that.
fn from_end(answer: &[u8]) -> Option<Said> {
    const KEY: &[u8] = b"\"usage\"";
    let answer = answer.trim_ascii();
    let at = memchr::memmem::rfind(answer, KEY)?;
    // In valid JSON these bytes are a whole string, unless an escape makes the first quote part of another.
    if at == 0 || answer[at - 1] == b'\\' || answer.first() != Some(&b'{') {
        return None;
    }
    let value = answer[at + KEY.len()..].trim_ascii_start().strip_prefix(b":")?;
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<&RawValue>();
    let found = values.next()?.ok()?;
    let rest = &value[values.byte_offset()..];
    closes(rest).then(|| usage(found.get().as_bytes()))
}

/// Whether `rest`, which follows a member's value, closes exactly one object with its last byte.
fn closes(rest: &[u8]) -> bool {
    let mut depth = 1_u32;
    let mut at = 0;
    while let Some(byte) = rest.get(at) {
        at += 1;
        match byte {
            b'"' => loop {
                let Some(skip) = memchr::memchr2(b'"', b'\\', rest.get(at..).unwrap_or(&[])) else {
                    return false;
                };
                at += skip + 1;
                if rest[at - 1] == b'"' {
                    break;
                }
                at += 1;
            },
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at == rest.len();
                }
            }
            _ => {}
        }
    }
    false
}
