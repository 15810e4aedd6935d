//! The domain from outside: windows, matching, sessions, meters and refusals, as their users call them.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod fixture;
mod gateway;
mod matching;
mod meter;
mod refusals;
mod session;
mod snapshot;
mod window;
