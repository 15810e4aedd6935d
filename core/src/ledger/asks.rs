//! Who gets what: asks in order of arrival, refills, sizes, recalls, noes.
//!
//! Everything here is granted out of what [`super::Rows::standing`] leaves; nothing else may grant.

use super::{Draft, Ledger, Out, Rows, StreamId};
use crate::account::{AccountKey, Amount, LimitKey};
use crate::ids::{Epoch, UnixMs};
use crate::policy::Enforcement;
use crate::protocol::{Ask, Need, No, NoKind};
use crate::window::{LATE_MS, WindowSpec};
use std::collections::{BTreeMap, BTreeSet};

/// An account is small while less than this many worst cases of all gateways are left.
const SMALL: i64 = 50;

/// How large a slice should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub size: Amount,
    pub small: bool,
}

/// An account's window, as the ledger's clock sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub end: UnixMs,
    open: bool,
}

impl Window {
    /// Its specification means nothing here: nothing is granted, and it never ends.
    const UNKNOWN: Self = Self { end: UnixMs::NEVER, open: false };
}

enum Verdict {
    /// Every need is covered.
    Met,
    /// Something may still come back.
    Wait,
    /// Not in this window.
    No(No),
}

impl Ledger {
    /// What can be granted of `account`.
    fn ungranted(&self, account: &AccountKey, rows: &Rows) -> Amount {
        self.block_at(account).minus(rows.standing(account).committed())
    }

    /// The size of `epoch`'s slice: `max(4·w_max, rate × rideThrough)`, at most `remaining / 1.25N`; of a small
    /// account a share of what nobody holds. `least` is what it must cover at once.
    pub(super) fn size(&self, account: &AccountKey, epoch: Epoch, least: Amount, rows: &Rows) -> Size {
        let gateways = i128::from(self.live());
        let views = self.slices.get(account);
        // A reserve that can never fit says nothing of those that can.
        let fits = |w: &Amount| *w <= self.block_at(account);
        let w_max = views.into_iter().flat_map(BTreeMap::values).map(|view| view.w_max).filter(fits).max();
        let w_max = w_max.unwrap_or_default();
        let w_max = w_max.max(least);
        let standing = rows.standing(account);
        let remaining = i128::from(self.block_at(account).minus(standing.used()).max(Amount::ZERO).0);
        let small = remaining < i128::from(SMALL) * gateways * i128::from(w_max.0);
        let size = if small {
            i128::from(self.ungranted(account, rows).max(Amount::ZERO).0) / gateways
        } else {
            let rate = self.view(account, epoch).rate;
            let lasting = i128::from(rate.0) * i128::from(self.settings.ride_through_ms) / 1_000;
            lasting.max(4 * i128::from(w_max.0)).min(remaining * 4 / (5 * gateways))
        };
        Size { size: amount(size).max(least), small }
    }

    /// What a grant may add beyond what was asked: up to the size, out of what nobody holds.
    fn surplus(&self, account: &AccountKey, epoch: Epoch, rows: &Rows) -> Amount {
        let Size { size, small } = self.size(account, epoch, Amount::ZERO, rows);
        // A share is of what nobody holds; a size is what it should hold in all.
        let holds = if small { Amount::ZERO } else { rows.held(account, epoch).outstanding() };
        size.minus(holds).min(self.ungranted(account, rows)).max(Amount::ZERO)
    }

    fn grant(&mut self, account: &AccountKey, epoch: Epoch, granted: Amount, rows: &mut Rows, now: UnixMs) {
        if granted > Amount::ZERO {
            let held = rows.held_mut(account, epoch, now);
            held.granted = held.granted.plus(granted);
        }
    }

    /// A slice that runs low gets its surplus, unless somebody waits there.
    pub(super) fn refill(
        &mut self,
        stream: StreamId,
        epoch: Epoch,
        account: &AccountKey,
        rows: &mut Rows,
        now: UnixMs,
        out: &mut Out,
    ) {
        if rows.went_back() || self.is_waited_for(account) || !self.window(account, now).open {
            return;
        }
        let surplus = self.surplus(account, epoch, rows);
        if surplus > Amount::ZERO {
            self.grant(account, epoch, surplus, rows, now);
            self.end_recall(account, epoch);
        }
        out.answers.entry(stream).or_default().slices.insert(account.clone());
    }

    fn is_waited_for(&self, account: &AccountKey) -> bool {
        self.asks.values().any(|waiting| waiting.ask.needs.iter().any(|need| need.account == *account))
    }

