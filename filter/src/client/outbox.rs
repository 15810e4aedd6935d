//! The outbox of one stream: what is to be said, in order, for a peer that may read slower than we speak.
//!
//! Some messages are said only once on a stream, so none is ever left out. Several thousand paused requests ask
//! at once when a stream begins; what finds no room waits here, and meanwhile the client says nothing new (see
//! [`Outbox::is_flushed`]), so no more waits than one tick has to say.

use plimsoll_core::ids::Epoch;
use plimsoll_core::protocol::FromGateway;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

/// Messages that wait in the stream itself.
pub(super) const ROOM: usize = 1_024;
/// How long a peer may take nothing at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where messages of one stream go. Dropped, the whole stream ends at once.
#[derive(Debug)]
pub(super) struct Outbox {
    /// The epoch that its Hello spoke of.
    pub epoch: Epoch,
    queue: mpsc::Sender<FromGateway>,
    open: oneshot::Sender<()>,
    unsaid: VecDeque<FromGateway>,
    /// When a message last found room, while some wait.
    moved: Instant,
}

/// Why a stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Useless {
    /// It has ended.
    Ended,
    /// The peer reads nothing.
    Stuck,
}

impl Outbox {
    pub fn new(epoch: Epoch, queue: mpsc::Sender<FromGateway>, open: oneshot::Sender<()>) -> Self {
        Self { epoch, queue, open, unsaid: VecDeque::new(), moved: Instant::now() }
    }

    /// Says `message` after everything that waits.
    pub fn say(&mut self, message: FromGateway, now: Instant) {
        if self.unsaid.is_empty() {
            self.moved = now;
        }
        self.unsaid.push_back(message);
    }

    /// Hands on what finds room; `said` hears the kind of each.
    pub fn flush(&mut self, now: Instant, mut said: impl FnMut(&'static str)) -> Result<(), Useless> {
        while let Some(message) = self.unsaid.pop_front() {
            let kind = message.kind();
            match self.queue.try_send(message) {
                Ok(()) => {
                    self.moved = now;
                    said(kind);
                }
                Err(TrySendError::Full(message)) => {
                    self.unsaid.push_front(message);
                    let stuck = now.saturating_duration_since(self.moved) > PATIENCE;
                    return if stuck { Err(Useless::Stuck) } else { Ok(()) };
                }
                Err(TrySendError::Closed(_)) => return Err(Useless::Ended),
            }
        }
        Ok(())
    }

    /// Whether nothing waits here: only then may something new be made to be said.
    pub fn is_flushed(&self) -> bool {
        self.unsaid.is_empty()
    }

    /// Whether one more message would find room at once.
    pub fn has_room(&self) -> bool {
        self.is_flushed() && self.queue.capacity() > 0
    }

    /// Where room is to be waited for; `None`: nothing waits for it.
    pub fn awaited(&self) -> Option<mpsc::Sender<FromGateway>> {
        (!self.is_flushed()).then(|| self.queue.clone())
    }

    /// Nothing more will be said: the stream's own half ends once what is queued is sent. Dropping what this
    /// returns ends the rest of it.
    pub fn close(self) -> oneshot::Sender<()> {
        self.open
    }
}

/// Waits until there is room; for ever where nothing waits for it.
pub(super) async fn room(awaited: Option<mpsc::Sender<FromGateway>>) {
    match awaited {
        // Closed counts as room: the next flush finds out.
        Some(queue) => drop(queue.reserve().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::protocol::AskId;

    fn cancel(id: u64) -> FromGateway {
        FromGateway::Cancel(AskId(id))
    }

    fn outbox(room: usize) -> (Outbox, mpsc::Receiver<FromGateway>) {
        let (queue, said) = mpsc::channel(room);
        (Outbox::new(Epoch(1), queue, oneshot::channel().0), said)
    }

    #[test]
    fn what_finds_no_room_waits_in_order_and_is_said_once() {
        let (mut outbox, mut said) = outbox(10);
        let now = Instant::now();
        (1..=35).for_each(|id| outbox.say(cancel(id), now));
        let mut heard = Vec::new();
        let mut rounds = 0;
        loop {
            outbox.flush(now, |_| ()).unwrap();
            let more = std::iter::from_fn(|| said.try_recv().ok());
            heard.extend(more);
            rounds += 1;
            if outbox.is_flushed() {
                break;
            }
        }
        assert_eq!((heard, rounds), ((1..=35).map(cancel).collect(), 4));
    }

    #[test]
    fn a_peer_is_given_up_when_it_takes_nothing_and_not_while_it_takes_a_little() {
        let (mut outbox, mut said) = outbox(1);
        let begun = Instant::now();
        (1..=4).for_each(|id| outbox.say(cancel(id), begun));
        let at = |seconds| begun + Duration::from_secs(seconds);
        for seconds in [0, 4, 8] {
            assert_eq!(outbox.flush(at(seconds), |_| ()), Ok(()));
            assert!(said.try_recv().is_ok());
        }
        assert_eq!(outbox.flush(at(12), |_| ()), Ok(()));
        assert!(outbox.is_flushed() && !outbox.has_room());
        outbox.say(cancel(5), at(60));
        assert_eq!(outbox.flush(at(65), |_| ()), Ok(()));
        assert_eq!(outbox.flush(at(66), |_| ()), Err(Useless::Stuck));
        drop(said);
        assert_eq!(outbox.flush(at(66), |_| ()), Err(Useless::Ended));
    }
}
