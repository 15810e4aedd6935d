//! The judge: which refusals were wrong, seen afterwards by somebody who knows everything.
//!
//! An oracle for tests, the demo and audits; it takes no part in any decision. A refusal is wrong when, at
//! its answer, the account that refused had room for its reserve: `amount − settled − unaccounted −
//! reserves in flight − reserves of requests that had paused there before it and still waited ≥ reserve`
//! (LEDGER.md, "Judged"). Where a stage blocks below the amount, that line is the amount.
//!
//! All instants are the ledger's, in milliseconds; what happened in the millisecond of the answer counts
//! as before it, so clocks of several gateways should agree to a few milliseconds.

use crate::account::{AccountKey, Amount, LimitKey};
use crate::ids::UnixMs;
use crate::protocol::{Decision, UsageRow};
use std::collections::BTreeMap;

/// What the ledger allowed, and when that changed.
#[derive(Clone, Debug, Default)]
pub struct Amounts {
    /// Where calls are blocked, by limit: each entry holds from its instant on.
    pub block_at: BTreeMap<LimitKey, Vec<(UnixMs, Amount)>>,
    /// What was unaccounted, by account: each entry holds from its instant on.
    pub unaccounted: BTreeMap<AccountKey, Vec<(UnixMs, Amount)>>,
}

impl Amounts {
    /// Amounts that never changed, with nothing unaccounted.
    pub fn constant(limits: impl IntoIterator<Item = (LimitKey, Amount)>) -> Self {
        let since = UnixMs(i64::MIN);
        Self {
            block_at: limits.into_iter().map(|(limit, amount)| (limit, vec![(since, amount)])).collect(),
            unaccounted: BTreeMap::new(),
        }
    }
}

/// A refusal that was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The request.
    pub request_id: String,
    /// The account that refused.
    pub account: AccountKey,
    /// When it was answered.
    pub answered_at: UnixMs,
    /// What it would have reserved there.
    pub reserve: Amount,
    /// What was left there.
    pub left: Amount,
}

/// What the judge found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Judgement {
    /// Refusals in which an account was named.
    pub refused: u64,
    /// Of these, on accounts whose amount is not known: not judged.
    pub unknown: u64,
    /// Of these, the wrong ones, by time.
    pub wrong: Vec<Wrong>,
}

/// One thing that happened to an account.
enum Happening<'a> {
    /// Reserved or settled: what is taken changes by this.
    Taken(Amount),
    /// A request paused; it will wait for this much.
    Paused(UnixMs, Amount),
    /// A request that paused at this instant waits no more.
    Resumed(UnixMs, Amount),
    /// A refusal.
    Refused(&'a Decision),
}

impl Happening<'_> {
    /// Within a millisecond refusals are looked at last.
    fn order(&self) -> u8 {
        match self {
            Self::Taken(_) | Self::Paused(..) | Self::Resumed(..) => 0,
            Self::Refused(_) => 1,
        }
    }
}

/// Judges `decisions` against everything that was admitted. Both may come in any order; decisions must be
/// complete, else requests that waited are missing.
#[must_use]
pub fn judge(rows: &[UsageRow], decisions: &[Decision], amounts: &Amounts) -> Judgement {
    let mut happened: BTreeMap<&AccountKey, Vec<(UnixMs, Happening)>> = BTreeMap::new();
    for decision in decisions {
        // Only accounts that refused somebody need a history.
        if let Some(account) = &decision.account {
            happened.entry(account).or_default().push((decision.answered_at, Happening::Refused(decision)));
        }
    }
    for row in rows {
        for account in &row.accounts {
            let Some(history) = happened.get_mut(account) else { continue };
            let (reserve, charge) = (row.reserve.of(account.limit.unit), row.charge.of(account.limit.unit));
            wait(history, row.paused_at, row.admitted_at, reserve);
            history.push((row.admitted_at, Happening::Taken(reserve)));
            history.push((row.settled_at.max(row.admitted_at), Happening::Taken(charge.minus(reserve))));
        }
    }
    for decision in decisions {
        for account in &decision.accounts {
            let Some(history) = happened.get_mut(account) else { continue };
            let reserve = decision.reserve.of(account.limit.unit);
            wait(history, decision.paused_at, decision.answered_at, reserve);
        }
    }
    let mut judgement = Judgement::default();
    for (account, mut history) in happened {
        history.sort_by_key(|(at, what)| (*at, what.order()));
        judge_account(account, history, amounts, &mut judgement);
    }
    judgement
        .wrong
        .sort_by(|a, b| a.answered_at.cmp(&b.answered_at).then_with(|| a.request_id.cmp(&b.request_id)));
    judgement
}

fn wait(history: &mut Vec<(UnixMs, Happening)>, from: UnixMs, to: UnixMs, reserve: Amount) {
    if from < to {
        history.push((from, Happening::Paused(from, reserve)));
        history.push((to, Happening::Resumed(from, reserve)));
    }
}

