//! The ledger's shell: where the pure protocol of [`plimsoll_core::ledger`] meets disk and network.
//!
//! One task owns the protocol and the store, so whatever happens is in one order: take what waits, run
//! one step inside one commit, then answer. Streams, policy and status stand round that task.

mod acceptor;
mod actor;
mod clock;
mod forget;
mod metrics;
mod policy_hub;
mod server;
mod spend;
pub mod sqlite;
pub mod store;
mod stream;
mod tls;

pub use clock::Clock;
pub use metrics::Metrics;
pub use policy_hub::{GatewayState, InForce, PolicyHub, Rejection};
pub use server::{LedgerHandle, LedgerState, ServerSettings, StartError, start, start_beside};
pub use spend::{SpendBoard, Spent};
pub use sqlite::{Export, SqliteStore, export};
pub use store::{Books, Identity, Store, StoreError};
pub use tls::{TlsError, TlsFiles, Transport};
