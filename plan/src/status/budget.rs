//! The status of a budget: what is used, which stages are reached, who enforces it.

use super::rollout::{Lag, Rollout, Word, policy};
use super::{Draft, Health, conditions, joined, time, was_ready};
use crate::applied::{Applied, Gateway, Instead};
use crate::compile::budget::block_percent;
use crate::plan::{BudgetPlan, Plan};
use plimsoll_api::budget::{
    Action, GatewayCount, LimitStatus, Stage, Tightest, Trigger, Unpriced, WindowStatus,
};
use plimsoll_api::{AIBudget, AIBudgetStatus};
use plimsoll_core::account::{AccountKey, Amount, LimitKey, Unit};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::ledger::Terms;
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Body, Budget, Enforcement, Namespaces, PolicyKey};
use plimsoll_core::window::WindowSpec;

/// How `budget` stands; `old` is the status that it had.
#[must_use]
pub fn budget(
    name: &ObjectName,
    budget: &AIBudget,
    old: Option<&AIBudgetStatus>,
    plan: &Plan,
    applied: &Applied,
    now: UnixMs,
) -> AIBudgetStatus {
    let absent = BudgetPlan::default();
    let this = plan.budgets.get(name).unwrap_or(&absent);
    let key = PolicyKey::Budget(name.clone());
    let rollout = Rollout::of(applied, |gateway| word(&key, this, gateway));
    let generation = budget.metadata.generation;
    let counted = old.and_then(|old| old.gateways);
    let old_limits = old.map_or(&[][..], |old| &old.limits);
    let old = old.map_or(&[][..], |old| &old.conditions);

    let health = match this.problems.first() {
        Some(problem) => {
            let kept = if this.limits.is_empty() { "" } else { ". The version before it stays in force." };
            Health::Stalled(problem.reason, joined(&this.problems) + kept)
        }
        None => rollout.health(was_ready(old, generation)),
    };
    let limits: Vec<Standing> = this
        .limits
        .iter()
        .filter_map(|(key, window)| standing(key, window, budget, old_limits, plan, applied, now))
        .collect();
    let mut drafts: Vec<Draft> = health.drafts().into();
    drafts.push(within(&limits));
    drafts.push(price_known(name, budget, plan));
    let again = Draft::again("Enforced", old, generation).filter(|_| rollout.is_unheard());
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    // Of equals the first: that is the one that its owner thought of first.
    let tightest = limits.iter().rev().max_by_key(|standing| standing.tightness);
    let enforcing = if this.limits.is_empty() { 0 } else { count(rollout.holding) };
    let gateways = match (&again, counted) {
        (Some(_), Some(counted)) => counted,
        _ => GatewayCount { enforcing, total: count(rollout.total) },
    };
    drafts.push(enforced(this, &limits, &rollout, again, applied));
    AIBudgetStatus {
        conditions: conditions(drafts, old, generation, now),
        observed_generation: generation,
        tightest: tightest.map(|standing| standing.words.clone()),
        limits: limits.into_iter().map(|standing| standing.status).collect(),
        gateways: Some(gateways),
    }
}

/// One limit in its current window.
struct Standing {
    status: LimitStatus,
    words: Tightest,
    /// Whether calls are blocked, and the share that is used, in permille.
    tightness: (bool, i128),
    enforcement: Enforcement,
    /// `limit month: 500.00 of 500.00 USD used`, and when that ends; where calls are blocked.
    blocked: Option<String>,
    /// More was settled than there is.
    overspent: bool,
    /// `limit month: calls cost 0.42 USD more than was reserved for them`.
    overrun: Option<String>,
}

