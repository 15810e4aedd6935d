//! What a stream owes until it ends: each is paid when it is dropped, so that a hook that panics loses nothing.
//!
//! A call that is in the log settles at its reserve, one that is not gives its reserve back, a pause is
//! given up. The usual ends stand in [`super::response`] and [`super`].

use crate::process::{Configured, Counted};
use plimsoll_core::account::{Charge, LimitKey};
use plimsoll_core::protocol::{AskId, Outcome};
use plimsoll_core::settle::Settled;
use plimsoll_core::slice::Reservation;
use plimsoll_core::usage::Usage;
use plimsoll_wire::proto;

/// What a call that may leave, or has left, owes to slices, log and count.
#[derive(Debug)]
pub(super) struct Owed {
    shared: Configured,
    reserve: Charge,
    /// Absent where nothing enforces.
    reservation: Option<Reservation>,
    /// Its admission's sequence; absent where it is not in the log.
    sequence: Option<u64>,
    /// Absent while an epoch ends: then it is in no log.
    counted: Option<Counted>,
}

impl Owed {
    pub fn new(
        shared: &Configured,
        counted: Option<Counted>,
        reservation: Option<Reservation>,
        reserve: Charge,
    ) -> Self {
        Self { shared: shared.clone(), reserve, reservation, sequence: None, counted }
    }

    /// What it holds, where something enforces.
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Whether it holds a reserve in each of `limits`.
    pub fn covers(&self, limits: &[LimitKey]) -> bool {
        let held = |limit: &LimitKey| {
            self.reservation.iter().flat_map(Reservation::accounts).any(|account| account.limit == *limit)
        };
        limits.iter().all(held)
    }

    /// Whether it belongs to an epoch, and so into the log.
    pub fn is_counted(&self) -> bool {
        self.counted.is_some()
    }

    /// It is in the log now.
    pub fn admitted(&mut self, sequence: u64) {
        self.sequence = Some(sequence);
    }

    /// Settles, in the log first.
    pub fn settle(mut self, settled: &Settled) {
        self.pay(settled);
        // Nothing is left for drop to pay; a call without a log is counted all the same.
        self.shared.metrics.settle(settled, outcome(settled.outcome).1);
    }

    fn pay(&mut self, settled: &Settled) {
        let shared = &self.shared;
        if let Some(sequence) = self.sequence.take() {
            let written = shared.log.settle(&proto::Settlement {
                sequence: 0,
                admission: sequence,
                settled_at: shared.clock.now().0,
                usage: Some(settled.usage.into()),
                charge: Some(settled.charge.into()),
                // One tier in this version: the best one is the one that answered.
                best_tier_nano_usd: settled.charge.usd.0,
                outcome: outcome(settled.outcome).0.into(),
            });
            shared.log_written(written.as_ref().copied());
        }
        if self.reservation.take().is_some_and(|reservation| reservation.settle(&settled.charge)) {
            shared.wake.notify_one();
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if self.sequence.is_some() {
            let (usage, charge) = (Usage::default(), self.reserve);
            let settled = Settled { usage, charge, outcome: Outcome::Abandoned };
            self.pay(&settled);
            self.shared.metrics.settle(&settled, outcome(settled.outcome).1);
        } else if self.reservation.take().is_some_and(Reservation::release) {
            self.shared.wake.notify_one();
        }
    }
}

fn outcome(outcome: Outcome) -> (proto::Outcome, &'static str) {
    match outcome {
        Outcome::Completed => (proto::Outcome::Completed, "completed"),
        Outcome::UsageMissing => (proto::Outcome::UsageMissing, "usage_missing"),
        Outcome::ProviderError => (proto::Outcome::ProviderError, "provider_error"),
        Outcome::Abandoned => (proto::Outcome::Abandoned, "abandoned"),
        Outcome::Replayed => (proto::Outcome::Replayed, "replayed"),
    }
}

/// A place in the queues. Dropped, it is given up; after it was resumed that changes nothing.
#[derive(Debug)]
pub(super) struct Pause {
    shared: Configured,
    pub id: AskId,
}

impl Pause {
    pub fn new(shared: &Configured, id: AskId) -> Self {
        Self { shared: shared.clone(), id }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.shared.waiters.leave(self.id);
        self.shared.gateway.give_up(self.id);
        self.shared.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Tail;
    use crate::process::{configure, release};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn a_call_whose_hook_panics_settles_at_its_reserve_and_holds_no_epoch_open() {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            r#"{{"gatewayId": "g", "logDirectory": "{}", "operators": ["127.0.0.1:1"], "plainText": true}}"#,
            dir.path().display()
        );
        let shared = configure(config.as_bytes()).unwrap();
        let reserve = Charge { requests: 1, tokens: 10, ..Charge::default() };
        let mut owed = Owed::new(&shared, shared.count(), None, reserve);
        let admission = proto::Admission {
            request_id: "r".to_owned(),
            caller: Some(proto::Caller::default()),
            backend: "plimsoll-system/openai".to_owned(),
            reserve: Some(reserve.into()),
            ..proto::Admission::default()
        };
        owed.admitted(shared.log.admit(&admission).unwrap());
        assert_eq!(shared.in_flight.load(SeqCst), 1);
        let hook = AssertUnwindSafe(move || {
            let _owed = owed;
            std::panic::resume_unwind(Box::new("a hook"));
        });
        assert!(catch_unwind(hook).is_err());
        assert_eq!(shared.in_flight.load(SeqCst), 0);
        let rows = Tail::new(shared.log.clone()).read(10).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].charge, rows[0].outcome), (reserve, Outcome::Abandoned));

        // While an epoch ends, no call is counted into it.
        shared.closing.store(true, SeqCst);
        assert!(shared.count().is_none());
        assert_eq!(shared.in_flight.load(SeqCst), 0);
        release(shared);
    }
}
