//! Events: what a new status says that the old one did not.
//!
//! A stage is told once in each window, because the status remembers it; numbers stand in the status,
//! as events of one reason are folded into one.

use plimsoll_api::AIBudgetStatus;
use plimsoll_api::budget::{Action, LimitStatus};
use plimsoll_api::shared::Condition;

/// Something to tell about a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How serious it is.
    pub kind: EventKind,
    /// CamelCase.
    pub reason: &'static str,
    /// What was done, for machines: `Notify/month/80`. Events of one reason and action are folded into one, and
    /// of those after the first no message is kept.
    pub action: String,
    /// For people.
    pub message: String,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Good to know.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What happened to a budget between `old` and `new`.
#[must_use]
pub fn events(old: Option<&AIBudgetStatus>, new: &AIBudgetStatus) -> Vec<Event> {
    let before = |name: &str| old.and_then(|old| old.limits.iter().find(|limit| limit.name == name));
    // Under the installation's mode as under the budget's own word: nothing is blocked.
    let observes = |condition: &Condition| condition.type_ == "Enforced" && condition.reason == "Observing";
    let effect = match new.conditions.iter().any(observes) {
        true => Effect::WouldBlock,
        false => Effect::Blocks,
    };
    new.limits.iter().flat_map(|limit| of_limit(before(&limit.name), limit, effect)).collect()
}

/// What a Block stage does.
#[derive(Clone, Copy)]
enum Effect {
    Blocks,
    /// The budget observes.
    WouldBlock,
}

fn of_limit(old: Option<&LimitStatus>, new: &LimitStatus, effect: Effect) -> Vec<Event> {
    let name = &new.name;
    let same_window = old.filter(|old| old.window == new.window);
    let fresh = new.stages.iter().filter(|stage| same_window.is_none_or(|old| !old.stages.contains(stage)));
    let mut events: Vec<Event> = fresh
        .map(|stage| {
            let percent = stage.percent;
            match (stage.action, effect) {
                (Action::Notify, _) => Event {
                    kind: EventKind::Warning,
                    reason: "StageReached",
                    action: format!("Notify/{name}/{percent}"),
                    message: format!("limit {name}: {percent} percent of {} used", new.amount),
                },
                (Action::Block, Effect::WouldBlock) => Event {
                    kind: EventKind::Warning,
                    reason: "StageReached",
                    action: format!("Block/{name}/{percent}"),
                    message: format!(
                        "limit {name}: {percent} percent of {} used; calls would be blocked, and pass (Observe)",
                        new.amount
                    ),
                },
                (Action::Block, Effect::Blocks) => Event {
                    kind: EventKind::Warning,
                    reason: "Blocked",
                    action: format!("Block/{name}/{percent}"),
                    message: format!(
                        "limit {name}: calls are blocked at {percent} percent of {}",
                        new.amount
                    ),
                },
            }
        })
        .collect();
    let blocked = |limit: &LimitStatus| limit.stages.iter().any(|stage| stage.action == Action::Block);
    if old.is_some_and(blocked) && !blocked(new) {
        let why = if same_window.is_some() { "there is room again" } else { "a new window began" };
        let message = match effect {
            Effect::Blocks => format!("limit {name}: no longer blocked, {why}"),
            Effect::WouldBlock => format!("limit {name}: calls would no longer be blocked, {why}"),
        };
        let action = format!("Unblock/{name}");
        events.push(Event { kind: EventKind::Normal, reason: "Recovered", action, message });
    }
    events
}
