//! What was applied, gathered from those who know: policy stream, xDS streams, ledger.

use crate::gateway::{Discovery, Held, ResourceKey, Snapshot, secret};
use crate::ledger::{LedgerHandle, LedgerState};
use crate::report;
use plimsoll_api::budget::Enforcement as Declared;
use plimsoll_api::{AIBudget, AIBudgetStatus};
use plimsoll_core::account::{AccountKey, Unit};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::Enforcement;
use plimsoll_plan::{Applied, ClusterState, EnvoyCluster, Gateway, Plan, Spend, Spent, Trouble};
use std::collections::BTreeMap;

/// What gateways hold of `plan` and where its accounts stand at `now`.
pub(super) fn applied(
    ledger: &LedgerHandle,
    discovery: &Discovery,
    plan: &Plan,
    snapshot: &Snapshot,
    now: UnixMs,
) -> Applied {
    let envoys = discovery.gateways().all();
    let mut gateways: BTreeMap<String, Gateway> = BTreeMap::new();
    for state in ledger.hub().gateways() {
        let rejected = state.rejected.into_iter().map(|(key, rejection)| (key, rejection.reason)).collect();
        gateways.insert(state.id, Gateway { held: state.holds, rejected, clusters: BTreeMap::new() });
    }
    // An Envoy that only asks for clusters counts too: it serves, and holds no policy.
    for (node, held) in &envoys {
        let clusters = plan
            .clusters
            .values()
            .filter_map(|cluster| Some((cluster.name.clone(), state(cluster, held, snapshot)?)));
        gateways.entry(node.clone()).or_default().clusters = clusters.collect();
    }
    Applied { gateways, spend: spend(ledger, plan, now), trouble: trouble(&ledger.state().borrow()) }
}

/// What an Envoy said of a cluster and the key that it injects; `None`: nothing yet.
fn state(cluster: &EnvoyCluster, held: &Held, snapshot: &Snapshot) -> Option<ClusterState> {
    let mut keys = vec![ResourceKey::cluster(&cluster.name)];
    keys.extend(cluster.inject_key.as_ref().map(|key| ResourceKey::secret(&secret::name(key))));
    for key in keys {
        let wanted = snapshot.version(&key)?;
        if let Some(rejected) = held.rejected.get(&key).filter(|rejected| rejected.version == *wanted) {
            return Some(ClusterState::Rejected(rejected.words.clone()));
        }
        if held.acknowledged.get(&key) != Some(wanted) {
            return None;
        }
    }
    Some(ClusterState::Acknowledged)
}

fn spend(ledger: &LedgerHandle, plan: &Plan, now: UnixMs) -> Spend {
    let limits = plan.budgets.values().flat_map(|budget| &budget.limits);
    let accounts = limits.map(|(limit, window)| AccountKey {
        limit: limit.clone(),
        start: window.bounds(now).start,
        key: String::new(),
    });
    accounts
        .filter_map(|account| {
            let spent = ledger.spend().get(&account)?;
            let spent = Spent {
                settled: spent.settled,
                unaccounted: spent.unaccounted,
                counted_since: (spent.counted_since.0 != 0).then_some(spent.counted_since),
                exhausted: ledger.spend().is_exhausted(&account),
                overrun: spent.overrun,
            };
            Some((account, spent))
        })
        .collect()
}

fn trouble(state: &LedgerState) -> Option<Trouble> {
    match state {
        LedgerState::Serving => None,
        LedgerState::WentBack => Some(Trouble {
            reason: "LedgerWentBack".to_owned(),
            message:
                "commits were lost; nothing is granted until every known gateway has said Hello. Start the \
                      missing ones, or retire them"
                    .to_owned(),
        }),
        LedgerState::Failed { why } => {
            Some(Trouble { reason: "LedgerFailed".to_owned(), message: why.clone() })
        }
    }
}

/// The ledger's line of the report.
pub(super) fn ledger(applied: &Applied) -> report::Ledger {
    match &applied.trouble {
        None => report::Ledger::default(),
        Some(trouble) => {
            report::Ledger { state: trouble.reason.clone(), message: Some(trouble.message.clone()) }
        }
    }
}

/// The gateways' part of the report.
pub(super) fn gateways(
    ledger: &LedgerHandle,
    discovery: &Discovery,
    plan: &Plan,
) -> BTreeMap<String, report::Gateway> {
    let mut gateways: BTreeMap<String, report::Gateway> = BTreeMap::new();
    for state in ledger.hub().gateways() {
        let current =
            plan.policy.iter().filter(|(key, object)| state.holds.get(key) == Some(&object.version)).count();
        let gateway = report::Gateway {
            ledger: state.connected,
            policy: current,
            policy_rejected: state
                .rejected
                .iter()
                .map(|(key, why)| (key.to_string(), why.reason.clone()))
                .collect(),
            ..report::Gateway::default()
        };
        gateways.insert(state.id, gateway);
    }
    for (node, held) in discovery.gateways().all() {
        let gateway = gateways.entry(node).or_default();
        gateway.xds = true;
        gateway.envoy =
            held.acknowledged.iter().map(|(key, version)| (key.to_string(), version.to_string())).collect();
        gateway.envoy_rejected =
            held.rejected.iter().map(|(key, rejected)| (key.to_string(), rejected.words.clone())).collect();
    }
    for gateway in gateways.values_mut() {
        gateway.policy_total = plan.policy.len();
    }
    gateways
}

/// A budget's rows in the table.
pub(super) fn rows(
    name: &ObjectName,
    budget: &AIBudget,
    status: &AIBudgetStatus,
    plan: &Plan,
    applied: &Applied,
) -> Vec<report::Row> {
    let counted =
        status.gateways.map_or_else(String::new, |count| format!("{}/{}", count.enforcing, count.total));
    let limits = plan.budgets.get(name).map(|budget| budget.limits.as_slice()).unwrap_or_default();
    let row = |limit: &plimsoll_api::budget::LimitStatus| {
        let key = limits.iter().map(|(key, _)| key).find(|key| key.limit == limit.name);
        let observes = budget.spec.enforcement == Declared::Observe
            || key
                .and_then(|key| plan.limits.get(key))
                .is_some_and(|terms| terms.enforcement == Enforcement::Observe);
        let start = limit.window.start.as_ref().map_or(UnixMs(0), |time| UnixMs(time.0.as_millisecond()));
        let unit = key.map_or(Unit::Usd, |key| key.unit);
        let account = key.map(|key| AccountKey { limit: key.clone(), start, key: String::new() });
        let used =
            account.and_then(|account| applied.spend.get(&account)).map(Spent::used).unwrap_or_default();
        report::Row {
            budget: name.to_string(),
            limit: limit.name.clone(),
            unit,
            used: unit.show(used),
            of: limit.amount.clone(),
            percent: limit.used_percent.clone(),
            resets_at: limit.window.end.as_ref().map(|time| UnixMs(time.0.as_millisecond())),
            stage: limit.stages.last().map(|stage| format!("{:?}", stage.action)).unwrap_or_default(),
            enforced: if observes { "observe".to_owned() } else { counted.clone() },
        }
    };
    status.limits.iter().map(row).collect()
}
