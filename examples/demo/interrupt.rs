//! Who may end the demo early: Ctrl-C, SIGTERM, a closed terminal, and `make`.
//!
//! Heard from the start on by a task of its own, so that whatever blocks meanwhile can ask.

use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Set once, by the first who says so.
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Listens from here on.
    ///
    /// # Errors
    /// When signals can't be had.
    pub fn listen() -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let make = Make::parent();
        let (set, seen) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _int = interrupt.recv() => {}
                _term = terminate.recv() => {}
                _hup = hangup.recv() => {}
                () = gave_up(make) => {}
            }
            set.send_replace(true);
        });
        Ok(Self(seen))
    }

    /// Whether somebody did.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Until somebody does.
    pub async fn wait(mut self) {
        if self.0.wait_for(|set| *set).await.is_err() {
            // The task is gone without a word: nobody will.
            std::future::pending().await
        }
    }
}

async fn gave_up(make: Option<Make>) {
    let Some(make) = make else { return std::future::pending().await };
    while make.listens() {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The `make` that runs this. Interrupted alone, it tells its recipe nothing and waits for it: it only stops
/// listening to SIGINT. Killed, it is gone.
struct Make(PathBuf);

impl Make {
    fn parent() -> Option<Self> {
        let dir = PathBuf::from(format!("/proc/{}", std::os::unix::process::parent_id()));
        let name = std::fs::read_to_string(dir.join("comm")).ok()?;
        let make = Self(dir.join("status"));
        // One that never listened (started in a script's background) says nothing by that.
        (matches!(name.trim(), "make" | "gmake") && make.listens()).then_some(make)
    }

    fn listens(&self) -> bool {
        std::fs::read_to_string(&self.0).is_ok_and(|status| catches_interrupts(&status))
    }
}

/// Whether a process with this `/proc/PID/status` has a handler for SIGINT, signal 2.
fn catches_interrupts(status: &str) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 2 != 0)
}