    /// The account's window, and whether the ledger's clock allows to grant in it: it is not over, nor far ahead.
    pub(super) fn window(&self, account: &AccountKey, now: UnixMs) -> Window {
        let Ok(spec) = account.limit.window.parse::<WindowSpec>() else { return Window::UNKNOWN };
        let bounds = spec.bounds(account.start);
        let ahead = self.settings.ride_through_ms.saturating_add(LATE_MS);
        let soon = || account.start <= now.plus(ahead) || account.start == spec.bounds(now).end;
        let open = bounds.start == account.start && now < bounds.end.plus(LATE_MS) && soon();
        Window { end: bounds.end, open }
    }

    /// Serves asks in order of arrival. An ask that must wait keeps later ones off its accounts.
    pub(super) fn serve_asks(&mut self, rows: &mut Rows, now: UnixMs, out: &mut Out) {
        let mut claimed: BTreeSet<AccountKey> = BTreeSet::new();
        let mut served: Vec<(StreamId, Epoch, Ask)> = Vec::new();
        // Calendars are slow beside the rest, and many asks wait on few accounts.
        let accounts = self.asks.values().flat_map(|waiting| &waiting.ask.needs).map(|need| &need.account);
        let windows: BTreeMap<AccountKey, Window> = accounts
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|key| (key.clone(), self.window(key, now)))
            .collect();
        for place in self.asks.keys().copied().collect::<Vec<_>>() {
            let waiting = self.asks[&place].clone();
            let verdict = self.judge(&waiting.ask, &claimed, &windows, waiting.until, rows, now);
            if let Verdict::Wait = verdict {
                claimed.extend(waiting.ask.needs.into_iter().map(|need| need.account));
                continue;
            }
            self.drop_ask(waiting.epoch, waiting.ask.id);
            let draft = out.answers.entry(waiting.stream).or_default();
            match verdict {
                Verdict::Wait => {}
                Verdict::Met => {
                    draft.earmarks.push(waiting.ask.id);
                    for Need { account, reserve, short } in &waiting.ask.needs {
                        self.grant(account, waiting.epoch, *short, rows, now);
                        let view = self.view_mut(account, waiting.epoch);
                        view.w_max = view.w_max.max(*reserve);
                    }
                    served.push((waiting.stream, waiting.epoch, waiting.ask));
                }
                Verdict::No(no) => self.refuse(draft, waiting.epoch, no),
            }
        }
        // Surplus only when every ask has had its turn, and only where nobody waits.
        for (stream, epoch, ask) in served {
            for Need { account, .. } in ask.needs {
                if !claimed.contains(&account) {
                    let surplus = self.surplus(&account, epoch, rows);
                    if surplus > Amount::ZERO {
                        self.grant(&account, epoch, surplus, rows, now);
                        self.end_recall(&account, epoch);
                    }
                }
                out.answers.entry(stream).or_default().slices.insert(account);
            }
        }
    }

    fn judge(
        &self,
        ask: &Ask,
        claimed: &BTreeSet<AccountKey>,
        windows: &BTreeMap<AccountKey, Window>,
        until: UnixMs,
        rows: &Rows,
        now: UnixMs,
    ) -> Verdict {
        let mut exhausted: Option<(UnixMs, No)> = None;
        let mut short: Option<(UnixMs, No)> = None;
        let mut met = !self.went_back;
        for Need { account, reserve, short: missing } in &ask.needs {
            let standing = rows.standing(account);
            let used = standing.used();
            let Window { end, open } = windows.get(account).copied().unwrap_or(Window::UNKNOWN);
            let no = |kind| No { ask: ask.id, account: account.clone(), kind, reserve: *reserve, used };
            let enforced = self
                .limits
                .get(&account.limit)
                .is_some_and(|terms| terms.enforcement == Enforcement::Enforce);
            // Where nothing is enforced it can't be said that nothing is left: the gateway's policy is behind, or ahead.
            if (enforced && used.plus(*reserve) > self.block_at(account)) || now >= end.plus(LATE_MS) {
                // It holds for every reserve that is more than what is left: said so, nobody asks again.
                let least = self.block_at(account).minus(used).max(Amount::ZERO).plus(Amount(1));
                let refused = No { reserve: least.min(*reserve), ..no(NoKind::Exhausted) };
                keep_latest(&mut exhausted, end, refused);
            }
            let covered = !claimed.contains(account)
                && open
                && (*missing <= Amount::ZERO || self.ungranted(account, rows) >= *missing);
            if !covered {
                met = false;
                keep_latest(&mut short, end, no(NoKind::Contended));
            }
        }
        if let Some((_, no)) = exhausted {
            return Verdict::No(no);
        }
        if met {
            return Verdict::Met;
        }
        if now < until {
            return Verdict::Wait;
        }
        // Nothing may be granted at all (the ledger went back): any of its accounts is named.
        let first = ask.needs.first().map(|need| No {
            ask: ask.id,
            account: need.account.clone(),
            kind: NoKind::Contended,
            reserve: need.reserve,
            used: rows.standing(&need.account).used(),
        });
        match short.map(|(_, no)| no).or(first) {
            Some(no) => Verdict::No(no),
            None => Verdict::Met,
        }
    }

    fn refuse(&mut self, draft: &mut Draft, epoch: Epoch, no: No) {
        if no.kind == NoKind::Exhausted {
            let told =
                self.exhausted.entry(no.account.clone()).or_default().entry(epoch).or_insert(no.reserve);
            *told = (*told).min(no.reserve);
        }
        draft.noes.push(no);
    }

    /// Recalls what others hold of accounts on which asks wait or whose amount fell below what is given out.
    pub(super) fn recall(&mut self, rows: &Rows, out: &mut Out) {
        let mut wanted: BTreeMap<AccountKey, Option<Epoch>> = BTreeMap::new();
        for waiting in self.asks.values() {
            for need in &waiting.ask.needs {
                // What the first asker's own slice has is counted to it already.
                wanted.entry(need.account.clone()).or_insert(Some(waiting.epoch));
            }
        }
        let fallen = std::mem::take(&mut self.fallen);
        let over = |account: &AccountKey| self.ungranted(account, rows) < Amount::ZERO;
        let over: Vec<AccountKey> = rows
            .balances
            .keys()
            .filter(|account| rows.changed_balances.contains(*account) || fallen.contains(&account.limit))
            .filter(|account| over(account))
            .cloned()
            .collect();
        for account in over {
            wanted.insert(account, None);
        }
        let by_epoch: BTreeMap<Epoch, StreamId> =
            self.streams.iter().map(|(id, stream)| (stream.epoch, *id)).collect();
        for (account, first) in wanted {
            let Some(balance) = rows.balances.get(&account) else { continue };
            for (epoch, held) in &balance.held {
                let Some(stream) = by_epoch.get(epoch) else { continue };
                if Some(*epoch) == first || held.outstanding() == Amount::ZERO {
                    continue;
                }
                let view = self.view_mut(&account, *epoch);
                if !view.recalled {
                    (view.recall, view.recalled) = (view.recall + 1, true);
                    out.answers.entry(*stream).or_default().slices.insert(account.clone());
                }
            }
        }
    }

    /// A grant with surplus ends a recall.
    fn end_recall(&mut self, account: &AccountKey, epoch: Epoch) {
        let view = self.view_mut(account, epoch);
        if view.recalled {
            (view.recall, view.recalled) = (view.recall + 1, false);
        }
    }

    /// Takes back every *exhausted* that no longer holds.
    pub(super) fn withdraw_noes(&mut self, changed: &BTreeSet<LimitKey>, rows: &Rows, out: &mut Out) {
        let by_epoch: BTreeMap<Epoch, StreamId> =
            self.streams.iter().map(|(id, stream)| (stream.epoch, *id)).collect();
        let mut kept = std::mem::take(&mut self.exhausted);
        kept.retain(|account, told| {
            // Only what this step has read can have changed; an account that was never granted has no
            // balance to read, but its amount may have risen.
            if !rows.balances.contains_key(account) && !changed.contains(&account.limit) {
                return true;
            }
            let (used, block_at) = (rows.standing(account).used(), self.block_at(account));
            told.retain(|epoch, reserve| {
                let holds = used.plus(*reserve) > block_at;
                if !holds && let Some(stream) = by_epoch.get(epoch) {
                    out.answers.entry(*stream).or_default().withdrawals.insert(account.clone());
                }
                holds
            });
            !told.is_empty()
        });
        self.exhausted = kept;
    }
}

fn keep_latest(kept: &mut Option<(UnixMs, No)>, end: UnixMs, no: No) {
    if kept.as_ref().is_none_or(|(latest, _)| end > *latest) {
        *kept = Some((end, no));
    }
}

fn amount(value: i128) -> Amount {
    Amount(i64::try_from(value).unwrap_or(i64::MAX))
}
