//! What was applied, gathered from those who know: policy stream, xDS streams, ledger.

use crate::gateway::{Discovery, Envoy, Held, ResourceKey, Snapshot, Want, secret};
use crate::ledger::{GatewayState, LedgerHandle, LedgerState};
use crate::report;
use k8s_openapi::jiff::Timestamp;
use plimsoll_api::budget::Enforcement as Declared;
use plimsoll_api::shared::Time;
use plimsoll_api::{AIBudget, AIBudgetStatus};
use plimsoll_core::account::{AccountKey, Unit};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_core::policy::Enforcement;
use plimsoll_plan::{Applied, EnvoyCluster, Gateway, Link, Missing, Part, Plan, Spend, Spent, Trouble};
use std::collections::BTreeMap;

/// Policy that is named of what one gateway lacks.
const MOST_LACKING: usize = 10;

/// What gateways hold of `plan` and where its accounts stand at `now`.
pub(super) fn applied(
    ledger: &LedgerHandle,
    discovery: &Discovery,
    plan: &Plan,
    snapshot: &Snapshot,
    now: UnixMs,
) -> Applied {
    Applied {
        gateways: merged(ledger.hub().gateways(), discovery.gateways().known(), &wanted(plan, snapshot)),
        spend: spend(ledger, plan, now),
        trouble: trouble(&ledger.state().borrow()),
    }
}

/// Filters and Envoys, by the gateways' ids.
fn merged(
    filters: Vec<GatewayState>,
    mut envoys: BTreeMap<String, Envoy>,
    wanted: &[Wanted<'_>],
) -> BTreeMap<String, Gateway> {
    let mut gateways = BTreeMap::new();
    for state in filters {
        let envoy = envoys.remove(&state.id);
        if state.closed {
            continue;
        }
        let (xds, clusters) = match envoy {
            Some(Envoy { held, ended: None }) => (Link::Up, missing(&held, wanted)),
            Some(Envoy { held, ended: Some(since) }) => (Link::Down { since }, missing(&held, wanted)),
            None if state.awaited => (Link::Expected, BTreeMap::new()),
            None => (Link::Never, BTreeMap::new()),
        };
        let rejected = state.rejected.into_iter().map(|(key, rejection)| (key, rejection.reason)).collect();
        let gateway = Gateway { ledger: state.link, xds, lacks: state.lacks, rejected, clusters };
        gateways.insert(state.id, gateway);
    }
    // An Envoy alone counts too, while it is connected: it may serve, and holds no policy.
    for (node, Envoy { held, .. }) in envoys.into_iter().filter(|(_, envoy)| envoy.ended.is_none()) {
        let clusters = missing(&held, wanted);
        gateways.insert(node, Gateway { xds: Link::Up, clusters, ..Gateway::default() });
    }
    gateways
}

/// What an Envoy should have of one cluster.
struct Wanted<'a> {
    cluster: &'a str,
    parts: Vec<(Part, ResourceKey, Want<'a>)>,
}

fn wanted<'a>(plan: &'a Plan, snapshot: &'a Snapshot) -> Vec<Wanted<'a>> {
    let part = |part: Part, key: ResourceKey| {
        let want = snapshot.want(&key);
        (part, key, want)
    };
    let cluster = |EnvoyCluster { name, inject_key, .. }: &'a EnvoyCluster| {
        let key = inject_key.as_ref().map(|key| part(Part::Key, ResourceKey::secret(&secret::name(key))));
        let parts = std::iter::once(part(Part::Cluster, ResourceKey::cluster(name))).chain(key);
        Wanted { cluster: name, parts: parts.collect() }
    };
    plan.clusters.values().map(cluster).collect()
}

