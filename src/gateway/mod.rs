//! Envoy's configuration by xDS: the clusters and provider keys that the policy refers to.
//!
//! Budgets and routes never travel here (they go with the ledger's stream, acknowledged object by
//! object): only what stock Envoy itself must know. [`cluster`] translates, [`snapshot`] says what
//! should be in force, [`stream`] decides what one gateway must be told, [`ads`] carries it, and
//! [`acks`] remembers what each gateway took and what it rejected, in Envoy's own words.

pub mod acks;
pub mod ads;
pub mod cluster;
pub mod identity;
pub mod secret;
pub mod snapshot;
pub mod stream;

pub use acks::{Envoy, Gateways, Held, Rejected};
pub use ads::Discovery;
pub use snapshot::{Kind, ResourceKey, Snapshot, Version, Want};
