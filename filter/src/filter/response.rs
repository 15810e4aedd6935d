//! The answer: metered as it passes, never held; settled once, however it ends.

use super::owed::Owed;
use super::send::budgets;
use super::{Captured, Filter, LocalReply, State, respond};
use crate::abi::{Body, Headers, Stream};
use plimsoll_core::meter::{Framing, Measured, Meter, Stripper};
use plimsoll_core::policy::Enforcement;
use plimsoll_core::session::Call;
use plimsoll_core::settle::{Ended, settle};

/// A call that was sent and has not settled.
#[derive(Debug)]
pub(super) struct InFlight {
    call: Box<Call>,
    owed: Owed,
    head: Box<Captured>,
    status: u16,
    meter: Option<Meter>,
    stripper: Option<Stripper>,
}

impl InFlight {
    pub fn new(call: Box<Call>, owed: Owed, head: Box<Captured>) -> Self {
        Self { call, owed, head, status: 0, meter: None, stripper: None }
    }
}

impl Filter {
    /// The answer's headers.
    pub fn response_headers(&self, stream: &mut Stream<'_>, end: bool) {
        let Some(mut sent) = self.take_sent() else { return };
        let mut content_type = None;
        stream.each_header(Headers::Response, |name, value| match name {
            b":status" => {
                sent.status = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            }
            b"content-type" => content_type = std::str::from_utf8(value).ok(),
            _ => {}
        });
        let framing = Framing::of(content_type, sent.call.stream);
        let answered = (200..300).contains(&sent.status);
        if answered {
            sent.meter = Some(Meter::new(sent.call.dialect, framing));
            if sent.call.strip_usage && framing == Framing::Sse && !end {
                sent.stripper = Some(Stripper::default());
                // What is taken out makes it shorter.
                stream.remove_header(Headers::Response, b"content-length");
            }
        }
        if sent.call.enforcement == Enforcement::Enforce {
            respond(stream, "x-plimsoll-request-id", sent.head.request_id());
            respond(stream, "x-plimsoll-backend", &sent.call.backend.name.to_string());
            respond(stream, "x-plimsoll-budgets", &budgets(&sent.call.limits));
            respond(stream, "x-plimsoll-price-version", &format!("{:016x}", sent.call.price_version.0));
        }
        if let Some(most) = sent.call.lowered {
            respond(stream, "x-plimsoll-max-tokens", &most.to_string());
        }
        if end {
            let ended = self.answered(&sent);
            return self.settle(*sent, Some(ended));
        }
        self.put(State::InFlight(sent));
    }

    fn answered(&self, sent: &InFlight) -> Ended {
        match self.local_reply.get() {
            // A time-out or a reset: the provider may have done the work.
            Some(LocalReply::Unknown) => Ended::Unknown,
            Some(LocalReply::NoConnection) => Ended::NoConnection,
            None => Ended::Answered(sent.status),
        }
    }

    /// A part of the answer's body.
    pub fn response_body(&self, stream: &mut Stream<'_>, end: bool) {
        let Some(mut sent) = self.take_sent() else { return };
        let InFlight { meter, stripper, .. } = &mut *sent;
        match (meter, stripper) {
            (Some(meter), Some(stripper)) => {
                let size = stream.body_size(Body::Response);
                let held = !stripper.is_empty();
                let mut kept = Vec::with_capacity(size);
                stream.each_piece(Body::Response, |piece| {
                    meter.push(piece);
                    stripper.push(piece, &mut kept);
                });
                if end {
                    stripper.finish(&mut kept);
                }
                // It only takes out, or holds back: as many bytes are the same bytes.
                if held || kept.len() != size {
                    stream.replace_body(Body::Response, &kept);
                }
            }
            (Some(meter), None) => stream.each_piece(Body::Response, |piece| meter.push(piece)),
            // A failure is not metered, and what is not metered has nothing of ours in it.
            (None, _) => {}
        }
        if end {
            let ended = self.answered(&sent);
            return self.settle(*sent, Some(ended));
        }
        self.put(State::InFlight(sent));
    }

    /// The answer's trailers: its body has ended before them.
    pub fn response_trailers(&self, _stream: &mut Stream<'_>) {
        if let Some(sent) = self.take_sent() {
            let ended = self.answered(&sent);
            self.settle(*sent, Some(ended));
        }
    }

    /// Settles; `None`: the stream was given up.
    pub(super) fn settle(&self, sent: InFlight, ended: Option<Ended>) {
        let InFlight { call, owed, meter, .. } = sent;
        let ended = ended.unwrap_or(match self.local_reply.get() {
            Some(LocalReply::NoConnection) => Ended::NoConnection,
            Some(LocalReply::Unknown) | None => Ended::Unknown,
        });
        let measured = meter.map_or_else(Measured::default, Meter::finish);
        owed.settle(&settle(&call, ended, &measured));
    }

    /// A call in flight, and nothing else.
    fn take_sent(&self) -> Option<Box<InFlight>> {
        match self.take() {
            State::InFlight(sent) => Some(sent),
            other => {
                self.put(other);
                None
            }
        }
    }
}
