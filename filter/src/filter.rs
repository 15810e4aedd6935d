//! One request in Envoy: from its headers to its settlement.
//!
//! Envoy may call a hook from inside a callback, so no borrow of the state is held while one runs that
//! answers or continues. What is decided stands in `plimsoll_core::session`; what is shared in
//! [`crate::process`].

mod head;
mod owed;
mod response;
mod send;

use crate::abi::{Body, Headers, Stream};
use crate::process::{Configured, Counted};
use head::Captured;
use owed::{Owed, Pause};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::policy::{Dialect, Enforcement};
use plimsoll_core::protocol::{Decision, No};
use plimsoll_core::refusal::Refusal;
use plimsoll_core::session::{self, Call, Verdict};
use plimsoll_core::slice::Reservation;
use plimsoll_core::snapshot::Snapshot;
use response::InFlight;
use send::accounts_at;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The largest body that is read.
pub const MOST_BODY: usize = 16 << 20;
/// Bodies up to this need no larger buffer than Envoy's default of 1 MiB.
const SMALL_BODY: u64 = 512 << 10;

/// What a headers hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadersStatus {
    /// Go on.
    Continue,
    /// Wait.
    Stop,
}

/// What a body hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyStatus {
    /// Go on.
    Continue,
    /// Keep the body, wait.
    Stop,
}

/// One request.
#[derive(Debug)]
pub struct Filter {
    shared: Configured,
    state: RefCell<State>,
    /// What Envoy said of an answer of its own.
    local_reply: Cell<Option<LocalReply>>,
}

/// Why Envoy answered in the provider's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LocalReply {
    /// The provider was not reached.
    NoConnection,
    /// It may have been.
    Unknown,
}

#[derive(Debug)]
enum State {
    /// Nothing seen yet.
    New,
    /// The body is coming.
    Reading(Box<Captured>),
    /// Short: waits for the ledger.
    Paused(Box<Paused>),
    /// Sent, metered, not settled.
    InFlight(Box<InFlight>),
    /// Nothing more to do.
    Done,
}

#[derive(Debug)]
struct Paused {
    pause: Pause,
    call: Box<Call>,
    head: Box<Captured>,
    since: UnixMs,
}

/// What became of a call's reserve.
enum Taken {
    /// It is taken, or nothing enforces.
    All(Owed),
    /// The epoch ends.
    Closing,
    /// Some account is short. Counted until it has paused.
    Short(Counted),
    /// A no applies.
    No(No),
    /// A limit is not known here.
    NoWindow,
}

/// What follows the body's end.
enum Next {
    Continue,
    Wait,
    Refused,
}

impl Filter {
    /// For a new stream.
    #[must_use]
    pub fn new(shared: Configured) -> Self {
        Self { shared, state: RefCell::new(State::New), local_reply: Cell::new(None) }
    }

    fn take(&self) -> State {
        self.state
            .try_borrow_mut()
            .map_or(State::Done, |mut state| std::mem::replace(&mut *state, State::Done))
    }

    fn put(&self, state: State) {
        if let Ok(mut held) = self.state.try_borrow_mut() {
            *held = state;
        }
    }

    /// The request's headers.
    pub fn request_headers(&self, stream: &mut Stream<'_>, end: bool) -> HeadersStatus {
        let observe = self.observes();
        let head = Box::new(Captured::read(stream, observe));
        if end {
            return match self.decide(stream, head, None) {
                Next::Continue => HeadersStatus::Continue,
                Next::Wait | Next::Refused => HeadersStatus::Stop,
            };
        }
        match head.content_length {
            Some(length) if length > MOST_BODY as u64 => {
                return match self.large(stream, &head) {
                    Next::Continue => HeadersStatus::Continue,
                    Next::Wait | Next::Refused => HeadersStatus::Stop,
                };
            }
            Some(length) if length <= SMALL_BODY => {}
            // What comes at once, and makes it too large, must fit too.
            Some(_) | None => stream.set_buffer_limit((MOST_BODY + (4 << 20)) as u64),
        }
        self.put(State::Reading(head));
        HeadersStatus::Stop
    }

    fn observes(&self) -> bool {
        self.shared
            .snapshot
            .load()
            .installation()
            .is_some_and(|installation| installation.mode == Enforcement::Observe)
    }

