//! What gateways say, and what it changes: greetings, totals, rows, asks, silence.
//!
//! Who is served of it stands in [`super::asks`].

use super::{Held, Ledger, Out, Rows, SliceView, Stream, StreamId, Terms, Touched, Waiting};
use crate::account::{AccountKey, Amount, LimitKey};
use crate::gateway::PAUSE_MS;
use crate::ids::{Epoch, UnixMs};
use crate::ledger::EpochState;
use crate::protocol::{
    Ask, AskId, FromGateway, FromLedger, Hello, Holding, Need, No, NoKind, Report, Totals, UsageRow, Welcome,
};
use crate::window::WindowSpec;
use std::collections::{BTreeMap, BTreeSet};

/// Asks of one gateway that may wait at once: each step looks at all of them. At 2,000 requests a second that
/// all pause, five seconds' worth.
const MOST_ASKS: usize = 10_000;
/// *Contended* must reach the gateway before its own patience ends.
const ANSWER_AHEAD_MS: i64 = 300;

impl Ledger {
    pub(super) fn touched_by(
        &self,
        stream: StreamId,
        said: &FromGateway,
        limits: &BTreeMap<LimitKey, Terms>,
        touched: &mut Touched,
    ) {
        match said {
            FromGateway::Hello(hello) => {
                touched.epochs.insert(hello.epoch);
                touched.all_of.insert(hello.epoch);
                touched.all_of_gateways.insert(hello.gateway.clone());
                touched.accounts.extend(hello.totals.iter().map(|totals| totals.account.clone()));
            }
            FromGateway::Report(report) => {
                touched.accounts.extend(report.totals.iter().map(|totals| totals.account.clone()));
                touched.accounts.extend(report.refills.iter().cloned());
                // Those of rows too: a row that cost nothing moves no totals.
                touched.accounts.extend(report.rows.iter().flat_map(|row| row.accounts.iter().cloned()));
                touched.accounts.extend(report.rows.iter().flat_map(|row| observed_accounts(row, limits)));
            }
            FromGateway::Ask(ask) => {
                touched.accounts.extend(ask.needs.iter().map(|need| need.account.clone()))
            }
            FromGateway::Close => touched.all_of.extend(self.streams.get(&stream).map(|stream| stream.epoch)),
            FromGateway::Cancel(_) | FromGateway::Decisions(_) | FromGateway::PolicyAck(_) => {}
        }
    }

    pub(super) fn hear(
        &mut self,
        stream: StreamId,
        said: &FromGateway,
        rows: &mut Rows,
        now: UnixMs,
        out: &mut Out,
    ) {
        if let FromGateway::Hello(hello) = said {
            self.greet(stream, hello, rows, now, out);
            return;
        }
        // A stream that no longer speaks for its gateway, or never did, changes nothing.
        let Some(Stream { epoch, .. }) = self.streams.get(&stream).cloned() else { return };
        match said {
            FromGateway::Hello(_) | FromGateway::PolicyAck(_) => {}
            FromGateway::Report(report) => {
                self.take_report(epoch, report, rows, now);
                let draft = out.answers.entry(stream).or_default();
                for totals in &report.totals {
                    // It has not heard of a grant or a recall: the message was lost, or is under way.
                    let view = self.view(&totals.account, epoch);
                    if totals.granted < rows.held(&totals.account, epoch).granted
                        || totals.recall_seen < view.recall
                    {
                        draft.slices.insert(totals.account.clone());
                    }
                }
                for account in &report.refills {
                    self.refill(stream, epoch, account, rows, now, out);
                }
            }
            FromGateway::Ask(ask) => {
                if !self.take_ask(stream, epoch, ask, now) {
                    out.answers.entry(stream).or_default().noes.extend(too_many(ask, rows));
                }
            }
            FromGateway::Cancel(id) => self.drop_ask(epoch, *id),
            FromGateway::Decisions(decisions) => {
                rows.decisions.extend(decisions.iter().map(|decision| (epoch, decision.clone())));
            }
            FromGateway::Close => {
                rows.fold(epoch);
                self.silence(stream);
            }
        }
    }

