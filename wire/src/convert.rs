//! Between generated messages and the core's types, both ways, without loss.
//!
//! Towards the wire nothing can fail. From the wire a message either means something or is
//! [`Malformed`], which names the field; half a message is never used.

use crate::proto;
use plimsoll_core::account::{AccountKey, Amount, Charge};
use plimsoll_core::ids::{Epoch, Incarnation, ObjectName, UnixMs};
use plimsoll_core::money::NanoUsd;
use plimsoll_core::policy::{PolicyKey, PolicyObject, PolicyVersion};
use plimsoll_core::price::PriceVersion;
use plimsoll_core::protocol::{
    Answer, Ask, AskId, Caller, Decision, FromGateway, FromLedger, Grant, Hello, Holding, LogState, Need, No,
    NoKind, Outcome, PolicyAck, PolicyDelta, Report, Totals, UsageRow, Welcome,
};
use plimsoll_core::usage::Usage;
use std::cell::RefCell;
use std::collections::HashMap;

/// A message from the wire that means nothing to this build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}; the peer speaks another version of the protocol, or the record is damaged")]
pub struct Malformed {
    /// The field, `Report.rows.admission`.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn malformed<T>(field: &'static str, why: impl std::fmt::Display) -> Result<T, Malformed> {
    Err(Malformed { field, why: why.to_string() })
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.map_or_else(|| malformed(field, "it is absent"), Ok)
}

/// Accounts that a thread remembers by their texts.
const KNOWN: usize = 4_096;
/// Bytes of a text that is remembered; names are shorter, what is longer is read each time.
const MOST_KNOWN: usize = 256;

thread_local! {
    /// Every row names the same few accounts: read once, they share their names, and compare at a glance.
    static ACCOUNTS: RefCell<HashMap<String, AccountKey>> = RefCell::default();
}

fn account(field: &'static str, text: &str) -> Result<AccountKey, Malformed> {
    ACCOUNTS.with_borrow_mut(|known| {
        if let Some(account) = known.get(text) {
            return Ok(account.clone());
        }
        let account: AccountKey = text.parse().or_else(|error| malformed(field, error))?;
        if text.len() <= MOST_KNOWN {
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(text.to_owned(), account.clone());
        }
        Ok(account)
    })
}

fn accounts(field: &'static str, texts: &[String]) -> Result<Vec<AccountKey>, Malformed> {
    texts.iter().map(|text| account(field, text)).collect()
}

fn texts(accounts: &[AccountKey]) -> Vec<String> {
    accounts.iter().map(AccountKey::text).collect()
}

fn bits(field: &'static str, bytes: &[u8]) -> Result<u128, Malformed> {
    match bytes.try_into() {
        Ok(bytes) => Ok(u128::from_be_bytes(bytes)),
        Err(_) => malformed(field, format_args!("{} bytes where 16 belong", bytes.len())),
    }
}

fn each<A, B: TryFrom<A, Error = Malformed>>(values: Vec<A>) -> Result<Vec<B>, Malformed> {
    values.into_iter().map(B::try_from).collect()
}

fn all<A, B: From<A>>(values: Vec<A>) -> Vec<B> {
    values.into_iter().map(B::from).collect()
}

impl From<FromGateway> for proto::GatewayMessage {
    fn from(message: FromGateway) -> Self {
        use proto::gateway_message::Message;
        Self {
            message: Some(match message {
                FromGateway::Hello(hello) => Message::Hello(hello.into()),
                FromGateway::Report(report) => Message::Report(report.into()),
                FromGateway::Ask(ask) => Message::Ask(ask.into()),
                FromGateway::Cancel(AskId(id)) => Message::Cancel(proto::Cancel { id }),
                FromGateway::Decisions(decisions) => {
                    Message::Decisions(proto::Decisions { decisions: all(decisions) })
                }
                FromGateway::PolicyAck(ack) => Message::PolicyAck(ack.into()),
                FromGateway::Close => Message::Close(proto::Close {}),
            }),
        }
    }
}

impl TryFrom<proto::GatewayMessage> for FromGateway {
    type Error = Malformed;