/// What an Envoy lacks of what is wanted.
fn missing(held: &Held, wanted: &[Wanted<'_>]) -> BTreeMap<String, Missing> {
    let missing = |(part, key, want): &(Part, ResourceKey, Want<'_>)| {
        let held_version = held.acknowledged.get(key);
        let holds = match want {
            Want::Version(version) => held_version == Some(*version),
            Want::Any => held_version.is_some(),
            // It can't be had yet.
            Want::Nothing => false,
        };
        let rejected = held.rejected.get(key).filter(|rejected| *want == Want::Version(&rejected.version));
        let rejected = rejected.map(|rejected| rejected.words.clone());
        (!holds || rejected.is_some()).then_some(Missing { part: *part, rejected })
    };
    let first =
        |wanted: &Wanted<'_>| Some((wanted.cluster.to_owned(), wanted.parts.iter().find_map(missing)?));
    wanted.iter().filter_map(first).collect()
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
pub(super) fn gateways(applied: &Applied, plan: &Plan) -> BTreeMap<String, report::Gateway> {
    let gateway = |gateway: &Gateway| {
        let Gateway { ledger, xds, lacks, rejected, clusters } = gateway;
        let of = |link: &Link, all: usize, lacking: usize| match link {
            Link::Never | Link::Expected => 0,
            Link::Down { .. } | Link::Up => all.saturating_sub(lacking),
        };
        let cluster = |(name, missing): (&String, &Missing)| {
            let what = match missing.part {
                Part::Cluster => format!("cluster {name}"),
                Part::Key => format!("key of cluster {name}"),
            };
            missing.rejected.clone().map(|words| (what, words))
        };
        report::Gateway {
            ledger: *ledger == Link::Up,
            ledger_down_since: down_since(*ledger),
            xds: *xds == Link::Up,
            xds_down_since: down_since(*xds),
            policy: of(ledger, plan.policy.len(), lacks.len()),
            policy_total: plan.policy.len(),
            policy_lacking: lacks.keys().take(MOST_LACKING).map(ToString::to_string).collect(),
            policy_rejected: rejected.iter().map(|(key, words)| (key.to_string(), words.clone())).collect(),
            clusters: of(xds, plan.clusters.len(), clusters.len()),
            clusters_total: plan.clusters.len(),
            envoy_rejected: clusters.iter().filter_map(cluster).collect(),
        }
    };
    applied.gateways.iter().map(|(name, one)| (name.clone(), gateway(one))).collect()
}

fn down_since(link: Link) -> Option<Time> {
    match link {
        Link::Down { since } => Timestamp::from_millisecond(since.0).ok().map(Time),
        Link::Never | Link::Expected | Link::Up => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::secret::secret as content;
    use crate::gateway::{Rejected, Version};
    use plimsoll_plan::SecretRef;
    use std::sync::Arc;

    const NAME: &str = "backend/p/openai";

    /// A backend with a key, and the key's resource name.
    fn world() -> (Plan, Snapshot, ResourceKey) {
        let key = SecretRef { secret: ObjectName::new("p", "openai"), key: "api-key".to_owned() };
        let name = secret::name(&key);
        let (host, tls) = ("127.0.0.1".to_owned(), false);
        let cluster = EnvoyCluster { name: NAME.to_owned(), host, port: 1, tls, inject_key: Some(key) };
        let mut snapshot = Snapshot::default();
        snapshot.insert(ResourceKey::cluster(NAME), &crate::gateway::cluster::cluster(&cluster, ""), b"");
        snapshot.insert(ResourceKey::secret(&name), &content(&name, b"sk"), b"");
        let clusters = BTreeMap::from([(NAME.to_owned(), cluster)]);
        (Plan { clusters, ..Plan::default() }, snapshot, ResourceKey::secret(&name))
    }

    fn filter(id: &str, link: Link) -> GatewayState {
        GatewayState {
            id: id.to_owned(),
            link,
            awaited: false,
            closed: false,
            lacks: Arc::default(),
            rejected: BTreeMap::new(),
            acknowledged: None,
        }
    }

    fn envoy(held: Held, ended: Option<UnixMs>) -> Envoy {
        Envoy { held: Arc::new(held), ended }
    }

    #[test]
    fn a_cluster_is_missing_until_envoy_has_it_and_its_key_in_this_version() {
        let (plan, snapshot, key) = world();
        let wanted = wanted(&plan, &snapshot);
        let (cluster, mut held) = (ResourceKey::cluster(NAME), Held::default());
        let missing_of = |held: &Held| missing(held, &wanted).remove(NAME);
        let missing =
            |part, rejected: Option<&str>| Some(Missing { part, rejected: rejected.map(str::to_owned) });
        assert_eq!(missing_of(&held), missing(Part::Cluster, None));
        held.acknowledged.insert(cluster.clone(), snapshot.version(&cluster).unwrap().clone());
        assert_eq!(missing_of(&held), missing(Part::Key, None));
        held.acknowledged.insert(key.clone(), Version("of another key".to_owned()));
        assert_eq!(missing_of(&held), missing(Part::Key, None));
        held.acknowledged.insert(key.clone(), snapshot.version(&key).unwrap().clone());
        assert_eq!(missing_of(&held), None);
        let words = "no such file".to_owned();
        let stale = Rejected { version: Version("before".to_owned()), words: words.clone() };
        held.rejected.insert(cluster.clone(), stale);
        assert_eq!(missing_of(&held), None, "that was another version");
        let version = snapshot.version(&cluster).unwrap().clone();
        held.rejected.insert(cluster, Rejected { version, words });
        assert_eq!(missing_of(&held), missing(Part::Cluster, Some("no such file")));
    }

    #[test]
    fn a_key_that_cannot_be_known_is_missing_only_where_there_is_none() {
        let (plan, full, key) = world();
        let (cluster, mut snapshot) = (ResourceKey::cluster(NAME), Snapshot::default());
        snapshot.insert(cluster.clone(), &crate::gateway::cluster::cluster(&plan.clusters[NAME], ""), b"");
        snapshot.leave(key.clone());
        let wanted = wanted(&plan, &snapshot);
        let mut held = Held::default();
        held.acknowledged.insert(cluster.clone(), full.version(&cluster).unwrap().clone());
        let part = |held: &Held| missing(held, &wanted).remove(NAME).map(|missing| missing.part);
        assert_eq!(part(&held), Some(Part::Key));
        held.acknowledged.insert(key, Version("of before".to_owned()));
        assert_eq!(part(&held), None);
    }

    #[test]
    fn who_counts_as_a_gateway() {
        let (up, down) = (Link::Up, Link::Down { since: UnixMs(7) });
        let awaited = GatewayState { awaited: true, ..filter("back", up) };
        let closed = GatewayState { closed: true, ..filter("closed", down) };
        let filters = vec![filter("both", up), filter("no-xds", up), filter("lost", down), awaited, closed];
        let envoys = BTreeMap::from([
            ("both".to_owned(), envoy(Held::default(), None)),
            ("lost".to_owned(), envoy(Held::default(), Some(UnixMs(8)))),
            ("closed".to_owned(), envoy(Held::default(), None)),
            ("alone".to_owned(), envoy(Held::default(), None)),
            ("alone-and-gone".to_owned(), envoy(Held::default(), Some(UnixMs(9)))),
        ]);
        let links = merged(filters, envoys, &[]);
        let links: Vec<_> =
            links.iter().map(|(name, gateway)| (name.as_str(), gateway.ledger, gateway.xds)).collect();
        let expected = [
            ("alone", Link::Never, up),
            ("back", up, Link::Expected),
            ("both", up, up),
            ("lost", down, Link::Down { since: UnixMs(8) }),
            ("no-xds", up, Link::Never),
        ];
        assert_eq!(links, expected);
    }
}
