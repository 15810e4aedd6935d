//! One request, from its head and body to what must be reserved, sent and settled.
//!
//! Pure: the filter supplies bytes and carries out what comes back. Slices stand in
//! [`crate::slice`]; reading usage out of answers in [`crate::meter`].

use crate::account::{Charge, LimitKey};
use crate::ids::ObjectName;
use crate::policy::{Dialect, Enforcement};
use crate::price::Rates;
use crate::protocol::Caller;
use crate::refusal::Refusal;
use crate::snapshot::Snapshot;

/// What a request's headers say, read by the shell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// Envoy's request id.
    pub request_id: &'a str,
    /// Which attempt of the request this is, from 0.
    pub attempt: u32,
    /// The path with its query, `/v1/chat/completions`.
    pub path: &'a str,
    /// The caller's namespace; absent: anonymous.
    pub namespace: Option<&'a str>,
    /// `x-plimsoll-feature`.
    pub feature: Option<&'a str>,
    /// `x-plimsoll-user`; else the body's own field.
    pub user: Option<&'a str>,
    /// `x-plimsoll-customer`.
    pub customer: Option<&'a str>,
    /// `x-plimsoll-session`.
    pub session: Option<&'a str>,
    /// The client's `accept-encoding` is set.
    pub accepts_encoding: bool,
}

/// What to do with a request whose body is complete.
#[derive(Debug)]
pub enum Verdict {
    /// Reserve (where `limits` is not empty) and send.
    Send(Box<Call>),
    /// Answer this.
    Refuse(Box<Refusal>),
    /// Not ours (say `GET /v1/models`, or an unknown model while observing): send to the default
    /// backend unchanged and unmetered. `None`: there is none.
    Pass(Option<Passage>),
}

/// Where an unmetered request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Envoy's cluster.
    pub cluster: String,
    /// The `:authority` to send.
    pub authority: String,
    /// The `:path` to send.
    pub path: String,
}

/// A call that is routed and priced, not yet reserved.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where it goes.
    pub passage: Passage,
    /// How the client and the backend speak.
    pub dialect: Dialect,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Enforce: something that enforces matched. Observe: nothing may be refused or altered.
    pub enforcement: Enforcement,
    /// The limits of every enforcing budget that matches; the accounts to reserve in.
    pub limits: Vec<LimitKey>,
    /// The observing budgets that match.
    pub observed: Vec<ObjectName>,
    /// What it may take at worst.
    pub reserve: Charge,
    /// The rates that settle it; absent: unpriced, charged 0.
    pub rates: Option<Rates>,
    /// The changes to the body, ascending and disjoint; empty: send it as it came.
    pub edits: Vec<Edit>,
    /// The client did not ask for usage in its stream, so the extra event is ours to remove.
    pub strip_usage: bool,
    /// How long the call may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Who called.
    pub caller: Caller,
    /// The `ModelRoute`'s name; empty for a backend's model under its own name.
    pub route: String,
    /// The tier's name.
    pub tier: String,
    /// The backend.
    pub backend: ObjectName,
    /// The model as sent upstream.
    pub model: String,
}

/// Replaces the bytes `start..end` of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// First byte replaced.
    pub start: usize,
    /// First byte kept after it; equal to `start` for an insertion.
    pub end: usize,
    /// What stands there instead.
    pub text: String,
}
