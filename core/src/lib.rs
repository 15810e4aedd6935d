//! Plimsoll's domain: what a call costs, which budgets it is charged to, and the protocol that
//! keeps every one of them.
//!
//! No I/O, no clock, no Kubernetes, no async: decisions are functions of data and `now`. Shells round
//! it are the filter (in Envoy), the operator (ledger and planner) and the backtest.

pub mod account;
pub mod budget;
pub mod caller;
pub mod gateway;
pub mod ids;
pub mod judge;
pub mod ledger;
pub mod meter;
pub mod money;
pub mod policy;
mod postings;
pub mod price;
pub mod protocol;
pub mod refusal;
pub mod session;
pub mod settle;
pub mod slice;
pub mod snapshot;
pub mod usage;
pub mod window;