    fn try_from(message: proto::GatewayMessage) -> Result<Self, Malformed> {
        use proto::gateway_message::Message;
        Ok(match present("GatewayMessage.message", message.message)? {
            Message::Hello(hello) => Self::Hello(hello.try_into()?),
            Message::Report(report) => Self::Report(report.try_into()?),
            Message::Ask(ask) => Self::Ask(ask.try_into()?),
            Message::Cancel(proto::Cancel { id }) => Self::Cancel(AskId(id)),
            Message::Decisions(proto::Decisions { decisions }) => Self::Decisions(each(decisions)?),
            Message::PolicyAck(ack) => Self::PolicyAck(ack.try_into()?),
            Message::Close(proto::Close {}) => Self::Close,
        })
    }
}

impl From<FromLedger> for proto::LedgerMessage {
    fn from(message: FromLedger) -> Self {
        use proto::ledger_message::Message;
        Self {
            message: Some(match message {
                FromLedger::Welcome(welcome) => Message::Welcome(welcome.into()),
                FromLedger::Answer(answer) => Message::Answer(answer.into()),
                FromLedger::PolicyDelta(delta) => Message::PolicyDelta(delta.into()),
            }),
        }
    }
}

impl TryFrom<proto::LedgerMessage> for FromLedger {
    type Error = Malformed;

    fn try_from(message: proto::LedgerMessage) -> Result<Self, Malformed> {
        use proto::ledger_message::Message;
        Ok(match present("LedgerMessage.message", message.message)? {
            Message::Welcome(welcome) => Self::Welcome(welcome.try_into()?),
            Message::Answer(answer) => Self::Answer(answer.try_into()?),
            Message::PolicyDelta(delta) => Self::PolicyDelta(delta.try_into()?),
        })
    }
}

impl From<Hello> for proto::Hello {
    fn from(hello: Hello) -> Self {
        let Hello { gateway, epoch, log, totals, sequence, policy } = hello;
        let log = match log {
            LogState::New => proto::LogState::New,
            LogState::Intact => proto::LogState::Intact,
            LogState::Gap => proto::LogState::Gap,
            LogState::NodeCrashed => proto::LogState::NodeCrashed,
        };
        Self {
            gateway,
            epoch: epoch.0.to_be_bytes().to_vec(),
            log: log.into(),
            totals: all(totals),
            sequence,
            policy: policy
                .into_iter()
                .map(|(key, version)| proto::PolicyHeld { key: key.to_string(), version: version.0 })
                .collect(),
        }
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = Malformed;

    fn try_from(hello: proto::Hello) -> Result<Self, Malformed> {
        let proto::Hello { gateway, epoch, log, totals, sequence, policy } = hello;
        let log = match proto::LogState::try_from(log) {
            Ok(proto::LogState::New) => LogState::New,
            Ok(proto::LogState::Intact) => LogState::Intact,
            Ok(proto::LogState::Gap) => LogState::Gap,
            Ok(proto::LogState::NodeCrashed) => LogState::NodeCrashed,
            Ok(proto::LogState::Unspecified) | Err(_) => {
                return malformed("Hello.log", "it is not a state of a log");
            }
        };
        let mut held = Vec::with_capacity(policy.len());
        for proto::PolicyHeld { key, version } in policy {
            // A newer gateway may hold kinds that this build does not know: it is sent them no more.
            if let Ok(key) = key.parse::<PolicyKey>() {
                held.push((key, PolicyVersion(version)));
            }
        }
        let epoch = Epoch(bits("Hello.epoch", &epoch)?);
        Ok(Self { gateway, epoch, log, totals: each(totals)?, sequence, policy: held })
    }
}

impl From<Welcome> for proto::Welcome {
    fn from(welcome: Welcome) -> Self {
        let Welcome { incarnation, now, durable, holdings, hmac_key, went_back, epoch_closed } = welcome;
        Self {
            incarnation: incarnation.0.to_be_bytes().to_vec(),
            now: now.0,
            durable,
            holdings: all(holdings),
            hmac_key: hmac_key.to_vec(),
            went_back,
            epoch_closed,
        }
    }
}

impl TryFrom<proto::Welcome> for Welcome {
    type Error = Malformed;