fn judge_account(
    account: &AccountKey,
    history: Vec<(UnixMs, Happening)>,
    amounts: &Amounts,
    judgement: &mut Judgement,
) {
    let mut taken = Amount::ZERO;
    let mut waiting: BTreeMap<UnixMs, Amount> = BTreeMap::new();
    for (at, what) in history {
        match what {
            Happening::Taken(change) => taken = taken.plus(change),
            Happening::Paused(since, reserve) => {
                let sum = waiting.entry(since).or_default();
                *sum = sum.plus(reserve);
            }
            Happening::Resumed(since, reserve) => {
                let sum = waiting.entry(since).or_default();
                *sum = sum.minus(reserve);
                if *sum == Amount::ZERO {
                    waiting.remove(&since);
                }
            }
            Happening::Refused(decision) => {
                judgement.refused += 1;
                let Some(amount) =
                    amounts.block_at.get(&account.limit).and_then(|changes| latest(changes, at))
                else {
                    judgement.unknown += 1;
                    continue;
                };
                let unaccounted = amounts.unaccounted.get(account).and_then(|changes| latest(changes, at));
                let before = waiting
                    .range(..decision.paused_at)
                    .fold(Amount::ZERO, |sum, (_, reserve)| sum.plus(*reserve));
                let left = amount.minus(taken).minus(unaccounted.unwrap_or_default()).minus(before);
                let reserve = decision.reserve.of(account.limit.unit);
                if left >= reserve {
                    judgement.wrong.push(Wrong {
                        request_id: decision.request_id.clone(),
                        account: account.clone(),
                        answered_at: at,
                        reserve,
                        left,
                    });
                }
            }
        }
    }
}

fn latest(changes: &[(UnixMs, Amount)], at: UnixMs) -> Option<Amount> {
    changes.iter().filter(|(from, _)| *from <= at).max_by_key(|(from, _)| *from).map(|(_, amount)| *amount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Charge, Unit};
    use crate::ids::ObjectName;
    use crate::money::NanoUsd;
    use crate::price::PriceVersion;
    use crate::protocol::{Caller, Outcome};
    use crate::usage::Usage;

    fn account() -> AccountKey {
        let limit =
            LimitKey::new(ObjectName::new("finance", "all"), "month".into(), Unit::Usd, "Total@UTC".into());
        AccountKey { limit, start: UnixMs(0), key: String::new() }
    }

    fn usd(nanos: i64) -> Charge {
        Charge { usd: NanoUsd(nanos), tokens: 0, requests: 1 }
    }

    /// Paused, admitted, settled; reserve and cost.
    fn row(times: [i64; 3], reserve: i64, cost: i64) -> UsageRow {
        UsageRow {
            sequence: 1,
            settled_sequence: 2,
            request_id: "row".into(),
            attempt: 0,
            paused_at: UnixMs(times[0]),
            admitted_at: UnixMs(times[1]),
            settled_at: UnixMs(times[2]),
            accounts: vec![account()],
            observed: vec![],
            caller: Caller::default(),
            route: String::new(),
            tier: String::new(),
            backend: ObjectName::new("a", "b"),
            model: String::new(),
            usage: Usage::default(),
            charge: usd(cost),
            reserve: usd(reserve),
            best_tier_cost: NanoUsd(0),
            price_version: PriceVersion(0),
            outcome: Outcome::Completed,
        }
    }

    fn refusal(id: &str, paused: i64, answered: i64, reserve: i64) -> Decision {
        Decision {
            request_id: id.into(),
            account: Some(account()),
            accounts: vec![account()],
            stage: String::new(),
            reason: "budget_exceeded".into(),
            reserve: usd(reserve),
            paused_at: UnixMs(paused),
            answered_at: UnixMs(answered),
        }
    }

    fn hundred() -> Amounts {
        Amounts::constant([(account().limit, Amount(100))])
    }

    fn left(judgement: &Judgement) -> Vec<i64> {
        judgement.wrong.iter().map(|wrong| wrong.left.0).collect()
    }

    #[test]
    fn reserves_in_flight_excuse_a_refusal_until_they_settle() {
        let rows = [row([0, 0, 50], 90, 30)];
        let found =
            judge(&rows, &[refusal("in flight", 10, 49, 20), refusal("settled", 10, 50, 20)], &hundred());
        assert_eq!((found.refused, left(&found)), (2, vec![70]));
        assert_eq!(found.wrong[0].request_id, "settled");
    }

    #[test]
    fn only_what_fits_is_wrongly_refused() {
        let rows = [row([0, 0, 1], 80, 80)];
        let found = judge(&rows, &[refusal("fits", 5, 5, 20), refusal("does not", 5, 5, 21)], &hundred());
        assert_eq!(left(&found), [20]);
    }

    #[test]
    fn those_who_paused_before_excuse_and_those_who_paused_after_do_not() {
        // Admitted in the end, but waiting at 20.
        let rows = [row([5, 30, 40], 60, 60)];
        let early = [refusal("before it", 4, 20, 50)];
        assert_eq!(left(&judge(&rows, &early, &hundred())), [100]);
        let late = [refusal("behind it", 6, 20, 50)];
        assert_eq!(left(&judge(&rows, &late, &hundred())), Vec::<i64>::new());
    }

    #[test]
    fn a_refused_request_excuses_others_only_while_it_waits() {
        let decisions =
            [refusal("first", 0, 50, 90), refusal("while", 10, 40, 20), refusal("after", 10, 60, 20)];
        let wrong = judge(&[], &decisions, &hundred()).wrong;
        assert_eq!(
            wrong.iter().map(|wrong| wrong.request_id.as_str()).collect::<Vec<_>>(),
            ["first", "after"]
        );
    }

    #[test]
    fn amounts_and_unaccounted_hold_from_their_instant_on() {
        let mut amounts = hundred();
        amounts.block_at.insert(account().limit, vec![(UnixMs(0), Amount(10)), (UnixMs(20), Amount(100))]);
        amounts.unaccounted.insert(account(), vec![(UnixMs(30), Amount(95))]);
        let decisions = [refusal("a", 19, 19, 20), refusal("b", 20, 20, 20), refusal("c", 30, 30, 20)];
        assert_eq!(left(&judge(&[], &decisions, &amounts)), [100]);
        let unknown = judge(&[], &decisions, &Amounts::default());
        assert_eq!((unknown.refused, unknown.unknown, unknown.wrong.len()), (3, 3, 0));
    }
}
