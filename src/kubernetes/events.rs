//! What happens to budgets, as Kubernetes Events: `kubectl describe aib` shows them.
//!
//! kube's recorder folds what happens again within six minutes into one Event. It keeps each that it sent
//! for so long, so the rate bounds how many it keeps: 1,825.

use super::access;
use super::faults::Faults;
use super::metrics::Metrics;
use super::stored::Stored;
use super::{at, next_pause};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event as Note, EventType, Recorder, Reporter};
use plimsoll_api::{API_VERSION, ObjectId};
use plimsoll_plan::{Event, EventKind};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Events that may wait, and as many that are parked.
const ROOM: usize = 1000;

/// How many may be sent at once, and then one in each interval.
const BURST: u32 = 25;
const INTERVAL: Duration = Duration::from_millis(200);

/// How long one may take.
const WITHIN: Duration = Duration::from_secs(10);

/// How long a namespace rests in which Events may not be written: somebody must act first.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// The first and the longest pause while the API server is away.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// How often one is sent that the API server answers with an error which may pass: others wait behind it.
const MOST_ANSWERS: u32 = 5;

/// The most bytes of a message that the API server takes.
const MOST_BYTES: usize = 1024;

/// An Event, and whose.
pub(super) struct Told {
    note: Note,
    about: ObjectReference,
}

impl Told {
    fn namespace(&self) -> &str {
        self.about.namespace.as_deref().unwrap_or_default()
    }
}

/// Takes Events and never waits.
pub(super) struct Teller {
    stored: Arc<Stored>,
    into: mpsc::Sender<Told>,
    metrics: Metrics,
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teller(…)")
    }
}

impl Teller {
    pub(super) fn new(stored: Arc<Stored>, metrics: Metrics) -> (Self, mpsc::Receiver<Told>) {
        let (into, told) = mpsc::channel(ROOM);
        (Self { stored, into, metrics }, told)
    }

    /// `event` happened to `object`. Dropped if the object is gone, or too many wait.
    pub(super) fn tell(&self, object: &ObjectId, event: &Event) {
        let told = self.stored.get(object).map(|entry| Told {
            note: note(event),
            about: ObjectReference {
                api_version: Some(API_VERSION.to_owned()),
                kind: Some(object.kind.clone()),
                namespace: Some(object.namespace.clone()),
                name: Some(object.name.clone()),
                uid: Some(entry.uid.to_string()),
                ..ObjectReference::default()
            },
        });
        if told.is_none_or(|told| self.into.try_send(told).is_err()) {
            self.metrics.events_dropped.inc();
        }
    }
}

