//! What the declared limits allowed, and since when: what the summary judges by.

use anyhow::bail;
use plimsoll::source::manifest;
use plimsoll_core::account::LimitKey;
use plimsoll_core::ids::UnixMs;
use plimsoll_core::judge::Amounts;
use plimsoll_core::ledger::Terms;
use plimsoll_core::policy::Enforcement;
use plimsoll_plan::{Planner, World};
use std::collections::BTreeMap;

/// All terms of all limits, the latest last.
pub struct History {
    planner: Planner,
    terms: BTreeMap<LimitKey, Vec<Since>>,
}

/// Terms that a change brought. Between its two instants both they and those before may have been in force.
#[derive(Clone, Copy, Debug)]
struct Since {
    asked: UnixMs,
    told: UnixMs,
    terms: Terms,
}

impl History {
    /// Begins with what `manifests` declare.
    pub fn new(manifests: &[String]) -> anyhow::Result<Self> {
        let mut history = Self { planner: Planner::new(World::default()), terms: BTreeMap::new() };
        let ever = UnixMs(i64::MIN);
        manifests.iter().try_for_each(|text| history.learn(text, ever, ever))?;
        Ok(history)
    }

    /// `text` was asked for at one instant, and had been accepted at the other.
    pub fn learn(&mut self, text: &str, asked: UnixMs, told: UnixMs) -> anyhow::Result<()> {
        for entry in manifest::read(text) {
            match entry.object {
                Ok(object) => self.planner.put(object),
                Err(wrong) => bail!("line {} of a manifest: {wrong:?}", entry.line),
            }
        }
        self.planner.replan(UnixMs(0));
        for (limit, terms) in &self.planner.plan().limits {
            let since = self.terms.entry(limit.clone()).or_default();
            if since.last().is_none_or(|last| last.terms != *terms) {
                since.push(Since { asked, told, terms: *terms });
            }
        }
        Ok(())
    }

    /// The latest terms at `now` under which `limit` was enforced.
    pub fn enforced(&self, limit: &LimitKey, now: UnixMs) -> Option<Terms> {
        let all = self.terms.get(limit)?.iter().rev();
        let mut enforced = all.filter(|since| since.terms.enforcement == Enforcement::Enforce);
        enforced.find(|since| since.asked <= now).map(|since| since.terms)
    }

    /// What refusals are judged by. A new amount counts from the moment that the API server's answer was
    /// there: whoever is still refused by the old one, because it is on its way to the gateway, counts as
    /// wrongly refused.
    pub fn amounts(&self) -> Amounts {
        let enforced = |since: &&Since| since.terms.enforcement == Enforcement::Enforce;
        let block_at = self.terms.iter().map(|(limit, all)| {
            let lines = all.iter().filter(enforced).map(|since| (since.told, since.terms.block_at));
            (limit.clone(), lines.collect())
        });
        Amounts { block_at: block_at.collect(), unaccounted: BTreeMap::new() }
    }
}
