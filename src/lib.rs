//! Plimsoll's operator: watches what teams declare, plans, and puts it into force at every gateway.
//!
//! The library behind the `plimsoll` binary. Deciding is not done here (`plimsoll-plan` and
//! `plimsoll-core` do, without I/O); this crate reads, serves, stores and reports.

pub mod config;
pub mod controller;
pub mod gateway;
pub mod http;
pub mod kubernetes;
pub mod ledger;
pub mod metrics;
pub mod operator;
mod random;
pub mod report;
pub mod source;
pub mod validate;