    fn greet(&mut self, stream: StreamId, hello: &Hello, rows: &mut Rows, now: UnixMs, out: &mut Out) {
        let Hello { gateway, epoch, log: _, totals, sequence: _, policy: _ } = hello;
        if let Some(older) = self.speakers.get(gateway).copied() {
            self.silence(older);
        }
        let refuse = |ledger: &Self| {
            let holdings = Vec::new();
            let welcome = Welcome { holdings, epoch_closed: true, ..ledger.blank_welcome(false, now) };
            (stream, FromLedger::Welcome(welcome))
        };
        if rows.epochs.get(epoch).is_some_and(|record| record.state == EpochState::Closed) {
            out.first.push(refuse(self));
            return;
        }
        // A gateway has one life at a time: its other epochs left logs that prove nothing.
        let dead = |(other, record): (&Epoch, &super::EpochRecord)| {
            (other != epoch && record.gateway == *gateway && record.state != EpochState::Closed)
                .then_some(*other)
        };
        let dead: Vec<Epoch> = rows.epochs.iter().filter_map(dead).collect();
        for epoch in dead {
            rows.fold(epoch);
            self.forget_epoch(epoch);
        }
        let record = rows.epoch_mut(*epoch);
        record.gateway.clone_from(gateway);
        (record.state, record.undeclared) = (EpochState::Live, false);
        record.heard = now;
        let durable = record.through;
        self.streams.insert(stream, Stream { gateway: gateway.clone(), epoch: *epoch });
        self.speakers.insert(gateway.clone(), stream);
        let mut unknown = false;
        for totals in totals {
            // Of what was folded nothing is compared: that it is not there is no loss.
            if rows.is_folded(&totals.account, *epoch, now) {
                continue;
            }
            let known = rows.held(&totals.account, *epoch);
            unknown |= totals.granted > known.granted || totals.settled > known.settled;
            self.take_totals(*epoch, totals, rows, now);
        }
        if unknown {
            // Commits that were answered are gone: others may hold what we no longer know of. Those too that had
            // declared themselves before this life, after an earlier loss: this may be another.
            rows.go_back(|epoch| self.streams.values().any(|stream| stream.epoch == *epoch));
        }
        // What the Welcome leaves out must be folded: a gateway that starts again counts it from nothing.
        rows.fold_ended(now);
        let holdings = rows.balances.iter().filter_map(|(account, balance)| {
            let held = balance.held.get(epoch)?;
            Some(Holding {
                account: account.clone(),
                granted: held.granted,
                returned: held.returned,
                settled: held.settled,
            })
        });
        let holdings: Vec<Holding> = holdings.collect();
        for holding in &holdings {
            self.view_mut(&holding.account, *epoch);
            out.answers.entry(stream).or_default().slices.insert(holding.account.clone());
        }
        let welcome = Welcome { durable, holdings, ..self.blank_welcome(rows.went_back(), now) };
        out.first.push((stream, FromLedger::Welcome(welcome)));
    }

    fn blank_welcome(&self, went_back: bool, now: UnixMs) -> Welcome {
        Welcome {
            incarnation: self.incarnation,
            now,
            durable: 0,
            holdings: Vec::new(),
            hmac_key: self.settings.hmac_key,
            went_back,
            epoch_closed: false,
        }
    }

    pub(super) fn gone(&mut self, stream: StreamId, rows: &mut Rows, now: UnixMs) {
        if let Some(Stream { epoch, .. }) = self.streams.get(&stream).cloned() {
            if rows.epochs.contains_key(&epoch) {
                rows.epoch_mut(epoch).heard = now;
            }
            self.silence(stream);
        }
    }

    /// The stream no longer speaks for anybody.
    fn silence(&mut self, stream: StreamId) {
        let Some(Stream { gateway, epoch }) = self.streams.remove(&stream) else { return };
        if self.speakers.get(&gateway) == Some(&stream) {
            self.speakers.remove(&gateway);
        }
        self.forget_epoch(epoch);
    }

    fn forget_epoch(&mut self, epoch: Epoch) {
        self.asks.retain(|_, waiting| waiting.epoch != epoch);
        self.asked.retain(|(other, _), _| *other != epoch);
        for views in self.slices.values_mut() {
            views.remove(&epoch);
        }
        self.slices.retain(|_, views| !views.is_empty());
        for told in self.exhausted.values_mut() {
            told.remove(&epoch);
        }
        self.exhausted.retain(|_, told| !told.is_empty());
    }