    fn try_from(welcome: proto::Welcome) -> Result<Self, Malformed> {
        let proto::Welcome { incarnation, now, durable, holdings, hmac_key, went_back, epoch_closed } =
            welcome;
        let Ok(hmac_key) = hmac_key.try_into() else {
            return malformed("Welcome.hmac_key", "32 bytes belong there");
        };
        Ok(Self {
            incarnation: Incarnation(bits("Welcome.incarnation", &incarnation)?),
            now: UnixMs(now),
            durable,
            holdings: each(holdings)?,
            hmac_key,
            went_back,
            epoch_closed,
        })
    }
}

impl From<Holding> for proto::Holding {
    fn from(holding: Holding) -> Self {
        let Holding { account, granted, returned, settled } = holding;
        Self { account: account.to_string(), granted: granted.0, returned: returned.0, settled: settled.0 }
    }
}

impl TryFrom<proto::Holding> for Holding {
    type Error = Malformed;

    fn try_from(holding: proto::Holding) -> Result<Self, Malformed> {
        let proto::Holding { account: text, granted, returned, settled } = holding;
        Ok(Self {
            account: account("Welcome.holdings.account", &text)?,
            granted: Amount(granted),
            returned: Amount(returned),
            settled: Amount(settled),
        })
    }
}

impl From<Totals> for proto::Totals {
    fn from(totals: Totals) -> Self {
        let Totals { account, granted, returned, settled, reserved, rate, w_max, recall_seen } = totals;
        Self {
            account: account.to_string(),
            granted: granted.0,
            returned: returned.0,
            settled: settled.0,
            reserved: reserved.0,
            rate: rate.0,
            w_max: w_max.0,
            recall_seen,
        }
    }
}

impl TryFrom<proto::Totals> for Totals {
    type Error = Malformed;

    fn try_from(totals: proto::Totals) -> Result<Self, Malformed> {
        let proto::Totals { account: text, granted, returned, settled, reserved, rate, w_max, recall_seen } =
            totals;
        Ok(Self {
            account: account("Totals.account", &text)?,
            granted: Amount(granted),
            returned: Amount(returned),
            settled: Amount(settled),
            reserved: Amount(reserved),
            rate: Amount(rate),
            w_max: Amount(w_max),
            recall_seen,
        })
    }
}

impl From<Report> for proto::Report {
    fn from(report: Report) -> Self {
        let Report { totals, rows, after, through, refills } = report;
        Self { totals: all(totals), rows: all(rows), after, through, refills: texts(&refills) }
    }
}

impl TryFrom<proto::Report> for Report {
    type Error = Malformed;

    fn try_from(report: proto::Report) -> Result<Self, Malformed> {
        let proto::Report { totals, rows, after, through, refills } = report;
        let refills = accounts("Report.refills", &refills)?;
        Ok(Self { totals: each(totals)?, rows: each(rows)?, after, through, refills })
    }
}

impl From<Ask> for proto::Ask {
    fn from(ask: Ask) -> Self {
        let Ask { id, needs, wait_ms } = ask;
        let needs = needs
            .into_iter()
            .map(|Need { account, reserve, short }| proto::Need {
                account: account.to_string(),
                reserve: reserve.0,
                short: short.0,
            })
            .collect();
        Self { id: id.0, needs, wait_ms }
    }
}

impl TryFrom<proto::Ask> for Ask {
    type Error = Malformed;

    fn try_from(ask: proto::Ask) -> Result<Self, Malformed> {
        let proto::Ask { id, needs, wait_ms } = ask;
        let needs = needs
            .into_iter()
            .map(|proto::Need { account: text, reserve, short }| {
                let account = account("Ask.needs.account", &text)?;
                Ok(Need { account, reserve: Amount(reserve), short: Amount(short) })
            })
            .collect::<Result<_, Malformed>>()?;
        Ok(Self { id: AskId(id), needs, wait_ms })
    }
}

impl From<Answer> for proto::Answer {
    fn from(answer: Answer) -> Self {
        let Answer { grants, earmarks, noes, withdrawals, durable, now } = answer;
        Self {
            grants: all(grants),
            earmarks: earmarks.into_iter().map(|AskId(id)| id).collect(),
            noes: all(noes),
            withdrawals: texts(&withdrawals),
            durable,
            now: now.0,
        }
    }
}

impl TryFrom<proto::Answer> for Answer {
    type Error = Malformed;

