//! Paused requests: queues by account, first come first served.
//!
//! A paused request holds nothing. It is marked on the accounts that were short; while an account is
//! marked no newcomer takes from it, so what settles or is granted there goes to the first that waits.

use super::{GATHER_MS, PAUSE_MS, Resumed};
use crate::account::{AccountKey, Amount, Charge, LimitKey};
use crate::ids::UnixMs;
use crate::protocol::{Ask, AskId, Need, No};
use crate::slice::{Reservation, Slice};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// In order of arrival.
    requests: BTreeMap<AskId, Paused>,
    last: u64,
    wakes: Vec<AskId>,
    cancels: Vec<AskId>,
}

#[derive(Debug)]
struct Paused {
    limits: Vec<LimitKey>,
    reserve: Charge,
    parts: Vec<Part>,
    since: UnixMs,
    until: UnixMs,
    /// What the ledger was told; empty: nothing yet on this stream.
    told: Vec<Need>,
    /// When the needs first differed from `told`.
    to_tell: UnixMs,
    outcome: Option<Resumed>,
}

#[derive(Debug)]
struct Part {
    slice: Arc<Slice>,
    reserve: Amount,
    marked: bool,
}

impl Paused {
    fn mark_short(&mut self) {
        for part in &mut self.parts {
            if !part.marked
                && part.reserve > Amount::ZERO
                && (part.slice.free() < part.reserve || part.slice.waits())
            {
                part.slice.mark_waiting();
                part.marked = true;
            }
        }
    }

    fn unmark(&mut self) {
        for part in &mut self.parts {
            if std::mem::take(&mut part.marked) {
                part.slice.unmark_waiting();
            }
        }
    }

    fn set_parts(&mut self, parts: Vec<(Arc<Slice>, Amount)>) {
        self.unmark();
        self.parts =
            parts.into_iter().map(|(slice, reserve)| Part { slice, reserve, marked: false }).collect();
        self.mark_short();
    }

    fn end(&mut self, outcome: Resumed) {
        self.unmark();
        self.outcome = Some(outcome);
    }
}

