//! An answer: one JSON object, or a stream of events at their pace.
//!
//! The call is billed exactly once, by [`Open`]: when its usage is about to leave, or when the body is
//! dropped before that because the client went away.

use super::ask::{Ask, Fault};
use super::{Disconnect, Provider, UsageSaid};
use crate::bill::{End, Line};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, Sleep};

/// Text of 4 bytes a token.
const FILLER: &str =
    "Load no deeper than the line: what a hull may carry is painted on its side, for all to see. ";

fn filler(into: &mut String, tokens: u64) {
    let mut bytes = usize::try_from(tokens.saturating_mul(4)).unwrap_or(usize::MAX);
    while bytes > 0 {
        let part = &FILLER[..bytes.min(FILLER.len())];
        into.push_str(part);
        bytes -= part.len();
    }
}

pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A call that is not billed yet.
pub(super) struct Open {
    provider: Arc<Provider>,
    ask: Arc<Ask>,
    /// Output tokens of all choices that left.
    sent: u64,
    billed: bool,
}

impl Open {
    pub(super) fn new(provider: Arc<Provider>, ask: Arc<Ask>) -> Self {
        Self { provider, ask, sent: 0, billed: false }
    }

    fn whole(&self) -> u64 {
        self.ask.output_tokens * self.ask.choices
    }

    fn bill(&mut self, end: End, output_tokens: u64) {
        if std::mem::replace(&mut self.billed, true) {
            return;
        }
        let ask = &self.ask;
        let nano_usd = self.provider.settings.prices.bill(
            &ask.model,
            ask.prompt_tokens,
            ask.cached_tokens,
            output_tokens,
        );
        let line = Line {
            request_id: ask.request_id.clone(),
            at_ms: unix_ms(),
            model: ask.model.clone(),
            prompt_tokens: ask.prompt_tokens,
            cached_tokens: ask.cached_tokens,
            output_tokens,
            reasoning_tokens: (ask.reasoning_tokens * ask.choices).min(output_tokens),
            nano_usd,
            end,
        };
        if let Err(error) = self.provider.bill.record(line) {
            eprintln!("the bill's file takes no more lines: {error}; GET /bill still has them");
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let output = match self.provider.settings.disconnect {
            Disconnect::ToTheEnd => self.whole(),
            Disconnect::WhatWasSent => self.sent,
        };
        self.bill(End::Disconnected, output);
    }
}

/// The whole answer as one JSON object; the call is billed.
pub(super) fn json(mut open: Open) -> AnswerBody {
    let ask = open.ask.clone();
    let text_tokens = ask.output_tokens - ask.reasoning_tokens;
    let mut out = String::with_capacity(usize::try_from(text_tokens * ask.choices * 4).unwrap_or(0) + 1024);
    head(&mut out, &ask, "chat.completion");
    out.push_str(",\"choices\":[");
    let finish = if ask.cut { "length" } else { "stop" };
    for index in 0..ask.choices {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"index\":{index},\"message\":{{\"role\":\"assistant\",\"content\":\"");
        filler(&mut out, text_tokens);
        let _ = write!(out, "\",\"refusal\":null}},\"logprobs\":null,\"finish_reason\":\"{finish}\"}}");
    }
    out.push(']');
    if ask.usage != UsageSaid::Missing {
        out.push_str(",\"usage\":");
        usage(&mut out, &ask);
    }
    out.push_str(",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_sim\"}");
    if ask.fault == Fault::Truncate {
        let half = open.whole() / 2;
        open.bill(End::Truncated, half);
        out.truncate(out.len() / 2);
        return AnswerBody::Broken(Some(Bytes::from(out)), BreakOff::default());
    }
    let whole = open.whole();
    open.bill(End::Completed, whole);
    AnswerBody::Whole(Some(Bytes::from(out)))
}

fn head(out: &mut String, ask: &Ask, object: &str) {
    // The model came out of JSON and may hold anything.
    let model = serde_json::to_string(&ask.model).unwrap_or_default();
    let id = serde_json::to_string(&format!("chatcmpl-{}", ask.request_id)).unwrap_or_default();
    let created = unix_ms() / 1000;
    let _ = write!(out, "{{\"id\":{id},\"object\":\"{object}\",\"created\":{created},\"model\":{model}");
}

fn usage(out: &mut String, ask: &Ask) {
    let output = ask.output_tokens * ask.choices;
    let (output, reasoning) = match ask.usage {
        UsageSaid::Wrong => (output / 2, 0),
        UsageSaid::Right | UsageSaid::Missing => (output, ask.reasoning_tokens * ask.choices),
    };
    let Ask { prompt_tokens: prompt, cached_tokens: cached, .. } = ask;
    let total = prompt + output;
    let _ = write!(
        out,
        "{{\"prompt_tokens\":{prompt},\"completion_tokens\":{output},\"total_tokens\":{total},\
         \"prompt_tokens_details\":{{\"cached_tokens\":{cached},\"audio_tokens\":0}},\
         \"completion_tokens_details\":{{\"reasoning_tokens\":{reasoning},\"audio_tokens\":0,\
         \"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}}}"
    );
}

