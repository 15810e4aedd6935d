//! An `AIBudget` into its policy body and its limits.

use super::selected;
use crate::plan::Problem;
use crate::settings::Settings;
use plimsoll_api::budget::{self as api, AIBudget};
use plimsoll_api::{AIBudgetSpec, Decimal};
use plimsoll_core::account::{Amount, Unit};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{Budget, Enforcement, Limit, Namespaces, Pattern, Verdict};
use plimsoll_core::window::{Period, WindowSpec};
use std::collections::BTreeMap;

/// What gateways should hold of `budget`, and the window of each limit in its order.
///
/// # Errors
/// Everything that is wrong with it; then nothing of it can be in force.
pub fn compile(
    budget: &AIBudget,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
    settings: &Settings,
) -> Result<(Budget, Vec<WindowSpec>), Vec<Problem>> {
    let AIBudgetSpec { match_, limits, stages, enforcement, unpriced, contact } = &budget.spec;
    let own = budget.metadata.namespace.clone().unwrap_or_default();
    let mut problems = Vec::new();
    let api::Match { features, users, routes, models, namespace_selector } =
        match_.clone().unwrap_or_default();
    let is_root = own == settings.root_namespace;
    if namespace_selector.is_some() && !is_root {
        let field = "spec.match.namespaceSelector";
        let root = &settings.root_namespace;
        let message = format!(
            "{field} is allowed only in the root namespace {root}; remove it, or move the budget there"
        );
        problems.push(Problem { reason: "NotInRootNamespace", field: field.to_owned(), message });
    }
    let namespaces = match namespace_selector {
        Some(selector) => selected(&selector, namespaces),
        None if is_root => Namespaces::All,
        None => Namespaces::Only([own].into()),
    };
    let block_percent = block_percent(stages.as_deref().unwrap_or_default());
    let mut windows = Vec::new();
    let mut bodies = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let unit = unit(limit.unit);
        let amount = amount(&limit.amount, unit).map_err(|error| Problem {
            reason: "InvalidAmount",
            field: format!("spec.limits[{index}].amount"),
            message: format!("spec.limits[{index}].amount {error}"),
        });
        let window =
            WindowSpec::new(period(limit.window.period), &limit.window.time_zone).map_err(|error| Problem {
                reason: "InvalidTimeZone",
                field: format!("spec.limits[{index}].window.timeZone"),
                message: format!("spec.limits[{index}].window.timeZone {error}"),
            });
        match (amount, window) {
            (Ok(amount), Ok(window)) => {
                let block_at = share(amount, block_percent);
                bodies.push(Limit {
                    name: limit.name.clone(),
                    unit,
                    window: window.to_string(),
                    amount,
                    block_at,
                });
                windows.push(window);
            }
            (amount, window) => problems.extend([amount.err(), window.err()].into_iter().flatten()),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let patterns = |list: Option<Vec<String>>| list.map(|list| list.into_iter().map(Pattern::from).collect());
    let body = Budget {
        namespaces,
        features: patterns(features),
        users: patterns(users),
        routes: patterns(routes),
        models: patterns(models),
        limits: bodies,
        enforcement: match enforcement {
            api::Enforcement::Enforce => Enforcement::Enforce,
            api::Enforcement::Observe => Enforcement::Observe,
        },
        unpriced: match unpriced {
            api::Unpriced::Deny => Verdict::Deny,
            api::Unpriced::Allow => Verdict::Allow,
        },
        contact: contact.clone(),
    };
    Ok((body, windows))
}

/// Where calls are blocked: the least Block stage, or 100 percent, which is always there.
#[must_use]
pub fn block_percent(stages: &[api::Stage]) -> u32 {
    let blocks = stages.iter().filter(|stage| stage.action == api::Action::Block);
    blocks.map(|stage| stage.percent).min().unwrap_or(100).min(100)
}

/// `percent` of `amount`, rounded down.
fn share(amount: Amount, percent: u32) -> Amount {
    let share = i128::from(amount.0) * i128::from(percent) / 100;
    Amount(i64::try_from(share).unwrap_or(i64::MAX))
}

/// `amount` in the unit's smallest parts.
///
/// # Errors
/// The rest of a sentence that began with the field.
fn amount(amount: &Decimal, unit: Unit) -> Result<Amount, String> {
    let text = amount.to_string();
    match unit {
        Unit::Usd => text.parse::<NanoUsd>().map(|usd| Amount(usd.0)).map_err(|error| error.to_string()),
        Unit::Tokens | Unit::Requests => {
            let whole = text.parse().map(Amount);
            whole
                .map_err(|_| format!("\"{text}\" is not a whole number; {} are counted whole", unit.as_str()))
        }
    }
}

fn unit(unit: api::Unit) -> Unit {
    match unit {
        api::Unit::USD => Unit::Usd,
        api::Unit::Tokens => Unit::Tokens,
        api::Unit::Requests => Unit::Requests,
    }
}

fn period(period: api::Period) -> Period {
    match period {
        api::Period::Minute => Period::Minute,
        api::Period::Hour => Period::Hour,
        api::Period::Day => Period::Day,
        api::Period::Week => Period::Week,
        api::Period::Month => Period::Month,
        api::Period::Quarter => Period::Quarter,
        api::Period::Year => Period::Year,
        api::Period::Total => Period::Total,
    }
}
