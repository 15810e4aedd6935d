//! What is wrong with the way to the API server, by what it stops.

use crate::source::Fault;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Shared by everything that writes.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    by_topic: Arc<Mutex<BTreeMap<String, Fault>>>,
    told: watch::Sender<Vec<Fault>>,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self { by_topic: Arc::default(), told: watch::Sender::new(Vec::new()) }
    }

    /// This is wrong with `topic` now; None: nothing.
    pub(super) fn set(&self, topic: &str, message: Option<String>) {
        let mut by_topic = self.by_topic.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = message.map(|message| Fault { place: "API server".to_owned(), object: None, message });
        if by_topic.get(topic) == fault.as_ref() {
            return;
        }
        match fault {
            Some(fault) => drop(by_topic.insert(topic.to_owned(), fault)),
            None => drop(by_topic.remove(topic)),
        }
        self.told.send_replace(by_topic.values().cloned().collect());
    }

    /// Everything that is wrong, from now on.
    pub(super) fn listen(&self) -> watch::Receiver<Vec<Fault>> {
        self.told.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_once_and_its_end_too() {
        let faults = Faults::new();
        let mut heard = faults.listen();
        let messages = |heard: &mut watch::Receiver<Vec<Fault>>| {
            let is_new = heard.has_changed().unwrap();
            let messages: Vec<String> =
                heard.borrow_and_update().iter().map(|fault| fault.message.clone()).collect();
            (is_new, messages)
        };
        faults.set("events", None);
        assert_eq!(messages(&mut heard), (false, vec![]));
        faults.set("events", Some("grant create".to_owned()));
        faults.clone().set("AIBudget", Some("grant patch".to_owned()));
        assert_eq!(messages(&mut heard), (true, vec!["grant patch".to_owned(), "grant create".to_owned()]));
        faults.set("events", Some("grant create".to_owned()));
        assert!(!messages(&mut heard).0);
        faults.set("AIBudget", None);
        assert_eq!(messages(&mut heard), (true, vec!["grant create".to_owned()]));
    }
}
