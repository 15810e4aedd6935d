//! Letting a call go: into the log first, then on its way.

use super::owed::Owed;
use super::response::InFlight;
use super::{Captured, Filter, Next, State};
use crate::abi::{Body, Headers, Stream};
use plimsoll_core::account::{AccountKey, LimitKey};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::protocol::Decision;
use plimsoll_core::refusal::Refusal;
use plimsoll_core::session::{Call, Passage};
use plimsoll_core::slice::Reservation;
use plimsoll_core::snapshot::Snapshot;
use plimsoll_wire::record::{Admission, Record};
use std::fmt::Write;

impl Filter {
    /// The reserve is taken: writes the admission, directs the request, and lets it go.
    pub(super) fn leave(
        &self,
        stream: &mut Stream<'_>,
        call: Box<Call>,
        mut owed: Owed,
        head: Box<Captured>,
        paused_at: UnixMs,
        now: UnixMs,
    ) -> Next {
        // While an epoch ends there is no log for it: where nothing enforces it goes on, unaccounted for.
        if owed.is_counted() {
            let record = admission(&call, owed.reservation(), &head, paused_at, now);
            let written = self.shared.log.admit(&record);
            drop(record);
            match written {
                Ok(sequence) => {
                    self.shared.log_written(Ok(()));
                    owed.admitted(sequence);
                }
                Err(error) => {
                    self.shared.log_written(Err(&error));
                    if owed.reservation().is_some() {
                        drop(owed);
                        let unwritable = Refusal::LogUnwritable;
                        return self.refuse_call(stream, unwritable, &call, &head, None, paused_at);
                    }
                    // The same; it is counted as a failure of the log.
                }
            }
        }
        self.shared.metrics.sent.inc();
        if call.lowered.is_some() {
            self.tell_lowered(&call, &head, paused_at, now);
        }
        self.shared.metrics.unbudgeted.inc_by(u64::from(call.limits.is_empty() && call.observed.is_empty()));
        direct(stream, &call.passage, &head);
        if head.accepts_encoding {
            // What is compressed can't be metered.
            stream.remove_header(Headers::Request, b"accept-encoding");
        }
        if let Some(timeout) = call.timeout_ms {
            let timeout = timeout.to_string();
            stream.set_header(Headers::Request, "x-envoy-upstream-rq-timeout-ms", timeout.as_bytes());
        }
        self.put(State::InFlight(Box::new(InFlight::new(call, owed, head))));
        Next::Continue
    }
}

impl Filter {
    /// A call whose client asked for more than it may have is sent all the same: that is a decision to explain.
    fn tell_lowered(&self, call: &Call, head: &Captured, paused_at: UnixMs, now: UnixMs) {
        self.shared.metrics.lowered.inc();
        self.shared.decisions.offer(|| Decision {
            request_id: head.request_id().to_owned(),
            account: None,
            // Its accounts stand in its row; here they would count as waiting.
            accounts: Vec::new(),
            stage: String::new(),
            reason: "max_tokens_lowered".to_owned(),
            reserve: call.reserve,
            paused_at,
            answered_at: now,
        });
    }
}

/// What the log holds of the call.
fn admission<'a>(
    call: &'a Call,
    reservation: Option<&'a Reservation>,
    head: &'a Captured,
    paused_at: UnixMs,
    now: UnixMs,
) -> impl Record {
    Admission {
        request_id: head.request_id(),
        attempt: 0,
        paused_at,
        admitted_at: now,
        accounts: reservation.into_iter().flat_map(Reservation::texts),
        observed: &call.observed,
        caller: &call.caller,
        route: call.route(),
        tier: call.tier(),
        backend: &call.backend.name,
        model: &call.model,
        reserve: call.reserve,
        price_version: call.price_version,
    }
}

/// The budgets that a call is charged to, each once: `finance/all, finance/invoices`.
pub(super) fn budgets(limits: &[LimitKey]) -> String {
    let mut text = String::new();
    let mut last = None;
    for limit in limits {
        if last != Some(&limit.budget) {
            if !text.is_empty() {
                text.push_str(", ");
            }
            // Writing to a String does not fail.
            let _ = write!(text, "{}", limit.budget);
        }
        last = Some(&limit.budget);
    }
    text
}

/// Directs the request to its cluster.
pub(super) fn direct(stream: &mut Stream<'_>, passage: &Passage, head: &Captured) {
    let Passage { cluster, authority, path } = passage;
    stream.set_header(Headers::Request, "x-plimsoll-cluster", cluster.as_bytes());
    stream.set_header(Headers::Request, ":authority", authority.as_bytes());
    if head.path() != path {
        stream.set_header(Headers::Request, ":path", path.as_bytes());
    }
    stream.clear_route_cache();
}

/// Replaces the request's body; `last` is the part that ends it.
pub(super) fn replace_body(stream: &mut Stream<'_>, last: Body, bytes: &[u8], has_length: bool) {
    if last == Body::Received {
        stream.drain_body(Body::Buffered);
    }
    stream.replace_body(last, bytes);
    if has_length {
        stream.set_header(Headers::Request, "content-length", bytes.len().to_string().as_bytes());
    }
}

/// The accounts that a call would have been charged to.
pub(super) fn accounts_at(snapshot: &Snapshot, limits: &[LimitKey], now: UnixMs) -> Vec<AccountKey> {
    let start = |spec: &str| {
        let (_, bounds) = snapshot.windows().find(|(known, _)| *known == spec)?;
        bounds.iter().find(|bounds| bounds.start <= now && now < bounds.end).map(|bounds| bounds.start)
    };
    limits
        .iter()
        .filter_map(|limit| {
            let start = start(&limit.window)?;
            Some(AccountKey { limit: limit.clone(), start, key: String::new() })
        })
        .collect()
}