fn note(event: &Event) -> Note {
    let Event { kind, reason, action, message } = event;
    let mut end = message.len().min(MOST_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Note {
        type_: match kind {
            EventKind::Normal => EventType::Normal,
            EventKind::Warning => EventType::Warning,
        },
        reason: (*reason).to_owned(),
        note: Some(message[..end].to_owned()),
        action: action.clone(),
        secondary: None,
    }
}

/// Sends what is told until nobody tells any more: in order, but for what is parked.
pub(super) async fn run(client: Client, mut told: mpsc::Receiver<Told>, faults: Faults, metrics: Metrics) {
    let recorder = Recorder::new(client, Reporter::from("plimsoll.dev/operator"));
    let mut sender = Sender { recorder, rate: Rate::default(), parked: BTreeMap::new(), faults, metrics };
    loop {
        let due = sender.parked.values().map(|parked| parked.until).min();
        tokio::select! {
            told = told.recv() => match told {
                Some(told) => sender.take(told).await,
                None => return,
            },
            () = at(due) => sender.try_parked().await,
        }
    }
}

struct Sender {
    recorder: Recorder,
    rate: Rate,
    /// By namespace: Events that may not be written there.
    parked: BTreeMap<String, Parked>,
    faults: Faults,
    metrics: Metrics,
}

struct Parked {
    told: VecDeque<Told>,
    /// When it is tried again.
    until: Instant,
}

/// It may not be written: the rule that is missing.
struct Denied(String);

impl Sender {
    async fn take(&mut self, told: Told) {
        let room = ROOM > self.parked.values().map(|parked| parked.told.len()).sum();
        match self.parked.get_mut(told.namespace()) {
            Some(parked) if room => parked.told.push_back(told),
            Some(_) => {
                self.metrics.events_dropped.inc();
            }
            None => self.send_all(VecDeque::from([told])).await,
        }
    }

    /// Tries those again whose time has come.
    async fn try_parked(&mut self) {
        let now = Instant::now();
        let due: Vec<Parked> =
            self.parked.extract_if(.., |_, parked| parked.until <= now).map(|(_, parked)| parked).collect();
        for Parked { told, .. } in due {
            self.send_all(told).await;
        }
        if self.parked.is_empty() {
            self.faults.set("events", None);
        }
    }

    /// Sends Events of one namespace, and parks them all when they may not be written there: others go on.
    async fn send_all(&mut self, mut told: VecDeque<Told>) {
        while let Some(first) = told.front() {
            sleep_until(self.rate.next(Instant::now())).await;
            if let Err(Denied(rule)) = self.send(first).await {
                self.faults.set("events", Some(format!("Events can't be written: {rule}")));
                let namespace = first.namespace().to_owned();
                self.parked.insert(namespace, Parked { told, until: Instant::now() + REFUSED_FOR });
                return;
            }
            told.pop_front();
        }
    }

    /// Sends `told`, as often as it takes to reach the API server. Dropped if that can't take it.
    async fn send(&self, told: &Told) -> Result<(), Denied> {
        let (mut pause, mut answers) = (Duration::ZERO, 0);
        loop {
            let sent = timeout(WITHIN, self.recorder.publish(&told.note, &told.about)).await;
            match sent {
                Ok(Ok(())) => {
                    self.metrics.events.inc();
                    return Ok(());
                }
                Ok(Err(kube::Error::Api(status))) => {
                    if let Some(rule) = access::missing_rule(&status) {
                        return Err(Denied(rule.to_string()));
                    }
                    answers += 1;
                    if !access::may_pass(&status) || answers == MOST_ANSWERS {
                        // The namespace ends, or somebody deleted the Event that this is a repetition of.
                        tracing::debug!(object = ?told.about.name, error = status.message, "an Event is lost");
                        self.metrics.events_dropped.inc();
                        return Ok(());
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "Events wait"),
                Err(_) => tracing::debug!("Events wait: the API server does not answer"),
            }
            pause = next_pause(pause, PAUSES);
            sleep(pause).await;
        }
    }
}

/// [`BURST`] at once, then one in each [`INTERVAL`].
#[derive(Debug, Default)]
struct Rate {
    /// When all of the burst is there again.
    full: Option<Instant>,
}

impl Rate {
    /// When the next may be sent, which it then is.
    fn next(&mut self, now: Instant) -> Instant {
        let full = self.full.map_or(now, |full| full.max(now));
        self.full = Some(full + INTERVAL);
        (full + INTERVAL).checked_sub(INTERVAL * BURST).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_five_events_at_once_and_then_five_a_second() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut now = start;
        let mut after = |now: &mut Instant| {
            *now = rate.next(*now);
            now.duration_since(start)
        };
        for _ in 0..BURST {
            assert_eq!(after(&mut now), Duration::ZERO);
        }
        for n in 1..=50 {
            assert_eq!(after(&mut now), INTERVAL * n);
        }
        now += Duration::from_secs(3);
        let rested = now.duration_since(start);
        for _ in 0..15 {
            assert_eq!(after(&mut now), rested, "three seconds' worth is there again");
        }
        assert_eq!(after(&mut now), rested + INTERVAL);
    }

    #[test]
    fn an_event_has_what_the_api_server_takes() {
        let event = Event {
            kind: EventKind::Warning,
            reason: "Blocked",
            action: "Block/month/100".to_owned(),
            message: "é".repeat(1000),
        };
        let note = note(&event);
        assert_eq!((note.type_, note.reason.as_str()), (EventType::Warning, "Blocked"));
        assert_eq!(note.note.unwrap(), "é".repeat(512));
    }
}
