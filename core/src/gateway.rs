//! One gateway's side of the ledger protocol: what it holds, who waits, what it must say.
//!
//! Workers call [`Gateway::admit`] (lock-free) and, when it says short, [`Gateway::pause`]; one client
//! thread feeds [`Gateway::hear`] with what the ledger says and sends what [`Gateway::tick`] returns.
//! Nothing here sends, waits or reads a clock.

use crate::account::{AccountKey, Charge, LimitKey};
use crate::ids::{Epoch, UnixMs};
use crate::policy::Bounds;
use crate::protocol::{Answer, AskId, FromGateway, Hello, LogState, No, UsageRow, Welcome};
use crate::slice::{Reservation, Slice};
use std::sync::Arc;

/// What a gateway holds and owes; shared by all workers and the client thread.
#[derive(Debug)]
pub struct Gateway {}

/// What [`Gateway::admit`] found.
#[derive(Debug)]
pub enum Admission {
    /// Every account has given its reserve.
    Admitted(Reservation),
    /// At least one account is short; nothing was taken. Pause, then wait to be told.
    Short,
    /// A cached no applies: refuse at once.
    No(No),
    /// No bounds are known for the window of this limit at this time: the operator has been away
    /// longer than its windows reach. Refuse with `ledger_unavailable`.
    NoWindow(LimitKey),
}

/// How a pause ended. Taken once by the paused request's worker.
#[derive(Debug)]
pub enum Resumed {
    /// Go on with this.
    Admitted(Reservation),
    /// The ledger says no.
    No(No),
    /// The ledger did not answer in time: 503.
    Unanswered,
}

impl Gateway {
    /// A gateway that holds nothing yet.
    #[must_use]
    pub fn new(gateway: String, epoch: Epoch) -> Self {
        todo!()
    }

    /// This life of its log.
    pub fn epoch(&self) -> Epoch {
        todo!()
    }

    /// Worker: takes `reserve` from the current account of every limit in `limits`, or from none.
    pub fn admit(&self, limits: &[LimitKey], reserve: &Charge, now: UnixMs) -> Admission {
        todo!()
    }

    /// Worker: puts a request that was [`Admission::Short`] in the queue of each account that is short. The
    /// client thread must be woken after it. [`Gateway::wakes`] will name the id exactly once, unless the
    /// request is given up first.
    pub fn pause(&self, limits: &[LimitKey], reserve: &Charge, now: UnixMs) -> AskId {
        todo!()
    }

    /// Worker: what became of a paused request that was woken. `None`: it was given up already.
    pub fn resume(&self, id: AskId) -> Option<Resumed> {
        todo!()
    }

    /// Worker: the paused request is gone; what it was given joins the slices.
    pub fn give_up(&self, id: AskId) {
        todo!()
    }

    /// Client thread: the current bounds of a window specification.
    pub fn set_windows(&self, spec: &str, bounds: &[Bounds]) {
        todo!()
    }

    /// Client thread: the limits that the policy in force enforces; others' free parts are returned.
    pub fn set_limits(&self, limits: &[LimitKey]) {
        todo!()
    }

    /// Client thread: rows read from the log since the last call, in order of settlement.
    pub fn settled(&self, rows: Vec<UsageRow>) {
        todo!()
    }

    /// Client thread, on a new stream: what to say first. `sequence` is the last in the log.
    pub fn hello(&self, log: LogState, sequence: u64) -> Hello {
        todo!()
    }

    /// Client thread: the ledger's greeting.
    pub fn welcome(&self, welcome: &Welcome, now: UnixMs) {
        todo!()
    }

    /// Client thread: an answer. Requests that can go on are in [`Gateway::wakes`] after it.
    pub fn answer(&self, answer: &Answer, now: UnixMs) {
        todo!()
    }

    /// Client thread: the stream broke. Waiting requests go on waiting: a new stream may come in time.
    pub fn disconnected(&self) {
        todo!()
    }

    /// Client thread: what must be said now; call it after every event and at [`Gateway::next`].
    pub fn tick(&self, now: UnixMs) -> Vec<FromGateway> {
        todo!()
    }

    /// Client thread: the paused requests to wake (commit their schedulers). Each id comes once.
    pub fn wakes(&self) -> Vec<AskId> {
        todo!()
    }

    /// When to call [`Gateway::tick`] again at the latest.
    pub fn next(&self, now: UnixMs) -> UnixMs {
        todo!()
    }
}
