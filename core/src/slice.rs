//! Slices: what one gateway holds of each account.
//!
//! Admission is all-or-nothing over at most 64 accounts, lock-free on the worker. This file never
//! talks to the ledger (see [`crate::gateway`]) and never reads a clock.

use crate::account::{AccountKey, Charge};

/// One account's slice.
#[derive(Debug)]
pub struct Slice {}

/// What an admitted call holds in its accounts; settle it, or it is lost until the log's replay.
#[derive(Debug)]
#[must_use]
pub struct Reservation {}

impl Reservation {
    /// The accounts that it is charged to.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountKey> {
        std::iter::empty()
    }

    /// The attempt cost `charge`; the rest is free again. Write the settlement to the log first.
    /// Returns whether some request waits for what became free (then wake the client thread).
    pub fn settle(self, charge: &Charge) -> bool {
        todo!()
    }
}