    fn try_from(answer: proto::Answer) -> Result<Self, Malformed> {
        let proto::Answer { grants, earmarks, noes, withdrawals, durable, now } = answer;
        Ok(Self {
            grants: each(grants)?,
            earmarks: earmarks.into_iter().map(AskId).collect(),
            noes: each(noes)?,
            withdrawals: accounts("Answer.withdrawals", &withdrawals)?,
            durable,
            now: UnixMs(now),
        })
    }
}

impl From<Grant> for proto::Grant {
    fn from(grant: Grant) -> Self {
        let Grant { account, granted, size, small, recall, recalled } = grant;
        Self { account: account.to_string(), granted: granted.0, size: size.0, small, recall, recalled }
    }
}

impl TryFrom<proto::Grant> for Grant {
    type Error = Malformed;

    fn try_from(grant: proto::Grant) -> Result<Self, Malformed> {
        let proto::Grant { account: text, granted, size, small, recall, recalled } = grant;
        let account = account("Answer.grants.account", &text)?;
        Ok(Self { account, granted: Amount(granted), size: Amount(size), small, recall, recalled })
    }
}

impl From<No> for proto::No {
    fn from(no: No) -> Self {
        let No { ask, account, kind, reserve, used } = no;
        let kind = match kind {
            NoKind::Exhausted => proto::NoKind::Exhausted,
            NoKind::Contended => proto::NoKind::Contended,
        };
        Self { ask: ask.0, account: account.to_string(), kind: kind.into(), reserve: reserve.0, used: used.0 }
    }
}

impl TryFrom<proto::No> for No {
    type Error = Malformed;

    fn try_from(no: proto::No) -> Result<Self, Malformed> {
        let proto::No { ask, account: text, kind, reserve, used } = no;
        let kind = match proto::NoKind::try_from(kind) {
            Ok(proto::NoKind::Exhausted) => NoKind::Exhausted,
            Ok(proto::NoKind::Contended) => NoKind::Contended,
            Ok(proto::NoKind::Unspecified) | Err(_) => {
                return malformed("Answer.noes.kind", "it is not a kind of no");
            }
        };
        let account = account("Answer.noes.account", &text)?;
        Ok(Self { ask: AskId(ask), account, kind, reserve: Amount(reserve), used: Amount(used) })
    }
}

impl From<PolicyDelta> for proto::PolicyDelta {
    fn from(delta: PolicyDelta) -> Self {
        let PolicyDelta { number, whole, objects, removed } = delta;
        let objects = objects
            .into_iter()
            .map(|PolicyObject { key, version, body }| proto::PolicyObject {
                key: key.to_string(),
                version: version.0,
                body,
            })
            .collect();
        Self { number, whole, objects, removed: removed.iter().map(ToString::to_string).collect() }
    }
}

impl TryFrom<proto::PolicyDelta> for PolicyDelta {
    type Error = Malformed;

    fn try_from(delta: proto::PolicyDelta) -> Result<Self, Malformed> {
        let proto::PolicyDelta { number, whole, objects, removed } = delta;
        let key = |text: &str| text.parse::<PolicyKey>();
        let objects = objects
            .into_iter()
            .map(|proto::PolicyObject { key: text, version, body }| match key(&text) {
                Ok(key) => Ok(PolicyObject { key, version: PolicyVersion(version), body }),
                Err(error) => malformed("PolicyDelta.objects.key", error),
            })
            .collect::<Result<_, _>>()?;
        let removed = removed
            .iter()
            .map(|text| key(text).or_else(|error| malformed("PolicyDelta.removed", error)))
            .collect::<Result<_, _>>()?;
        Ok(Self { number, whole, objects, removed })
    }
}

impl From<PolicyAck> for proto::PolicyAck {
    fn from(ack: PolicyAck) -> Self {
        let PolicyAck { number, rejected } = ack;
        let rejected = rejected
            .into_iter()
            .map(|(key, reason)| proto::PolicyRejected { key: key.to_string(), reason })
            .collect();
        Self { number, rejected }
    }
}

impl TryFrom<proto::PolicyAck> for PolicyAck {
    type Error = Malformed;

