//! What the declared limits allowed, and since when: what the summary judges by.

use anyhow::bail;
use plimsoll::source::manifest;
use plimsoll_api::Object;
use plimsoll_core::account::{Amount, LimitKey};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::judge::Amounts;
use plimsoll_core::ledger::Terms;
use plimsoll_core::policy::Enforcement;
use plimsoll_plan::{Planner, World};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How long a change may be on its way from the API server to gateways, in milliseconds; meanwhile the terms
/// before it may be in force, or those after it.
const ON_ITS_WAY: i64 = 250;

/// All terms of all limits, the latest last.
pub struct History {
    planner: Planner,
    terms: BTreeMap<LimitKey, Vec<(UnixMs, Terms)>>,
}

impl History {
    /// Begins with what `manifests` declare.
    pub fn new(manifests: &[String]) -> anyhow::Result<Self> {
        let mut history = Self { planner: Planner::new(World::default()), terms: BTreeMap::new() };
        for entry in manifests.iter().flat_map(|text| manifest::read(text)) {
            match entry.object {
                Ok(object) => history.planner.put(object),
                Err(wrong) => bail!("examples, line {}: {wrong:?}", entry.line),
            }
        }
        history.note(UnixMs(i64::MIN));
        Ok(history)
    }

    /// The API server told at `seen` that `object` is declared.
    pub fn learn(&mut self, object: Object, seen: UnixMs) {
        self.planner.put(object);
        self.note(seen);
    }

    fn note(&mut self, seen: UnixMs) {
        self.planner.replan(UnixMs(0));
        for (limit, terms) in &self.planner.plan().limits {
            let all = self.terms.entry(limit.clone()).or_default();
            if all.last().is_none_or(|(_, last)| last != terms) {
                all.push((seen, *terms));
            }
        }
    }

    /// The amounts of `limit` that were enforced at any of `times`: the latest, and the highest. None if it
    /// was not enforced then.
    pub fn amounts_at(&self, limit: &LimitKey, times: &RangeInclusive<UnixMs>) -> Option<(Amount, Amount)> {
        let all = self.terms.get(limit)?;
        let ends = all.iter().skip(1).map(|(seen, _)| UnixMs(seen.0.saturating_add(ON_ITS_WAY)));
        let spans = all.iter().zip(ends.chain([UnixMs::NEVER]));
        let overlap = spans.filter(|((seen, _), end)| {
            seen.0.saturating_sub(ON_ITS_WAY) <= times.end().0 && end >= times.start()
        });
        let enforced = overlap.filter(|((_, terms), _)| terms.enforcement == Enforcement::Enforce);
        let amounts: Vec<Amount> = enforced.map(|((_, terms), _)| terms.amount).collect();
        Some((*amounts.last()?, *amounts.iter().max()?))
    }

    /// What refusals are judged by.
    pub fn amounts(&self) -> Amounts {
        let block_at = self.terms.iter().map(|(limit, all)| {
            let enforced = all.iter().filter(|(_, terms)| terms.enforcement == Enforcement::Enforce);
            let lines =
                enforced.map(|(seen, terms)| (UnixMs(seen.0.saturating_add(ON_ITS_WAY)), terms.block_at));
            (limit.clone(), lines.collect())
        });
        Amounts { block_at: block_at.collect(), unaccounted: BTreeMap::new() }
    }
}
