//! Plimsoll's Envoy filter: meters, routes and enforces each call in process.
//!
//! [`abi`] is Envoy's side, with all the `unsafe`; [`filter`] is one request on a worker; [`process`] is what
//! all requests share; [`client`] is the one thread that talks to the ledger; [`log`] is what survives
//! them all. What is decided stands in `plimsoll_core`.

pub mod abi;
pub mod client;
pub mod clock;
pub mod config;
pub mod decisions;
pub mod filter;
pub mod log;
pub mod metrics;
pub mod process;
mod status;
pub mod waiters;
