//! Who waits: the schedulers of paused requests, by ask.
//!
//! A worker pauses and enters its scheduler under one lock, so that the client thread, which looks an ask
//! up after the gateway has named it, always finds it, or it has left.

use crate::abi::Scheduler;
use plimsoll_core::protocol::AskId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The schedulers of all paused requests.
#[derive(Debug, Default)]
pub struct Waiters(Mutex<HashMap<AskId, Scheduler>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<AskId, Scheduler>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Worker: pauses by `pause` and enters the scheduler.
    pub fn enter(&self, scheduler: Scheduler, pause: impl FnOnce() -> AskId) -> AskId {
        let mut waiters = self.lock();
        let id = pause();
        waiters.insert(id, scheduler);
        id
    }

    /// Client thread: wakes the stream that waits for `id`, if it still does.
    pub fn wake(&self, id: AskId) {
        if let Some(scheduler) = self.lock().get(&id) {
            scheduler.commit(id.0);
        }
    }

    /// Worker: the stream waits no more.
    pub fn leave(&self, id: AskId) {
        let scheduler = self.lock().remove(&id);
        drop(scheduler);
    }
}
