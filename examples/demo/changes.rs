//! What a user changes by kubectl while traffic runs, and how soon gateways go by it.

use crate::clients::{Clients, LimitName};
use crate::interrupt::Interrupt;
use crate::place::Cluster;
use plimsoll::ledger::Clock;
use plimsoll_core::ids::UnixMs;
use plimsoll_sim::harness::wait_until;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// One change to a budget in [`NAMESPACE`], made once one of its limits refuses.
struct Change {
    budget: &'static str,
    limit: &'static str,
    /// The feature whose calls are let through by it.
    feature: &'static str,
    /// kubectl's arguments.
    patch: [&'static str; 4],
}

/// Whose budgets are changed.
const NAMESPACE: &str = "finance";

/// A limit is raised; a budget only observes from now on.
const CHANGES: [Change; 2] = [
    Change {
        budget: "search",
        limit: "minute",
        feature: "search",
        patch: ["--type", "json", "-p", r#"[{"op":"replace","path":"/spec/limits/0/amount","value":30}]"#],
    },
    Change {
        budget: "support-chat",
        limit: "day",
        feature: "support-chat",
        patch: ["--type", "merge", "-p", r#"{"spec":{"enforcement":"Observe"}}"#],
    },
];

/// So many refusals by a limit are seen before its budget is changed.
const REFUSED: u64 = 200;
/// A limit whose last refusal is older does not refuse now.
const NOW: Duration = Duration::from_millis(250);
/// A window that ends sooner would lift the block by itself.
const WINDOW_LEFT_MS: i64 = 10_000;
/// How long clients are watched after a change.
const AFTER: Duration = Duration::from_secs(2);
/// Statuses are written at most every 10 s.
const STATUS_WITHIN: Duration = Duration::from_secs(20);

/// Makes the changes while traffic runs.
pub struct Changes {
    /// The API server.
    pub cluster: Arc<Cluster>,
    /// What clients get.
    pub clients: Arc<Clients>,
    /// Gateways' names by URL.
    pub gateways: BTreeMap<String, String>,
    /// What happened, for people.
    pub news: Sender<String>,
    /// Set when traffic ends.
    pub ended: Arc<AtomicBool>,
    /// Who ends everything.
    pub interrupt: Interrupt,
}

impl Changes {
    /// Makes each change at its moment, until traffic ends. What went wrong, for people.
    pub fn make(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut pending = CHANGES.iter().collect::<Vec<_>>();
        while !pending.is_empty() && !self.ended.load(Ordering::Relaxed) {
            match pending.iter().position(|change| self.is_due(change)) {
                Some(due) => {
                    if let Err(error) = self.carry_out(pending.remove(due)) {
                        wrong.push(error.to_string());
                    }
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        for Change { budget, limit, .. } in pending {
            self.tell(format!(
                "{NAMESPACE}/{budget} was not changed: its limit {limit} did not refuse for long enough"
            ));
        }
        wrong
    }

    fn is_due(&self, change: &Change) -> bool {
        let refused = self.clients.refused(&change.limit());
        let refuses = refused.last.values().any(|last| last.elapsed() < NOW);
        if refused.count < REFUSED || !refuses {
            return false;
        }
        let budget = self.cluster.budget(NAMESPACE, change.budget);
        let status = budget.as_ref().and_then(|budget| budget.status.as_ref());
        let mut limits = status.iter().flat_map(|status| &status.limits);
        let window =
            limits.find(|limit| limit.name == change.limit).and_then(|limit| limit.window.end.as_ref());
        // A status of the window before: wait until it tells of this one.
        window.is_none_or(|end| end.0.as_millisecond() - Clock::new(UnixMs(0)).now().0 > WINDOW_LEFT_MS)
    }

    fn carry_out(&self, change: &Change) -> anyhow::Result<()> {
        let Change { budget, limit, feature, patch } = change;
        let mut args = vec!["patch", "aibudget", budget, "-n", NAMESPACE];
        args.extend(patch);
        self.tell(format!("$ kubectl {}", typed(&args)));
        let plane = self.cluster.plane();
        let (begun, before) = (Instant::now(), self.clients.served(feature));
        plane.kubectl(&args, "")?;
        let took = begun.elapsed();
        drop(plane);
        std::thread::sleep(AFTER.saturating_sub(begun.elapsed()));
        let (served, last) =
            (self.clients.served(feature) - before, self.clients.refused(&change.limit()).last);
        let last = self.gateways.iter().filter_map(|(url, name)| {
            // The last one may have come before: that gateway refused none meanwhile.
            let after = last.get(url.as_str())?.checked_duration_since(begun)?;
            Some(format!("{} ms ({name})", after.as_millis()))
        });
        let refused = match last.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "no call any more".to_owned(),
            last => format!("its last call after {last}"),
        };
        self.tell(format!(
            "{NAMESPACE}/{budget}: limit {limit} refused {refused}; kubectl took {} ms; {served} calls of \
             {feature} served in {} s",
            took.as_millis(),
            AFTER.as_secs()
        ));
        self.wait_enforced(budget, begun)
    }

    /// Waits until the budget's own status says that all gateways hold what was declared.
    fn wait_enforced(&self, name: &str, since: Instant) -> anyhow::Result<()> {
        let mut said = String::new();
        wait_until(&format!("the status of {NAMESPACE}/{name} after its change"), STATUS_WITHIN, || {
            if self.interrupt.is_set() {
                return Ok(());
            }
            let budget = self.cluster.budget(NAMESPACE, name).ok_or("there is no such budget")?;
            let declared = budget.metadata.generation;
            let status = budget.status.as_ref().ok_or("it has no status")?;
            let (holding, all) = status.gateways.map_or((0, 0), |count| (count.enforcing, count.total));
            said = format!(
                "generation {} at {holding} of {all} gateways",
                status.observed_generation.unwrap_or(0)
            );
            if status.observed_generation == declared && holding == all && all > 0 {
                return Ok(());
            }
            Err(said.clone())
        })?;
        let after = since.elapsed().as_secs_f32();
        self.tell(format!("{NAMESPACE}/{name}: after {after:.1} s its .status says: {said}"));
        Ok(())
    }

    fn tell(&self, news: String) {
        // Nobody listens any more when traffic has ended.
        let _told = self.news.send(news);
    }
}

impl Change {
    fn limit(&self) -> LimitName {
        (format!("{NAMESPACE}/{}", self.budget), self.limit.to_owned())
    }
}

/// Arguments as one would type them.
fn typed(args: &[&str]) -> String {
    let quoted = args.iter().map(|arg| match arg.contains(['"', ' ', '{', '[']) {
        true => format!("'{arg}'"),
        false => (*arg).to_owned(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
