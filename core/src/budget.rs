//! The matching index: which budgets a call is charged to.
//!
//! Each budget stands under its most selective literals, one with prefixes or nothing in a short list
//! per namespace; a call looks up each of its own values, then checks what it found. The answer equals
//! that of asking every budget (a property test says so), in the time of a few look-ups.

use crate::account::LimitKey;
use crate::ids::ObjectName;
use crate::policy::{Budget, Namespaces, Pattern};
use crate::postings::{Postings, hash};
use std::sync::Arc;

/// What a call is matched by; `(none)` where it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits<'a> {
    /// The call's namespace.
    pub namespace: &'a str,
    /// The feature.
    pub feature: &'a str,
    /// The raw user id.
    pub user: &'a str,
    /// The `ModelRoute`'s name; empty where a backend's model answers under its own name.
    pub route: &'a str,
    /// The model as sent upstream.
    pub model: &'a str,
}

/// A budget in force.
#[derive(Debug)]
pub struct BudgetEntry {
    /// Its name.
    pub name: ObjectName,
    /// What it says.
    pub body: Budget,
    /// The keys of its limits, in its order.
    pub limits: Vec<LimitKey>,
}

impl BudgetEntry {
    /// The budget `name`.
    #[must_use]
    pub fn new(name: ObjectName, body: Budget) -> Self {
        let limits = body.limits.iter().map(|limit| limit.key(&name)).collect();
        Self { name, body, limits }
    }

    /// Whether a call with these traits is charged to it.
    #[must_use]
    pub fn matches(&self, call: &Traits<'_>) -> bool {
        let Budget {
            namespaces,
            features,
            users,
            routes,
            models,
            limits: _,
            enforcement: _,
            unpriced: _,
            contact: _,
        } = &self.body;
        let any = |patterns: &Option<Vec<Pattern>>, value: &str| match patterns {
            None => true,
            Some(patterns) => patterns.iter().any(|pattern| pattern.matches(value)),
        };
        namespaces.contains(call.namespace)
            && any(features, call.feature)
            && any(users, call.user)
            // A call without a route is of no route: a pattern, were it `*`, does not match it.
            && (routes.is_none() || !call.route.is_empty() && any(routes, call.route))
            && any(models, call.model)
    }
}

/// Most selective first: of two that are equally crowded the earlier is taken.
const DIMENSIONS: [Dimension; 4] = [Dimension::User, Dimension::Feature, Dimension::Route, Dimension::Model];

#[derive(Clone, Copy)]
enum Dimension {
    User,
    Feature,
    Route,
    Model,
}

impl Dimension {
    fn tag(self) -> &'static str {
        match self {
            Self::User => "u",
            Self::Feature => "f",
            Self::Route => "r",
            Self::Model => "m",
        }
    }

    fn patterns(self, budget: &Budget) -> Option<&Vec<Pattern>> {
        match self {
            Self::User => budget.users.as_ref(),
            Self::Feature => budget.features.as_ref(),
            Self::Route => budget.routes.as_ref(),
            Self::Model => budget.models.as_ref(),
        }
    }

    fn value<'a>(self, call: &Traits<'a>) -> &'a str {
        match self {
            Self::User => call.user,
            Self::Feature => call.feature,
            Self::Route => call.route,
            Self::Model => call.model,
        }
    }

    /// The literals, where there is nothing else.
    fn literals(self, budget: &Budget) -> Option<Vec<&str>> {
        self.patterns(budget)?
            .iter()
            .map(|pattern| match pattern {
                Pattern::Literal(literal) => Some(literal.as_str()),
                Pattern::Prefix(_) => None,
            })
            .collect()
    }
}

/// The namespace part of a budget that stands under any: no namespace is named so.
const ANY: &str = "";

/// More postings than this for one budget are worth less than a longer list.
const MOST_POSTINGS: usize = 256;

/// The budgets, to be found by what they match.
#[derive(Clone, Debug, Default)]
pub struct BudgetIndex {
    postings: Postings<BudgetEntry>,
}

impl BudgetIndex {
    /// Adds a budget. The keys that it stands under are returned: [`BudgetIndex::remove`] wants them.
    pub(crate) fn insert(&mut self, budget: &Arc<BudgetEntry>) -> Vec<u64> {
        let namespaces: Vec<&str> = match &budget.body.namespaces {
            Namespaces::Only(names) if names.len() <= MOST_POSTINGS => {
                names.iter().map(String::as_str).collect()
            }
            Namespaces::Only(_) | Namespaces::All => vec![ANY],
        };
        let under = |namespace: &str, dimension: Dimension, literal: &str| {
            hash(&[namespace, dimension.tag(), literal])
        };
        let candidates = DIMENSIONS.into_iter().filter_map(|dimension| {
            let literals = dimension.literals(&budget.body)?;
            let namespaces =
                if namespaces.len() * literals.len() <= MOST_POSTINGS { &namespaces[..] } else { &[ANY] };
            let keys: Vec<u64> = namespaces
                .iter()
                .flat_map(|namespace| literals.iter().map(|literal| under(namespace, dimension, literal)))
                .collect();
            let crowd = keys.iter().map(|key| self.postings.get(*key).len()).max()?;
            Some((crowd, keys))
        });
        let keys = candidates.min_by_key(|(crowd, _)| *crowd).map_or_else(
            || namespaces.iter().map(|namespace| hash(&[namespace])).collect(),
            |(_, keys)| keys,
        );
        for key in &keys {
            self.postings.insert(*key, budget);
        }
        keys
    }

    /// Takes a budget out of the keys that it stands under.
    pub(crate) fn remove(&mut self, budget: &Arc<BudgetEntry>, keys: &[u64]) {
        for key in keys {
            self.postings.remove(*key, budget);
        }
    }

    /// The budgets that match, each once.
    pub fn matching<'s>(&'s self, call: &Traits<'_>, mut found: impl FnMut(&'s Arc<BudgetEntry>)) {
        // A budget stands under one dimension, and there under its namespaces or under any: a call finds it
        // once, unless two of the call's keys have one hash. Then it looks there once.
        let mut looked = [0; 2 * (1 + DIMENSIONS.len())];
        let mut keys = 0;
        for namespace in [call.namespace, ANY] {
            let values =
                DIMENSIONS.map(|dimension| hash(&[namespace, dimension.tag(), dimension.value(call)]));
            for key in [hash(&[namespace])].into_iter().chain(values) {
                if looked[..keys].contains(&key) {
                    continue;
                }
                looked[keys] = key;
                keys += 1;
                self.postings.get(key).iter().filter(|budget| budget.matches(call)).for_each(&mut found);
            }
        }
    }
}