fn standing(
    key: &LimitKey,
    window: &WindowSpec,
    budget: &AIBudget,
    old: &[LimitStatus],
    plan: &Plan,
    applied: &Applied,
    now: UnixMs,
) -> Option<Standing> {
    let Terms { amount, block_at, enforcement } = *plan.limits.get(key)?;
    let bounds = window.bounds(now);
    let account = AccountKey { limit: key.clone(), start: bounds.start, key: String::new() };
    let spent = applied.spend.get(&account).copied().unwrap_or_default();
    let unit = key.unit;
    let (end, never) = (window.show(bounds.end), bounds.end == UnixMs::NEVER);
    let ends = !never;
    let mut status = LimitStatus {
        name: key.limit.clone(),
        window: WindowStatus { start: ends.then(|| time(bounds.start)), end: ends.then(|| time(bounds.end)) },
        amount: unit.show(amount),
        spent: unit.show(spent.settled),
        used_percent: percent(spent.used(), amount),
        stages: vec![],
        unaccounted: (spent.unaccounted != Amount::ZERO).then(|| unit.show(spent.unaccounted)),
        counted_since: spent.counted_since.map(time),
    };
    let declared = budget.spec.stages.as_deref().unwrap_or_default();
    let exhausted = spent.exhausted || still_exhausted(old, &status, block_percent(declared));
    status.stages = reached(declared, spent.used(), exhausted, amount);
    let is_blocked = status.stages.iter().any(|stage| stage.action == Action::Block);
    let words = Tightest {
        limit: key.limit.clone(),
        used: unit.show(spent.used()),
        of: format!("{} {}", unit.show(amount), unit.as_str()),
        used_percent: status.used_percent.clone(),
        resets: if never { "never".to_owned() } else { end.clone() },
        stage: status.stages.last().map(|stage| format!("{:?}", stage.action)),
    };
    let blocked = is_blocked.then(|| {
        let until = if never { "it never resets".to_owned() } else { format!("resets {end}") };
        let rest =
            if spent.used() < block_at { ", and the rest is too little for calls that came" } else { "" };
        format!("limit {}: {} of {} used{rest}, {until}", words.limit, words.used, words.of)
    });
    let overrun = (spent.overrun > Amount::ZERO).then(|| {
        // To the last digit: a single call's is often below a cent.
        let more = match unit {
            Unit::Usd => NanoUsd(spent.overrun.0).to_string(),
            Unit::Tokens | Unit::Requests => unit.show(spent.overrun),
        };
        let unit_name = unit.as_str();
        format!("limit {}: calls cost {more} {unit_name} more than was reserved for them", key.limit)
    });
    let tightness = (is_blocked, permille(spent.used(), amount));
    Some(Standing {
        status,
        words,
        tightness,
        enforcement,
        blocked,
        overspent: spent.settled > amount,
        overrun,
    })
}

/// Whether the ledger's *exhausted* that an operator of before was told of holds still. It is not stored: it
/// ends with the ledger's incarnation, and is said again when such a call comes. But it would be withdrawn only
/// if the amount rose or unaccounted money came back: what is settled stays settled while the window lasts.
fn still_exhausted(old: &[LimitStatus], now: &LimitStatus, block: u32) -> bool {
    let same = |old: &&LimitStatus| {
        let LimitStatus { name, window, amount, unaccounted, .. } = old;
        (name, window, amount, unaccounted) == (&now.name, &now.window, &now.amount, &now.unaccounted)
    };
    let blocks = |stage: &Stage| stage.action == Action::Block && stage.percent == block;
    old.iter().find(same).is_some_and(|old| old.stages.iter().any(blocks))
}

/// The stages that an account with so much `used` has reached, ascending, with the Block at 100 percent that is
/// always there. `exhausted`: the ledger refuses.
fn reached(stages: &[Stage], used: Amount, exhausted: bool, amount: Amount) -> Vec<Stage> {
    let block = block_percent(stages);
    let always = Stage { trigger: Trigger::Used, percent: 100, action: Action::Block };
    let mut all: Vec<Stage> = stages.to_vec();
    if !all.contains(&always) {
        all.push(always);
    }
    let used = i128::from(used.0) * 100;
    all.retain(|stage| {
        // The last calls may not fit although less is used: the ledger's no is what blocks.
        let refused = exhausted && stage.action == Action::Block && stage.percent == block;
        refused || used >= i128::from(amount.0) * i128::from(stage.percent)
    });
    all.sort_by_key(|stage| (stage.percent, stage.action == Action::Block));
    all
}

/// With one decimal, rounded down, so that 100.0 means all of it.
fn percent(used: Amount, amount: Amount) -> String {
    let permille = permille(used, amount);
    format!("{}.{}", permille / 10, (permille % 10).abs())
}

fn permille(used: Amount, amount: Amount) -> i128 {
    match amount.0 {
        0 => 1000,
        amount => i128::from(used.0) * 1000 / i128::from(amount),
    }
}

fn within(limits: &[Standing]) -> Draft {
    if limits.is_empty() {
        return Draft::new("WithinBudget", true, "NotInForce", "no limit is in force; see Stalled");
    }
    let blocked: Vec<&Standing> = limits.iter().filter(|standing| standing.blocked.is_some()).collect();
    // DESIGN I1: what can break the promise is named, also while there is room.
    let overruns = limits.iter().filter(|standing| standing.enforcement == Enforcement::Enforce);
    let overruns = overruns.filter_map(|standing| standing.overrun.clone()).collect::<Vec<_>>().join("; ");
    let Some(first) = blocked.first() else {
        if overruns.is_empty() {
            return Draft::new("WithinBudget", true, "WithinBudget", "every limit has room");
        }
        return Draft::new("WithinBudget", true, "Overrun", format!("every limit has room; {overruns}"));
    };
    let what = blocked.iter().filter_map(|standing| standing.blocked.clone()).collect::<Vec<_>>().join("; ");
    let effect = match first.enforcement {
        Enforcement::Enforce => "calls are refused",
        Enforcement::Observe => "calls pass (enforcement: Observe)",
    };
    let overspent = |standing: &&Standing| standing.overspent && standing.enforcement == Enforcement::Enforce;
    let is_overspent = blocked.iter().any(overspent);
    let message = match (is_overspent, overruns.is_empty()) {
        (true, true) => {
            format!("{what}; {effect}. The amount fell below what was spent, or the ledger lost commits.")
        }
        (false, true) => format!("{what}; {effect}"),
        (_, false) => format!("{what}; {effect}; {overruns}"),
    };
    let reason = if is_overspent { "Overrun" } else { "BudgetExceeded" };
    Draft::new("WithinBudget", false, reason, message)
}