    fn take_report(&mut self, epoch: Epoch, report: &Report, rows: &mut Rows, now: UnixMs) {
        let Report { totals, rows: settled, after, through, refills: _ } = report;
        let record = rows.epoch_mut(epoch);
        record.heard = now;
        let stored = record.through;
        if *after > stored {
            // A report before this one was lost. What it settled must come with its rows.
            for totals in totals {
                if !rows.is_folded(&totals.account, epoch, now) {
                    let Held { granted, settled, .. } = rows.held(&totals.account, epoch);
                    let returned = totals.returned.min(granted);
                    let known = Totals { granted, returned, settled, ..totals.clone() };
                    self.take_totals(epoch, &known, rows, now);
                }
            }
            return;
        }
        let mut taken = stored;
        let mut sums: BTreeMap<&AccountKey, Amount> = BTreeMap::new();
        for row in settled {
            // Each once, in the order of their sequences: what comes out of order was taken, or is no row of
            // ours.
            if row.settled_sequence <= taken {
                continue;
            }
            taken = row.settled_sequence;
            for account in &row.accounts {
                let sum = sums.entry(account).or_default();
                *sum = sum.plus(row.charge.of(account.limit.unit));
                let over = row.charge.of(account.limit.unit).minus(row.reserve.of(account.limit.unit));
                if over > Amount::ZERO {
                    let balance = rows.balance_mut(account, now);
                    balance.overrun = balance.overrun.plus(over);
                }
            }
            self.observe(epoch, row, rows, now);
            rows.usage.push((epoch, row.clone()));
        }
        rows.epoch_mut(epoch).through = taken.max(*through);
        for totals in totals {
            if rows.is_folded(&totals.account, epoch, now) {
                continue;
            }
            let known = rows.held(&totals.account, epoch);
            let before = known.settled;
            // It can't have been granted more than was committed before it was told.
            let granted = totals.granted.min(known.granted);
            let returned = totals.returned.min(known.granted);
            self.take_totals(epoch, &Totals { granted, returned, ..totals.clone() }, rows, now);
            let moved = rows.held(&totals.account, epoch).settled.minus(before);
            let sum = sums.remove(&totals.account).unwrap_or_default();
            self.mismatches += u64::from(sum != moved);
            if moved < sum {
                // Rows are charged in any case; totals may say more, never less.
                rows.settle(&totals.account, epoch, sum.minus(moved), now);
            }
        }
        for (account, sum) in sums {
            if sum != Amount::ZERO {
                // Rows without totals: the gateway forgot to say what it charged. The rows are believed.
                self.mismatches += u64::from(!rows.is_folded(account, epoch, now));
                rows.settle(account, epoch, sum, now);
            }
        }
        for totals in totals {
            rows.fold_part(&totals.account, epoch, now);
        }
    }

    fn take_totals(&mut self, epoch: Epoch, totals: &Totals, rows: &mut Rows, now: UnixMs) {
        let held = rows.held_mut(&totals.account, epoch, now);
        held.granted = held.granted.max(totals.granted);
        held.returned = held.returned.max(totals.returned);
        held.settled = held.settled.max(totals.settled);
        let SliceView { reserved, rate, w_max, recall: _, recalled: _ } =
            self.view_mut(&totals.account, epoch);
        (*reserved, *rate, *w_max) = (totals.reserved, totals.rate, totals.w_max);
    }

    /// Charges a row to the observing budgets that it names, in the window of its admission.
    fn observe(&self, epoch: Epoch, row: &UsageRow, rows: &mut Rows, now: UnixMs) {
        for account in observed_accounts(row, &self.limits) {
            // Its budget came to observe, or ceased to, while the call waited: it is charged once.
            if row.accounts.contains(&account) {
                continue;
            }
            let charge = row.charge.of(account.limit.unit);
            let used = rows.standing(&account).committed();
            let fits =
                self.limits.get(&account.limit).is_none_or(|terms| used.plus(charge) <= terms.block_at);
            let balance = rows.balance_mut(&account, now);
            balance.settled = balance.settled.plus(charge);
            balance.would_refuse += u64::from(!fits);
            rows.observed.entry((epoch, row.sequence)).or_default().push(account);
        }
    }

    /// Whether there was room for it.
    fn take_ask(&mut self, stream: StreamId, epoch: Epoch, ask: &Ask, now: UnixMs) -> bool {
        let known = (epoch, AskId(u64::MIN))..=(epoch, AskId(u64::MAX));
        let is_full = || self.asks.len() >= MOST_ASKS && self.asked.range(known).count() >= MOST_ASKS;
        if !self.asked.contains_key(&(epoch, ask.id)) && is_full() {
            return false;
        }
        let until = now.plus(ask.wait_ms.clamp(0, PAUSE_MS).saturating_sub(ANSWER_AHEAD_MS).max(0));
        // A renewed ask keeps its place. One that was met in the meantime, with less than it needs by now, stands
        // before those that came to its gateway after it: that gives its slice to the first, so these would wait
        // for what the first gets, and the first, behind them, for them.
        let mut later = self.asked.range((epoch, ask.id)..=(epoch, AskId(u64::MAX)));
        let place = later.next().map_or(self.next_ask, |(_, place)| *place);
        self.next_ask += u64::from(place == self.next_ask);
        self.asked.insert((epoch, ask.id), place);
        self.asks.insert((place, ask.id), Waiting { stream, epoch, ask: ask.clone(), until });
        true
    }

