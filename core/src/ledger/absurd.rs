//! What no gateway of ours says: the server refuses it before the ledger hears of it.
//!
//! Only what an honest gateway can't say, whatever a client sends through it: else a client could cut its
//! gateway off. What is merely wrong (totals that fall, rows out of order, numbers that are too large) is
//! harmless where it is taken: the higher wins, rows are taken once, sums stop at their largest.

use crate::account::{AccountKey, MAX_ACCOUNTS};
use crate::protocol::{Ask, Decision, FromGateway, Hello, Report, UsageRow};
use crate::window::{FIRST_MS, LAST_MS};

/// The longest id of a gateway, in bytes: a pod's name has 253 at most.
const LONGEST_ID: usize = 256;
/// The longest account in its text form, in bytes: names by Kubernetes' rules, and a key.
const LONGEST_ACCOUNT: usize = 1_024;

/// Something that no gateway of ours says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {what}; no gateway of this version says that, see who connects here")]
pub struct Absurd {
    /// The field, `Hello.gateway`.
    pub field: &'static str,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Whether `said` can be taken.
///
/// # Errors
/// The first thing that no gateway of ours says.
pub fn check(said: &FromGateway) -> Result<(), Absurd> {
    match said {
        FromGateway::Hello(Hello { gateway, totals, .. }) => {
            let absurd = |what| Err(Absurd { field: "Hello.gateway", what });
            match gateway.len() {
                0 => return absurd("is empty (set Envoy's node id)"),
                1..=LONGEST_ID => {}
                _ => return absurd("has more than 256 bytes"),
            }
            // It is shown in logs, and in a command that is ready to be run.
            if !gateway.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~:/-".contains(&byte)) {
                return absurd("has characters beside letters, digits and ._~:/- (set Envoy's node id)");
            }
            accounts("Hello.totals.account", totals.iter().map(|totals| &totals.account))
        }
        FromGateway::Report(Report { totals, rows, refills, .. }) => {
            accounts("Report.totals.account", totals.iter().map(|totals| &totals.account))?;
            accounts("Report.refills", refills)?;
            rows.iter().try_for_each(row)
        }
        FromGateway::Ask(Ask { needs, .. }) => {
            if needs.len() > MAX_ACCOUNTS {
                return Err(Absurd { field: "Ask.needs", what: "names more than 64 accounts" });
            }
            accounts("Ask.needs.account", needs.iter().map(|need| &need.account))
        }
        FromGateway::Decisions(decisions) => decisions.iter().try_for_each(|decision| {
            let Decision { account, accounts: charged, .. } = decision;
            accounts("Decision.accounts", account.iter().chain(charged))
        }),
        FromGateway::Cancel(_) | FromGateway::PolicyAck(_) | FromGateway::Close => Ok(()),
    }
}

fn row(row: &UsageRow) -> Result<(), Absurd> {
    if row.accounts.len() > MAX_ACCOUNTS {
        return Err(Absurd { field: "Admission.accounts", what: "names more than 64 accounts" });
    }
    accounts("Admission.accounts", &row.accounts)?;
    // It would give money back that others have spent.
    if [row.charge.usd, row.reserve.usd, row.best_tier_cost].iter().any(|usd| usd.0 < 0) {
        return Err(Absurd { field: "UsageRow", what: "has a cost below zero" });
    }
    if [row.paused_at, row.admitted_at, row.settled_at].iter().any(|at| !(FIRST_MS..=LAST_MS).contains(&at.0))
    {
        return Err(Absurd { field: "UsageRow", what: "was not in any year of the calendar" });
    }
    Ok(())
}

fn accounts<'a>(
    field: &'static str,
    accounts: impl IntoIterator<Item = &'a AccountKey>,
) -> Result<(), Absurd> {
    let length = |account: &AccountKey| {
        let AccountKey { limit, start: _, key } = account;
        let crate::account::LimitName { budget, limit, window, .. } = &**limit;
        budget.namespace.len() + budget.name.len() + limit.len() + window.len() + key.len()
    };
    if accounts.into_iter().any(|account| length(account) > LONGEST_ACCOUNT) {
        return Err(Absurd { field, what: "has more than 1024 bytes" });
    }
    Ok(())
}