impl Waiting {
    pub fn push(
        &mut self,
        limits: Vec<LimitKey>,
        reserve: Charge,
        parts: Vec<(Arc<Slice>, Amount)>,
        since: UnixMs,
        now: UnixMs,
    ) -> AskId {
        self.last += 1;
        let id = AskId(self.last);
        let mut paused = Paused {
            limits,
            reserve,
            parts: Vec::new(),
            since,
            until: since.plus(PAUSE_MS),
            told: Vec::new(),
            to_tell: now,
            outcome: None,
        };
        paused.set_parts(parts);
        self.requests.insert(id, paused);
        id
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn resume(&mut self, id: AskId) -> Option<Resumed> {
        match self.requests.get(&id)?.outcome {
            Some(_) => self.requests.remove(&id)?.outcome,
            None => None,
        }
    }

    pub fn give_up(&mut self, id: AskId) {
        let Some(mut paused) = self.requests.remove(&id) else { return };
        paused.unmark();
        match paused.outcome {
            Some(Resumed::Admitted(reservation)) => {
                reservation.release();
            }
            Some(Resumed::No(_) | Resumed::Unanswered) => {}
            None => {
                if !paused.told.is_empty() {
                    self.cancels.push(id);
                }
            }
        }
    }

    /// A new stream has heard nothing yet.
    pub fn begin_stream(&mut self) {
        self.cancels.clear();
        for paused in self.requests.values_mut() {
            paused.told.clear();
        }
    }

    /// The ledger says no.
    pub fn refuse(&mut self, no: &No) {
        if let Some(paused) = self.requests.get_mut(&no.ask)
            && paused.outcome.is_none()
        {
            let part = paused.parts.iter().find(|part| *part.slice.key() == no.account);
            let reserve = part.map_or(no.reserve, |part| part.reserve);
            paused.end(Resumed::No(No { reserve, ..no.clone() }));
            self.wakes.push(no.ask);
        }
    }

    /// The ledger has granted what this ask needs. If the money is gone before it is served, it asks anew.
    pub fn earmarked(&mut self, ask: AskId) {
        if let Some(paused) = self.requests.get_mut(&ask) {
            paused.told.clear();
        }
    }

    /// Drops limits that are not `in_force` from those that wait for them.
    pub fn keep_limits(
        &mut self,
        in_force: impl Fn(&LimitKey) -> bool,
        parts: impl Fn(&[LimitKey], &Charge, UnixMs) -> Option<Vec<(Arc<Slice>, Amount)>>,
    ) {
        for paused in self.requests.values_mut().filter(|paused| paused.outcome.is_none()) {
            if paused.limits.iter().all(&in_force) {
                continue;
            }
            paused.limits.retain(&in_force);
            if let Some(parts) = parts(&paused.limits, &paused.reserve, paused.since) {
                paused.set_parts(parts);
            }
        }
    }

    /// Looks the accounts of every waiting request up again: a new epoch has other slices. What was given to
    /// requests that have not gone on yet came from the old ones, so they wait again.
    pub fn resolve_parts(
        &mut self,
        parts: impl Fn(&[LimitKey], &Charge, UnixMs) -> Option<Vec<(Arc<Slice>, Amount)>>,
    ) {
        for paused in self.requests.values_mut() {
            match paused.outcome.take() {
                None => {}
                Some(Resumed::Admitted(reservation)) => {
                    reservation.release();
                }
                other => {
                    paused.outcome = other;
                    continue;
                }
            }
            if let Some(parts) = parts(&paused.limits, &paused.reserve, paused.since) {
                paused.set_parts(parts);
            }
        }
    }

    /// Ends every pause without an answer.
    pub fn end_all(&mut self) {
        for (id, paused) in &mut self.requests {
            if paused.outcome.is_none() {
                paused.end(Resumed::Unanswered);
                self.wakes.push(*id);
            }
        }
    }

    /// Requests whose window has ended wait on in the next one, at the place that they had.
    pub fn resolve_ended(
        &mut self,
        now: UnixMs,
        parts: impl Fn(&[LimitKey], &Charge) -> Option<Vec<(Arc<Slice>, Amount)>>,
    ) {
        for (id, paused) in &mut self.requests {
            // No window was known for one of its limits, or one has ended.
            let stale = paused.parts.len() != paused.limits.len()
                || paused.parts.iter().any(|part| part.slice.end() <= now);
            if paused.outcome.is_none() && stale {
                if let Some(parts) = parts(&paused.limits, &paused.reserve) {
                    paused.set_parts(parts);
                }
                if !std::mem::take(&mut paused.told).is_empty() {
                    self.cancels.push(*id);
                }
            }
        }
    }

    /// Serves, in order, whom the slices cover now; ends the pauses that are over.
    pub fn serve(&mut self, now: UnixMs) {
        let mut claimed: HashMap<*const Slice, ()> = HashMap::new();
        for (id, paused) in &mut self.requests {
            if paused.outcome.is_some() {
                continue;
            }
            if now >= paused.until {
                if !paused.told.is_empty() {
                    self.cancels.push(*id);
                }
                paused.end(Resumed::Unanswered);
                self.wakes.push(*id);
                continue;
            }
            // Never out of fewer accounts than it must be charged to.
            let whole = paused.parts.len() == paused.limits.len();
            if whole && !paused.parts.iter().any(|part| claimed.contains_key(&Arc::as_ptr(&part.slice))) {
                let parts: Vec<_> =
                    paused.parts.iter().map(|part| (part.slice.clone(), part.reserve)).collect();
                if let Ok(reservation) = Reservation::take(parts) {
                    if !paused.told.is_empty() {
                        self.cancels.push(*id);
                    }
                    paused.end(Resumed::Admitted(reservation));
                    self.wakes.push(*id);
                    continue;
                }
                paused.mark_short();
            }
            claimed.extend(
                paused.parts.iter().filter(|part| part.marked).map(|part| (Arc::as_ptr(&part.slice), ())),
            );
        }
    }

    /// What the ledger must be asked now: new asks, and those whose needs grew or shrank.
    pub fn asks(&mut self, now: UnixMs, is_small: impl Fn(&AccountKey) -> bool) -> Vec<Ask> {
        let mut asks = Vec::new();
        let mut free: HashMap<*const Slice, Amount> = HashMap::new();
        for (id, paused) in &mut self.requests {
            if paused.outcome.is_some() {
                continue;
            }
            let needs: Vec<Need> = paused
                .parts
                .iter()
                .filter(|part| part.marked)
                .map(|part| {
                    // What earlier ones will take of the slice is not there for this one.
                    let left = free.entry(Arc::as_ptr(&part.slice)).or_insert_with(|| part.slice.free());
                    let short = part.reserve.minus((*left).max(Amount::ZERO)).max(Amount::ZERO);
                    // A debt is paid before anybody is served.
                    let short = if *left < Amount::ZERO { short.minus(*left) } else { short };
                    *left = left.minus(part.reserve).max(Amount::ZERO);
                    Need { account: part.slice.key().clone(), reserve: part.reserve, short }
                })
                .collect();
            if needs.is_empty() || needs == paused.told {
                paused.to_tell = now;
                continue;
            }
            let gather = if needs.iter().all(|need| is_small(&need.account)) { GATHER_MS } else { 0 };
            if now.since(paused.to_tell) < gather {
                continue;
            }
            paused.told.clone_from(&needs);
            paused.to_tell = now;
            asks.push(Ask { id: *id, needs, wait_ms: paused.until.since(now) });
        }
        asks
    }

    pub fn cancels(&mut self) -> impl Iterator<Item = AskId> {
        std::mem::take(&mut self.cancels).into_iter()
    }

    pub fn wakes(&mut self) -> Vec<AskId> {
        std::mem::take(&mut self.wakes)
    }

    /// When the next pause or gathering ends.
    pub fn next(&self, now: UnixMs) -> Option<UnixMs> {
        let waiting = self.requests.values().filter(|paused| paused.outcome.is_none());
        waiting
            .map(
                |paused| {
                    if paused.told.is_empty() { now.plus(GATHER_MS).min(paused.until) } else { paused.until }
                },
            )
            .min()
    }
}