fn enforced(
    this: &BudgetPlan,
    limits: &[Standing],
    rollout: &Rollout<'_>,
    again: Option<Draft>,
    applied: &Applied,
) -> Draft {
    let no = |reason: &str, message: String| Draft::new("Enforced", false, reason, message);
    if this.limits.is_empty() {
        return no("NotInForce", "it can't be enforced; see Stalled".to_owned());
    }
    if limits.iter().any(|standing| standing.enforcement == Enforcement::Observe) {
        return no(
            "Observing",
            "calls are counted, none is refused (enforcement or mode: Observe)".to_owned(),
        );
    }
    if let Some(trouble) = &applied.trouble {
        return no(&trouble.reason, trouble.message.clone());
    }
    if let Some(again) = again {
        return again;
    }
    match rollout.trouble() {
        Some((reason, message)) => no(reason, message),
        None if !this.problems.is_empty() => {
            let message = "every gateway enforces the version before; see Stalled";
            Draft::new("Enforced", true, "PredecessorEnforced", message)
        }
        None => Draft::new("Enforced", true, "Enforced", "every gateway enforces it"),
    }
}

fn word<'a>(key: &PolicyKey, this: &BudgetPlan, gateway: &'a Gateway) -> Word<'a> {
    let word = policy(gateway, key);
    // A window's body changes with the time; which version a gateway has is no news about this budget.
    let lacks = |limit: &LimitKey| gateway.lacks.get(&PolicyKey::Window(limit.window.clone()));
    let no_window = || this.limits.iter().any(|(limit, _)| lacks(limit) == Some(&Instead::Nothing));
    match word {
        Word::Holds if !gateway.lacks.is_empty() && no_window() => {
            Word::Lags(Lag::of(gateway.ledger, Instead::Nothing))
        }
        word => word,
    }
}

/// Whether every model that a call of this budget can reach has a price.
fn price_known(name: &ObjectName, budget: &AIBudget, plan: &Plan) -> Draft {
    let known =
        || Draft::new("PriceKnown", true, "PriceKnown", "every model that it can be charged for has a price");
    // Nearly always nothing is unpriced, and 10,000 budgets ask.
    if plan.backends.values().all(|backend| backend.unpriced.is_empty()) {
        return known();
    }
    let Some(Ok(Body::Budget(body))) =
        plan.policy.get(&PolicyKey::Budget(name.clone())).map(|object| object.decode())
    else {
        return known();
    };
    let unpriced = plan.backends.iter().flat_map(|(name, backend)| {
        let allowed = backend.allowed.iter();
        allowed.flat_map(move |allowed| backend.unpriced.iter().map(move |model| (name, allowed, model)))
    });
    let mut found =
        unpriced.filter(|(backend, allowed, model)| reaches(&body, plan, backend, allowed, model));
    let Some((backend, _, model)) = found.next() else { return known() };
    let others = match found.count() {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    };
    let effect = match budget.spec.unpriced {
        Unpriced::Deny => "calls are refused (unpriced: Deny)",
        Unpriced::Allow => "calls are charged 0 (unpriced: Allow)",
    };
    let message =
        format!("{model} on ModelBackend {backend}{others} has no price; {effect}. Add spec.models[].price.");
    Draft::new("PriceKnown", false, "ModelUnpriced", message)
}

fn reaches(body: &Budget, plan: &Plan, backend: &ObjectName, allowed: &Namespaces, model: &str) -> bool {
    let named = body.models.as_ref().is_none_or(|models| models.iter().any(|pattern| pattern.matches(model)));
    if !named || !overlap(&body.namespaces, allowed) {
        return false;
    }
    let Some(routes) = &body.routes else { return true };
    plan.routes.iter().any(|(route, this)| {
        routes.iter().any(|pattern| pattern.matches(&route.name))
            && this.serves.iter().any(|(serving, served)| serving == backend && served == model)
    })
}

fn overlap(one: &Namespaces, other: &Namespaces) -> bool {
    match (one, other) {
        (Namespaces::All, Namespaces::All) => true,
        (Namespaces::All, Namespaces::Only(some)) | (Namespaces::Only(some), Namespaces::All) => {
            !some.is_empty()
        }
        (Namespaces::Only(some), Namespaces::Only(others)) => !some.is_disjoint(others),
    }
}