    /// A body that is too large to be read is refused; where nothing may be refused it passes as it comes,
    /// unmetered.
    fn large(&self, stream: &mut Stream<'_>, head: &Captured) -> Next {
        let snapshot = self.shared.snapshot.load();
        // Without its body a call is decided as any other that can't be understood.
        let verdict =
            self.shared.hmac_key.get().map(|key| session::decide(&snapshot, &head.head(), &[], key));
        if let Some(Verdict::Pass(passage)) = verdict {
            self.shared.metrics.passed.inc();
            send::direct(stream, &passage, head);
            return Next::Continue;
        }
        let refusal = Refusal::TooLarge { limit: MOST_BODY as u64 };
        self.refuse(stream, &refusal, head, &Refused::default());
        Next::Refused
    }

    /// A request whose body is coming, and nothing else.
    fn take_reading(&self) -> Option<Box<Captured>> {
        match self.take() {
            State::Reading(head) => Some(head),
            other => {
                self.put(other);
                None
            }
        }
    }

    /// A part of the request's body.
    pub fn request_body(&self, stream: &mut Stream<'_>, end: bool) -> BodyStatus {
        let Some(head) = self.take_reading() else { return BodyStatus::Continue };
        if !end {
            if stream.body_size(Body::Buffered) + stream.body_size(Body::Received) > MOST_BODY {
                return match self.large(stream, &head) {
                    Next::Continue => BodyStatus::Continue,
                    Next::Wait | Next::Refused => BodyStatus::Stop,
                };
            }
            self.put(State::Reading(head));
            return BodyStatus::Stop;
        }
        match self.decide(stream, head, Some(Body::Received)) {
            Next::Continue => BodyStatus::Continue,
            Next::Wait | Next::Refused => BodyStatus::Stop,
        }
    }

    /// The request's trailers: its body has ended before them.
    pub fn request_trailers(&self, stream: &mut Stream<'_>) -> HeadersStatus {
        let Some(head) = self.take_reading() else { return HeadersStatus::Continue };
        match self.decide(stream, head, Some(Body::Buffered)) {
            Next::Continue => HeadersStatus::Continue,
            Next::Wait | Next::Refused => HeadersStatus::Stop,
        }
    }

    /// The request is whole. `last`: where a changed body goes.
    fn decide(&self, stream: &mut Stream<'_>, head: Box<Captured>, last: Option<Body>) -> Next {
        let mut snapshot = self.shared.snapshot.load();
        loop {
            let (verdict, edited) = {
                let body = if last.is_some() { whole(stream) } else { Cow::Borrowed(&[][..]) };
                if body.len() > MOST_BODY {
                    drop(body);
                    return self.large(stream, &head);
                }
                let verdict = match self.shared.hmac_key.get() {
                    Some(key) => session::decide(&snapshot, &head.head(), &body, key),
                    None => Verdict::Refuse(Box::new(Refusal::NotReady)),
                };
                let edited = match &verdict {
                    Verdict::Send(call) if !call.edits.is_empty() => {
                        Some(session::apply_edits(&body, &call.edits))
                    }
                    Verdict::Send(_) | Verdict::Refuse(_) | Verdict::Pass(_) => None,
                };
                (verdict, edited)
            };
            let call = match verdict {
                Verdict::Send(call) => call,
                Verdict::Pass(passage) => {
                    self.shared.metrics.passed.inc();
                    send::direct(stream, &passage, &head);
                    return Next::Continue;
                }
                Verdict::Refuse(refusal) => {
                    self.refuse(stream, &refusal, &head, &Refused::default());
                    return Next::Refused;
                }
            };
            let now = self.shared.clock.now();
            let taken = self.admit(&call, now);
            if matches!(taken, Taken::NoWindow) && self.is_replaced(&snapshot) {
                // The limit may be gone with the policy that came between the two.
                snapshot = self.shared.snapshot.load();
                continue;
            }
            // The body is changed before a pause: after it all of it stands in Envoy's buffer.
            if let (Some(edited), Some(last)) = (edited, last) {
                send::replace_body(stream, last, &edited, head.content_length.is_some());
            }
            return self.go_on(stream, call, head, &snapshot, taken, now, now);
        }
    }

