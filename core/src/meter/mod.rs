//! The meter: usage out of answers as they pass, whole or in chunks cut anywhere.
//!
//! What counts as usage is a dialect's affair (one file each); this file chooses. Memory is bounded
//! whatever an answer's size, and nothing here decides what is charged: see [`crate::settle`].

mod json;
mod openai;
mod scan;
mod sse;
mod strip;

use crate::policy::Dialect;
use crate::usage::Usage;

pub use strip::Stripper;

/// What an answer said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Measured {
    /// The usage that holds: the last one that was not null. Absent: none was said, or not credibly.
    pub usage: Option<Usage>,
    /// The answer came to its own end: a JSON object that closed; a stream's `[DONE]`, or the usage
    /// event that stands at its end.
    pub complete: bool,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Meter(Reader);

#[derive(Debug)]
enum Reader {
    Json(json::JsonMeter),
    Sse(sse::SseMeter),
}

/// How an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON object.
    Json,
    /// Server-sent events.
    Sse,
}

impl Framing {
    /// By the answer's `content-type`; whether a stream was asked for decides where it says nothing.
    #[must_use]
    pub fn of(content_type: Option<&str>, stream: bool) -> Self {
        let said = content_type.and_then(|value| value.split(';').next()).map(str::trim);
        match said {
            Some(value) if value.eq_ignore_ascii_case("text/event-stream") => Self::Sse,
            Some(value) if value.eq_ignore_ascii_case("application/json") => Self::Json,
            _ if stream => Self::Sse,
            _ => Self::Json,
        }
    }
}

impl Meter {
    /// For an answer in `dialect`, framed as `framing`.
    #[must_use]
    pub fn new(dialect: Dialect, framing: Framing) -> Self {
        let Dialect::OpenAI = dialect;
        Self(match framing {
            Framing::Json => Reader::Json(json::JsonMeter::default()),
            Framing::Sse => Reader::Sse(sse::SseMeter::default()),
        })
    }

    /// The next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        match &mut self.0 {
            Reader::Json(meter) => meter.push(chunk),
            Reader::Sse(meter) => meter.push(chunk),
        }
    }

    /// What was measured; call it once no more comes, whatever the reason.
    #[must_use]
    pub fn finish(self) -> Measured {
        match self.0 {
            Reader::Json(meter) => meter.finish(),
            Reader::Sse(meter) => meter.finish(),
        }
    }
}