/// What stands next in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The role of each choice.
    Role,
    /// Text from this token on, of every choice.
    Text(u64),
    /// The reason of the end.
    Finish,
    /// The event that holds the usage.
    Usage,
    /// `[DONE]`.
    Done,
    /// Nothing more.
    End,
}

/// A stream of events.
pub(super) struct Events {
    open: Open,
    /// What every event starts with, up to `"choices":`.
    head: String,
    next: Next,
    start: Instant,
    sleep: Pin<Box<Sleep>>,
    broken: Option<BreakOff>,
}

impl Events {
    pub(super) fn new(open: Open) -> Self {
        let mut head_text = String::from("data: ");
        head(&mut head_text, &open.ask, "chat.completion.chunk");
        head_text.push_str(",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_sim\",\"choices\":");
        let start = Instant::now();
        let first = open.ask.first_token;
        Self {
            open,
            head: head_text,
            next: Next::Role,
            start,
            sleep: Box::pin(tokio::time::sleep_until(start + first)),
            broken: None,
        }
    }

    fn due(&self) -> Instant {
        let ask = &self.open.ask;
        let at = self.start + ask.first_token;
        let tokens = match self.next {
            Next::Role => 0,
            // An event leaves when its last token is there.
            Next::Text(from) => (from + ask.tokens_per_event).min(ask.output_tokens),
            Next::Finish | Next::Usage | Next::Done | Next::End => ask.output_tokens,
        };
        at + ask.per_token * u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// The next event's text. Events without pause between them go in one frame, as from a socket.
    fn event(&mut self, out: &mut String) {
        let ask = self.open.ask.clone();
        let null = if ask.include_usage { ",\"usage\":null" } else { "" };
        let each = |out: &mut String, choice: &dyn Fn(&mut String)| {
            for index in 0..ask.choices {
                out.push_str(&self.head);
                let _ = write!(out, "[{{\"index\":{index},");
                choice(out);
                let _ = write!(out, "}}]{null}}}\n\n");
            }
        };
        match self.next {
            Next::Role => {
                each(out, &|out| {
                    out.push_str(
                        "\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":null",
                    );
                });
                self.next = if ask.output_tokens == 0 { Next::Finish } else { Next::Text(0) };
            }
            Next::Text(from) => {
                let to = (from + ask.tokens_per_event).min(ask.output_tokens);
                // Reasoning comes first and shows no text; its events are sent all the same.
                let shown = to.saturating_sub(ask.reasoning_tokens.max(from));
                each(out, &|out| {
                    out.push_str("\"delta\":{\"content\":\"");
                    filler(out, shown);
                    out.push_str("\"},\"logprobs\":null,\"finish_reason\":null");
                });
                self.open.sent += (to - from) * ask.choices;
                if ask.fault == Fault::Truncate && to * 2 >= ask.output_tokens {
                    self.broken = Some(BreakOff::default());
                    let sent = self.open.sent;
                    self.open.bill(End::Truncated, sent);
                }
                self.next = if to == ask.output_tokens { Next::Finish } else { Next::Text(to) };
            }
            Next::Finish => {
                let finish = if ask.cut { "length" } else { "stop" };
                each(out, &|out| {
                    let _ = write!(out, "\"delta\":{{}},\"logprobs\":null,\"finish_reason\":\"{finish}\"");
                });
                let whole = self.open.whole();
                self.open.bill(End::Completed, whole);
                let said = ask.include_usage && ask.usage != UsageSaid::Missing;
                self.next = if said { Next::Usage } else { Next::Done };
            }
            Next::Usage => {
                out.push_str(&self.head);
                out.push_str("[],\"usage\":");
                usage(out, &ask);
                out.push_str("}\n\n");
                self.next = Next::Done;
            }
            Next::Done => {
                out.push_str("data: [DONE]\n\n");
                self.next = Next::End;
            }
            Next::End => {}
        }
    }
}

/// The body of any answer.
pub(super) enum AnswerBody {
    /// All at once.
    Whole(Option<Bytes>),
    /// A part, then the connection breaks.
    Broken(Option<Bytes>, BreakOff),
    /// A stream.
    Events(Box<Events>),
}

/// Breaks off one poll later than asked to: hyper flushes what it holds only while a body is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BreakOff {
    flushed: bool,
}

impl BreakOff {
    fn poll(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if std::mem::replace(&mut self.flushed, true) {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The connection is to be broken off.
#[derive(Debug, thiserror::Error)]
#[error("broken off, as was asked for")]
pub(super) struct BrokenOff;

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Broken(bytes, off) => match bytes.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => off.poll(context),
            },
            Self::Events(events) => {
                if let Some(off) = &mut events.broken {
                    return off.poll(context);
                }
                if events.next == Next::End {
                    return Poll::Ready(None);
                }
                let due = events.due();
                if due > Instant::now() {
                    events.sleep.as_mut().reset(due);
                    if events.sleep.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                }
                let mut out = String::new();
                events.event(&mut out);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(Some(bytes)) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::Whole(None) => SizeHint::with_exact(0),
            Self::Broken(..) | Self::Events(_) => SizeHint::default(),
        }
    }
}