    pub(super) fn drop_ask(&mut self, epoch: Epoch, id: AskId) {
        if let Some(place) = self.asked.remove(&(epoch, id)) {
            self.asks.remove(&(place, id));
        }
    }

    /// Gateways that have been silent too long: what they hold is unaccounted until they say Hello.
    pub(super) fn count_lost(&mut self, rows: &mut Rows, now: UnixMs) {
        // While no ledger served nobody could speak.
        let served_since = *self.served_since.get_or_insert(now);
        let speaking: BTreeSet<Epoch> = self.streams.values().map(|stream| stream.epoch).collect();
        let lost = rows.epochs.iter().filter(|(epoch, record)| {
            record.state == EpochState::Live
                && !speaking.contains(epoch)
                && now.since(record.heard.max(served_since)) > self.settings.lost_after_ms
        });
        for epoch in lost.map(|(epoch, _)| *epoch).collect::<Vec<_>>() {
            rows.epoch_mut(epoch).state = EpochState::Lost;
        }
    }
}

/// Refuses an ask at once: its gateway has as many as it may.
fn too_many(ask: &Ask, rows: &Rows) -> Option<No> {
    let Need { account, reserve, .. } = ask.needs.first()?;
    let (account, used) = (account.clone(), rows.standing(account).used());
    Some(No { ask: ask.id, account, kind: NoKind::Contended, reserve: *reserve, used })
}

/// The accounts of the observing budgets that `row` names, in the windows of its admission.
fn observed_accounts(row: &UsageRow, limits: &BTreeMap<LimitKey, Terms>) -> Vec<AccountKey> {
    let mut accounts = Vec::new();
    for budget in &row.observed {
        let from = LimitKey::new(budget.clone(), String::new(), crate::account::Unit::Usd, String::new());
        let limits = limits.range(from..).take_while(|(key, _)| key.budget == *budget);
        for (limit, _) in limits {
            if let Ok(spec) = limit.window.parse::<WindowSpec>() {
                let start = spec.bounds(row.admitted_at).start;
                accounts.push(AccountKey { limit: limit.clone(), start, key: String::new() });
            }
        }
    }
    accounts
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Settings};
    use super::*;
    use crate::account::Unit;
    use crate::ids::{Incarnation, ObjectName};
    use crate::protocol::LogState;

    fn life(number: u128) -> Ledger {
        let settings = Settings { ride_through_ms: 60_000, lost_after_ms: 600_000, hmac_key: [0; 32] };
        Ledger::new(Incarnation(number), settings)
    }

    /// Says Hello for gateway and epoch `number`, which was granted so much; returns whether commits are lost.
    fn greet(ledger: &mut Ledger, rows: &mut Rows, number: u64, granted: i64) -> bool {
        let limit = ObjectName::new("finance", "all");
        let limit = LimitKey::new(limit, "total".into(), Unit::Usd, "Total@UTC".into());
        let totals = Totals {
            account: AccountKey { limit, start: UnixMs(0), key: String::new() },
            granted: Amount(granted),
            returned: Amount(0),
            settled: Amount(0),
            reserved: Amount(0),
            rate: Amount(0),
            w_max: Amount(1),
            recall_seen: 0,
        };
        let hello = Hello {
            gateway: format!("gw-{number}"),
            epoch: Epoch(number.into()),
            log: LogState::Intact,
            totals: vec![totals],
            sequence: 0,
            policy: vec![],
        };
        ledger.step(&[Event::Said(StreamId(number), FromGateway::Hello(hello))], rows, UnixMs(1));
        rows.went_back()
    }

    #[test]
    fn a_second_loss_before_the_first_is_closed_is_a_loss_of_every_gateway_again() {
        let (mut ledger, mut rows) = (life(1), Rows::default());
        for gateway in [1, 2, 3] {
            assert!(!greet(&mut ledger, &mut rows, gateway, 0));
        }
        // Lost: what the first was granted. It says so; the others have yet to speak.
        let mut ledger = life(2);
        assert!(greet(&mut ledger, &mut rows, 1, 5));
        let backup = rows.clone();
        assert!(greet(&mut ledger, &mut rows, 2, 0));
        assert!(!greet(&mut ledger, &mut rows, 3, 0), "all have spoken");
        // Then each was granted more, and all that is lost again with the backup.
        for order in [[2, 3], [3, 2]] {
            let (mut ledger, mut rows) = (life(3), backup.clone());
            assert!(greet(&mut ledger, &mut rows, order[0], 7));
            assert!(greet(&mut ledger, &mut rows, order[1], 0), "nobody knows what the first holds");
            assert!(!greet(&mut ledger, &mut rows, 1, 9), "all have spoken in this life");
            assert_eq!(rows.balances.values().flat_map(|balance| balance.held.values()).count(), 3);
        }
    }
}
