//! What goes wrong in a cluster, on purpose, while traffic runs: manifests are applied again, the operator
//! and the API server are killed. Budgets must hold all the same.

use crate::place::Cluster;
use plimsoll_sim::harness::stack::Stack;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// What is done.
#[derive(Clone, Copy)]
enum Deed {
    /// What users have declared meanwhile is declared anew, as by a pipeline.
    ApplyAgain,
    /// SIGKILL, and started again at once.
    KillOperator,
    /// SIGKILL, and started again after [`AWAY`].
    KillApiServer,
}

/// Seconds after the start of traffic. The changes by kubectl fall between the two rounds.
const DEEDS: [(u64, Deed); 6] = [
    (10, Deed::ApplyAgain),
    (14, Deed::KillOperator),
    (20, Deed::KillApiServer),
    (112, Deed::ApplyAgain),
    (116, Deed::KillOperator),
    (120, Deed::KillApiServer),
];

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(8);

/// Makes trouble while traffic runs.
pub struct Trouble {
    /// The operator and its gateways.
    pub stack: Stack,
    /// The API server.
    pub cluster: Option<Arc<Cluster>>,
    /// What happened, for people.
    pub news: Sender<String>,
    /// Set when traffic ends.
    pub ended: Arc<AtomicBool>,
}

impl Trouble {
    /// Does each deed at its time, until traffic ends. What did not come up again, for people.
    pub fn make(&mut self) -> Vec<String> {
        let started = Instant::now();
        let mut wrong = Vec::new();
        for (at, deed) in DEEDS {
            self.pause(Duration::from_secs(at).saturating_sub(started.elapsed()));
            if self.ended.load(Ordering::Relaxed) {
                break;
            }
            if let Err(error) = self.carry_out(deed) {
                wrong.push(error.to_string());
            }
        }
        wrong
    }

    fn carry_out(&mut self, deed: Deed) -> anyhow::Result<()> {
        let begun = Instant::now();
        let told = match (deed, &self.cluster) {
            (Deed::KillOperator, _) => {
                self.stack.kill_operator();
                self.stack.start_operator()?;
                format!(
                    "kill -9 of the operator; started again, ready after {} ms",
                    begun.elapsed().as_millis()
                )
            }
            // From files there is neither.
            (_, None) => return Ok(()),
            (Deed::ApplyAgain, Some(cluster)) => {
                let manifests = self.stack.manifests();
                cluster.plane().kubectl(&["apply", "-f", &manifests.display().to_string()], "")?;
                format!("$ kubectl apply -f {}", crate::shown(&manifests))
            }
            (Deed::KillApiServer, Some(cluster)) => {
                let mut plane = cluster.plane();
                plane.kill_api_server();
                self.pause(AWAY);
                plane.start_api_server()?;
                format!(
                    "kill -9 of the API server; started again after {} s, ready {} ms after the kill",
                    AWAY.as_secs(),
                    begun.elapsed().as_millis()
                )
            }
        };
        // Nobody listens any more when traffic has ended.
        let _told = self.news.send(told);
        Ok(())
    }

    /// As long as `time`, or until traffic ends.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
