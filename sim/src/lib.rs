//! The world around Plimsoll, for its demo, tests and benches: a provider that keeps its own bill, a
//! replayer of recorded traffic, and a harness that runs real processes.
//!
//! It is not Plimsoll and shares none of its code: what the provider bills is computed here a second
//! time, so that a mistake in Plimsoll's prices can't hide in the comparison. Both programs also stand
//! alone: `plimsoll-provider --help`, `plimsoll-replay --help`.

pub mod bill;
pub mod harness;
pub mod price;
pub mod provider;
pub mod replay;
pub mod trace;