    fn try_from(ack: proto::PolicyAck) -> Result<Self, Malformed> {
        let proto::PolicyAck { number, rejected } = ack;
        let rejected = rejected
            .into_iter()
            .map(|proto::PolicyRejected { key, reason }| match key.parse() {
                Ok(key) => Ok((key, reason)),
                Err(error) => malformed("PolicyAck.rejected.key", error),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { number, rejected })
    }
}

impl From<Caller> for proto::Caller {
    fn from(caller: Caller) -> Self {
        let Caller { namespace, feature, customer, user_hash, service_account, session } = caller;
        Self { namespace, feature, customer, user_hash, service_account, session }
    }
}

impl From<proto::Caller> for Caller {
    fn from(caller: proto::Caller) -> Self {
        let proto::Caller { namespace, feature, customer, user_hash, service_account, session } = caller;
        Self { namespace, feature, customer, user_hash, service_account, session }
    }
}

impl From<Usage> for proto::Usage {
    fn from(usage: Usage) -> Self {
        let Usage { input, cached_input, cache_write, output, reasoning } = usage;
        Self { input, cached_input, cache_write, output, reasoning }
    }
}

impl From<proto::Usage> for Usage {
    fn from(usage: proto::Usage) -> Self {
        let proto::Usage { input, cached_input, cache_write, output, reasoning } = usage;
        Self { input, cached_input, cache_write, output, reasoning }
    }
}

impl From<Charge> for proto::Charge {
    fn from(charge: Charge) -> Self {
        let Charge { usd, tokens, requests } = charge;
        Self { nano_usd: usd.0, tokens, requests }
    }
}

impl From<proto::Charge> for Charge {
    fn from(charge: proto::Charge) -> Self {
        let proto::Charge { nano_usd, tokens, requests } = charge;
        Self { usd: NanoUsd(nano_usd), tokens, requests }
    }
}

fn outcome_to_wire(outcome: Outcome) -> i32 {
    match outcome {
        Outcome::Completed => proto::Outcome::Completed,
        Outcome::UsageMissing => proto::Outcome::UsageMissing,
        Outcome::ProviderError => proto::Outcome::ProviderError,
        Outcome::Abandoned => proto::Outcome::Abandoned,
        Outcome::Replayed => proto::Outcome::Replayed,
    }
    .into()
}

fn outcome_from_wire(outcome: i32) -> Result<Outcome, Malformed> {
    Ok(match proto::Outcome::try_from(outcome) {
        Ok(proto::Outcome::Completed) => Outcome::Completed,
        Ok(proto::Outcome::UsageMissing) => Outcome::UsageMissing,
        Ok(proto::Outcome::ProviderError) => Outcome::ProviderError,
        Ok(proto::Outcome::Abandoned) => Outcome::Abandoned,
        Ok(proto::Outcome::Replayed) => Outcome::Replayed,
        Ok(proto::Outcome::Unspecified) | Err(_) => {
            return malformed("Settlement.outcome", "it is not an outcome");
        }
    })
}

impl From<UsageRow> for proto::UsageRow {
    fn from(row: UsageRow) -> Self {
        let UsageRow {
            sequence,
            settled_sequence,
            request_id,
            attempt,
            paused_at,
            admitted_at,
            settled_at,
            accounts,
            observed,
            caller,
            route,
            tier,
            backend,
            model,
            usage,
            charge,
            reserve,
            best_tier_cost,
            price_version,
            outcome,
        } = row;
        Self {
            admission: Some(proto::Admission {
                sequence,
                request_id,
                attempt,
                paused_at: paused_at.0,
                admitted_at: admitted_at.0,
                accounts: texts(&accounts),
                observed: observed.iter().map(ToString::to_string).collect(),
                caller: Some(caller.into()),
                route,
                tier,
                backend: backend.to_string(),
                model,
                reserve: Some(reserve.into()),
                price_version: price_version.0,
            }),
            settlement: Some(proto::Settlement {
                sequence: settled_sequence,
                admission: sequence,
                settled_at: settled_at.0,
                usage: Some(usage.into()),
                charge: Some(charge.into()),
                best_tier_nano_usd: best_tier_cost.0,
                outcome: outcome_to_wire(outcome),
            }),
        }
    }
}

impl TryFrom<proto::UsageRow> for UsageRow {
    type Error = Malformed;