    /// Takes the reserve.
    fn admit(&self, call: &Call, now: UnixMs) -> Taken {
        use plimsoll_core::gateway::Admission;
        let counted = self.shared.count();
        if call.limits.is_empty() {
            return Taken::All(Owed::new(&self.shared, counted, None, call.reserve));
        }
        let Some(counted) = counted else { return Taken::Closing };
        match self.shared.gateway.admit(&call.limits, &call.reserve, now) {
            Admission::Admitted(reservation) => {
                Taken::All(Owed::new(&self.shared, Some(counted), Some(reservation), call.reserve))
            }
            Admission::Short => Taken::Short(counted),
            Admission::No(no) => Taken::No(no),
            Admission::NoWindow(_) => Taken::NoWindow,
        }
    }

    /// Sends, pauses or refuses the call. `since`: when it was first short.
    #[allow(clippy::too_many_arguments, reason = "all of one call, and two instants")]
    fn go_on(
        &self,
        stream: &mut Stream<'_>,
        call: Box<Call>,
        head: Box<Captured>,
        snapshot: &Arc<Snapshot>,
        taken: Taken,
        since: UnixMs,
        now: UnixMs,
    ) -> Next {
        match taken {
            Taken::All(owed) => self.leave(stream, call, owed, head, since, now),
            Taken::Short(counted) => {
                self.shared.metrics.paused.inc();
                let scheduler = stream.scheduler();
                let gateway = &self.shared.gateway;
                let id = self
                    .shared
                    .waiters
                    .enter(scheduler, || gateway.pause(&call.limits, &call.reserve, since, now));
                let pause = Pause::new(&self.shared, id);
                // It holds nothing of the epoch while it waits.
                drop(counted);
                self.put(State::Paused(Box::new(Paused { pause, call, head, since })));
                self.shared.wake.notify_one();
                Next::Wait
            }
            Taken::No(no) => {
                let refusal = Refusal::from_no(&no, snapshot);
                self.refuse_call(stream, refusal, &call, &head, Some(&no), since)
            }
            Taken::NoWindow | Taken::Closing => {
                self.refuse_call(stream, Refusal::LedgerUnavailable, &call, &head, None, since)
            }
        }
    }

    /// The client thread woke this stream.
    pub fn scheduled(&self, mut stream: Stream<'_>, event: u64) {
        use plimsoll_core::gateway::Resumed;
        let paused = match self.take() {
            State::Paused(paused) if paused.pause.id.0 == event => paused,
            // Woken twice, or for what is over.
            other => return self.put(other),
        };
        let counted = self.shared.count();
        let Some(resumed) = self.shared.gateway.resume(paused.pause.id) else {
            // What it was given went with its epoch: it waits on.
            return self.put(State::Paused(paused));
        };
        let Paused { pause, call, head, since } = *paused;
        drop(pause);
        let snapshot = self.shared.snapshot.load_full();
        let next = match resumed {
            Resumed::Admitted(reservation) => {
                self.resume(&mut stream, call, head, reservation, counted, since)
            }
            Resumed::No(no) => {
                let refusal = Refusal::from_no(&no, &snapshot);
                self.refuse_call(&mut stream, refusal, &call, &head, Some(&no), since)
            }
            Resumed::Unanswered => {
                self.refuse_call(&mut stream, Refusal::LedgerUnavailable, &call, &head, None, since)
            }
        };
        if let Next::Continue = next {
            stream.continue_decoding();
        }
    }

    /// A paused call was given its reserve: it goes, charged to what is in force now.
    fn resume(
        &self,
        stream: &mut Stream<'_>,
        mut call: Box<Call>,
        head: Box<Captured>,
        reservation: Reservation,
        counted: Option<Counted>,
        since: UnixMs,
    ) -> Next {
        let mut owed = Some(Owed::new(&self.shared, counted, Some(reservation), call.reserve));
        loop {
            let snapshot = self.shared.snapshot.load_full();
            if let Err(refusal) = call.match_again(&snapshot) {
                drop(owed);
                return self.refuse_call(stream, refusal, &call, &head, None, since);
            }
            let now = self.shared.clock.now();
            if let Some(owed) = owed.take_if(|owed| owed.covers(&call.limits)) {
                if owed.is_counted() {
                    return self.leave(stream, call, owed, head, since, now);
                }
                drop(owed);
                let unavailable = Refusal::LedgerUnavailable;
                return self.refuse_call(stream, unavailable, &call, &head, None, since);
            }
            // The policy changed while it waited. What it holds is free again.
            owed = None;
            let taken = self.admit(&call, now);
            if matches!(taken, Taken::NoWindow) && self.is_replaced(&snapshot) {
                continue;
            }
            return self.go_on(stream, call, head, &snapshot, taken, since, now);
        }
    }

