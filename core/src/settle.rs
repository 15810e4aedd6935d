//! Settlement: what an attempt is charged once it has ended.
//!
//! LEDGER.md, "Reserve and settlement". Pure; the reservation itself stands in [`crate::slice`].

use crate::account::Charge;
use crate::meter::Measured;
use crate::money::NanoUsd;
use crate::protocol::Outcome;
use crate::session::Call;
use crate::usage::Usage;

/// How an attempt ended, as the shell saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The provider's whole answer came, with this status.
    Answered(u16),
    /// No connection to the provider: nothing can have been done.
    NoConnection,
    /// Anything else: the client left, the stream broke off, the provider did not answer in time.
    Unknown,
}

/// What an attempt settles at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Tokens by class; zero where they are not known.
    pub usage: Usage,
    /// What its accounts are charged.
    pub charge: Charge,
    /// How it ended.
    pub outcome: Outcome,
}

/// What `call` settles at.
#[must_use]
pub fn settle(call: &Call, ended: Ended, measured: &Measured) -> Settled {
    let at_reserve = |outcome| Settled { usage: Usage::default(), charge: call.reserve, outcome };
    match ended {
        // 1 request: it was sent on, or tried; a client that hammers a dead provider still counts.
        Ended::NoConnection => free(),
        Ended::Answered(status) if !(200..300).contains(&status) => free(),
        Ended::Answered(_) => match measured.usage {
            // A stream that ends without its own end was cut; what usage it has may be a running total.
            Some(usage) if measured.complete => completed(call, usage),
            Some(_) => at_reserve(Outcome::Abandoned),
            None => at_reserve(Outcome::UsageMissing),
        },
        // The usage event is a stream's last word on cost: a client that leaves after it owes just that.
        Ended::Unknown => match measured.usage {
            Some(usage) if measured.complete => completed(call, usage),
            _ => at_reserve(Outcome::Abandoned),
        },
    }
}

fn free() -> Settled {
    Settled {
        usage: Usage::default(),
        charge: Charge { usd: NanoUsd::ZERO, tokens: 0, requests: 1 },
        outcome: Outcome::ProviderError,
    }
}

fn completed(call: &Call, usage: Usage) -> Settled {
    let usd = call.rates.map_or(NanoUsd::ZERO, |rates| rates.cost(&usage));
    Settled { usage, charge: Charge { usd, tokens: usage.total(), requests: 1 }, outcome: Outcome::Completed }
}