    fn try_from(row: proto::UsageRow) -> Result<Self, Malformed> {
        let proto::UsageRow { admission, settlement } = row;
        let proto::Admission {
            sequence,
            request_id,
            attempt,
            paused_at,
            admitted_at,
            accounts: charged,
            observed,
            caller,
            route,
            tier,
            backend,
            model,
            reserve,
            price_version,
        } = present("UsageRow.admission", admission)?;
        let proto::Settlement {
            sequence: settled_sequence,
            admission: of,
            settled_at,
            usage,
            charge,
            best_tier_nano_usd,
            outcome,
        } = present("UsageRow.settlement", settlement)?;
        if of != sequence {
            return malformed("Settlement.admission", format_args!("it is {of}, of an admission {sequence}"));
        }
        let object =
            |field, text: String| ObjectName::try_from(text).or_else(|error| malformed(field, error));
        Ok(Self {
            sequence,
            settled_sequence,
            request_id,
            attempt,
            paused_at: UnixMs(paused_at),
            admitted_at: UnixMs(admitted_at),
            settled_at: UnixMs(settled_at),
            accounts: accounts("Admission.accounts", &charged)?,
            observed: observed
                .into_iter()
                .map(|text| object("Admission.observed", text))
                .collect::<Result<_, _>>()?,
            caller: present("Admission.caller", caller)?.into(),
            route,
            tier,
            backend: object("Admission.backend", backend)?,
            model,
            usage: present("Settlement.usage", usage)?.into(),
            charge: present("Settlement.charge", charge)?.into(),
            reserve: present("Admission.reserve", reserve)?.into(),
            best_tier_cost: NanoUsd(best_tier_nano_usd),
            price_version: PriceVersion(price_version),
            outcome: outcome_from_wire(outcome)?,
        })
    }
}

impl From<Decision> for proto::Decision {
    fn from(decision: Decision) -> Self {
        let Decision { request_id, account, accounts, stage, reason, reserve, paused_at, answered_at } =
            decision;
        Self {
            request_id,
            account: account.map(|account| account.to_string()).unwrap_or_default(),
            accounts: texts(&accounts),
            stage,
            reason,
            reserve: Some(reserve.into()),
            paused_at: paused_at.0,
            answered_at: answered_at.0,
        }
    }
}

impl TryFrom<proto::Decision> for Decision {
    type Error = Malformed;

    fn try_from(decision: proto::Decision) -> Result<Self, Malformed> {
        let proto::Decision {
            request_id,
            account: text,
            accounts: charged,
            stage,
            reason,
            reserve,
            paused_at,
            answered_at,
        } = decision;
        Ok(Self {
            request_id,
            account: if text.is_empty() { None } else { Some(account("Decision.account", &text)?) },
            accounts: accounts("Decision.accounts", &charged)?,
            stage,
            reason,
            reserve: present("Decision.reserve", reserve)?.into(),
            paused_at: UnixMs(paused_at),
            answered_at: UnixMs(answered_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_remembers_of_accounts_stays_below_a_few_mebibytes() {
        let read = |text: String| account("Ask.needs.account", &text).unwrap().text();
        for n in 0..16_000 {
            // Keys that peers choose: as long as is remembered, and longer.
            for length in [150, 1_000] {
                let text = format!("finance|all|month|USD|Month@UTC|0|{n:0length$}");
                assert_eq!(read(text.clone()), text);
            }
        }
        ACCOUNTS.with_borrow(|known| {
            assert!(known.len() > 1_000);
            let bytes: usize = known.keys().map(String::capacity).sum();
            assert!(bytes <= 1 << 20, "{bytes} bytes of texts");
        });
    }
}