    /// Whether a newer policy than `snapshot` is in force.
    fn is_replaced(&self, snapshot: &Arc<Snapshot>) -> bool {
        !Arc::ptr_eq(&self.shared.snapshot.load(), snapshot)
    }

    /// Envoy answers by itself.
    pub fn local_reply(&self, details: &[u8]) {
        let reached = |what: &[u8]| memchr::memmem::find(details, what).is_none();
        let no_connection = !reached(b"connection_failure")
            || !reached(b"connection_timeout")
            || !reached(b"{overflow")
            || [&b"no_healthy_upstream"[..], b"cluster_not_found", b"route_not_found", b"maintenance_mode"]
                .iter()
                .any(|start| details.starts_with(start));
        self.local_reply.set(Some(if no_connection {
            LocalReply::NoConnection
        } else {
            LocalReply::Unknown
        }));
    }

    fn refuse_call(
        &self,
        stream: &mut Stream<'_>,
        refusal: Refusal,
        call: &Call,
        head: &Captured,
        no: Option<&No>,
        paused_at: UnixMs,
    ) -> Next {
        let now = self.shared.clock.now();
        let refused = Refused {
            account: no.map(|no| no.account.clone()),
            accounts: accounts_at(&self.shared.snapshot.load(), &call.limits, now),
            reserve: call.reserve,
            paused_at: Some(paused_at),
        };
        self.refuse(stream, &refusal, head, &refused);
        Next::Refused
    }

    fn refuse(&self, stream: &mut Stream<'_>, refusal: &Refusal, head: &Captured, refused: &Refused) {
        let now = self.shared.clock.now();
        let code = refusal.code();
        self.shared.count_refusal(code);
        let dropped = self.shared.decisions.push(Decision {
            request_id: head.request_id().to_owned(),
            account: refused.account.clone(),
            accounts: refused.accounts.clone(),
            stage: if matches!(refusal, Refusal::Exhausted(_)) { "Block".to_owned() } else { String::new() },
            reason: code.to_owned(),
            reserve: refused.reserve,
            paused_at: refused.paused_at.unwrap_or(now),
            answered_at: now,
        });
        self.shared.metrics.decisions_dropped.inc_by(dropped);
        let rendered = refusal.render(Dialect::OpenAI, head.request_id());
        let mut headers: Vec<(&str, &[u8])> =
            rendered.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        headers.push(("x-plimsoll-request-id", head.request_id().as_bytes()));
        self.put(State::Done);
        stream.send_response(
            rendered.status,
            &headers,
            rendered.body.as_bytes(),
            &format!("plimsoll_{code}"),
        );
    }

    /// The stream is over, for whatever reason. Called at least once.
    pub fn end(&self) {
        match self.take() {
            State::InFlight(in_flight) => self.settle(*in_flight, None),
            // A pause is given up where it is dropped.
            State::Paused(_) | State::New | State::Reading(_) | State::Done => {}
        }
    }
}

/// What a decision record says beside the refusal.
#[derive(Default)]
struct Refused {
    account: Option<plimsoll_core::account::AccountKey>,
    accounts: Vec<plimsoll_core::account::AccountKey>,
    reserve: plimsoll_core::account::Charge,
    paused_at: Option<UnixMs>,
}

/// The whole body: borrowed where it stands in one piece.
fn whole<'s>(stream: &'s Stream<'_>) -> Cow<'s, [u8]> {
    let mut first: Option<&[u8]> = None;
    let mut joined: Vec<u8> = Vec::new();
    for part in [Body::Buffered, Body::Received] {
        stream.each_piece(part, |piece| match first {
            None if joined.is_empty() => first = Some(piece),
            Some(one) => {
                let size = stream.body_size(Body::Buffered) + stream.body_size(Body::Received);
                joined.reserve_exact(size);
                joined.extend_from_slice(one);
                joined.extend_from_slice(piece);
                first = None;
            }
            None => joined.extend_from_slice(piece),
        });
    }
    match first {
        Some(one) => Cow::Borrowed(one),
        None => Cow::Owned(joined),
    }
}

/// A header that is taken from what clients send.
const OURS: &str = "x-plimsoll-";

/// Sets a response header.
fn respond(stream: &mut Stream<'_>, name: &str, value: &str) {
    stream.set_header(Headers::Response, name, value.as_bytes());
}
