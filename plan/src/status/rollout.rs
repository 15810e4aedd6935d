//! How far a part of the plan has come at the gateways, and why some lag.
//!
//! The words are those of one condition in thousands of statuses, so they stand still: instants, never how
//! long ago; the first few names, never all of them.

use super::{Health, cut, time};
use crate::applied::{Applied, GIVEN_UP_AFTER_MS, Gateway, Instead, Link, Part};
use plimsoll_core::ids::UnixMs;
use plimsoll_core::policy::PolicyKey;
use std::fmt;

/// Gateways named in one message.
const MOST_NAMES: usize = 3;

/// The most characters of a gateway's name.
const LONGEST_NAME: usize = 63;

/// The most characters of a gateway's or Envoy's own words: the rest of the message must fit beside them.
const LONGEST_WORDS: usize = 400;

/// What one gateway says to a part of the plan.
pub(super) enum Word<'a> {
    Holds,
    Lags(Lag),
    Rejects(Who, &'a str),
}

/// Who won't have it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Filter,
    Envoy(Part),
}

/// Why a gateway does not hold it. Those first that somebody must look at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lag {
    /// There is an Envoy that takes clusters and keys, and nobody there takes policy.
    NoFilter,
    /// There is a filter, and its Envoy takes no clusters.
    NoXds,
    LedgerDown(UnixMs, Instead),
    XdsDown(UnixMs),
    /// It was there before the operator started.
    Expected,
    /// It has been told, or is being told.
    Told(Instead),
    /// Its Envoy has been told.
    EnvoyTold(Part),
}

impl Lag {
    /// A gateway on `ledger` has `instead` of an object.
    pub(super) fn of(ledger: Link, instead: Instead) -> Self {
        match ledger {
            Link::Never => Self::NoFilter,
            Link::Expected => Self::Expected,
            Link::Down { since } => Self::LedgerDown(since, instead),
            Link::Up => Self::Told(instead),
        }
    }

    /// Whether it is over in moments, with nobody doing anything.
    fn passes(self) -> bool {
        match self {
            Self::Expected | Self::Told(_) | Self::EnvoyTold(_) => true,
            Self::NoFilter | Self::NoXds | Self::LedgerDown(..) | Self::XdsDown(_) => false,
        }
    }

    /// What to do about it.
    fn remedy(self) -> String {
        let remedy = match self {
            Self::NoFilter => {
                "Configure the Plimsoll filter in that Envoy's listener, or see \"plimsoll:\" in its log."
            }
            Self::NoXds | Self::XdsDown(_) => {
                "See ads_config in Envoy's bootstrap, and whether it reaches the operator."
            }
            Self::LedgerDown(..) => {
                let minutes = GIVEN_UP_AFTER_MS / 60_000;
                return format!(
                    ". See whether it runs and reaches the operator; gone for good, it counts no more after {minutes} min."
                );
            }
            Self::Expected | Self::Told(_) | Self::EnvoyTold(_) => return String::new(),
        };
        format!(". {remedy}")
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFilter => f.write_str("no ledger stream, Envoy alone is connected"),
            Self::NoXds => f.write_str("no xDS stream, the filter alone is connected"),
            Self::LedgerDown(since, Instead::Nothing) => {
                write!(f, "no ledger stream since {}", time(*since).0)
            }
            Self::LedgerDown(since, Instead::Before) => {
                write!(f, "no ledger stream since {}, the version before is in force", time(*since).0)
            }
            Self::XdsDown(since) => write!(f, "no xDS stream since {}", time(*since).0),
            Self::Expected => f.write_str("not back since the operator started"),
            Self::Told(Instead::Nothing) => f.write_str("not yet acknowledged"),
            Self::Told(Instead::Before) => {
                f.write_str("not yet acknowledged, the version before is in force")
            }
            Self::EnvoyTold(Part::Cluster) => f.write_str("Envoy has not yet acknowledged the cluster"),
            Self::EnvoyTold(Part::Key) => f.write_str("Envoy has not yet acknowledged the key"),
        }
    }
}

/// What `gateway` says to the policy object `key`.
pub(super) fn policy<'a>(gateway: &'a Gateway, key: &PolicyKey) -> Word<'a> {
    let unheard = matches!(gateway.ledger, Link::Never | Link::Expected).then_some(Instead::Nothing);
    if let Some(words) = gateway.rejected.get(key) {
        return Word::Rejects(Who::Filter, words);
    }
    let lacks = unheard.or_else(|| gateway.lacks.get(key).copied());
    lacks.map_or(Word::Holds, |instead| Word::Lags(Lag::of(gateway.ledger, instead)))
}

/// What `gateway`'s Envoy says to `clusters`.
pub(super) fn envoy<'a>(gateway: &'a Gateway, clusters: &[String]) -> Word<'a> {
    match gateway.xds {
        Link::Never => return Word::Lags(Lag::NoXds),
        Link::Expected => return Word::Lags(Lag::Expected),
        Link::Up | Link::Down { .. } => {}
    }
    let mut word = Word::Holds;
    for missing in clusters.iter().filter_map(|cluster| gateway.clusters.get(cluster)) {
        if let Some(words) = &missing.rejected {
            return Word::Rejects(Who::Envoy(missing.part), words);
        }
        word = Word::Lags(match gateway.xds {
            Link::Down { since } => Lag::XdsDown(since),
            Link::Never | Link::Expected | Link::Up => Lag::EnvoyTold(missing.part),
        });
    }
    word
}

/// What a gateway says of which the one part says `one`, and the other `other`.
pub(super) fn both<'a>(one: Word<'a>, other: Word<'a>) -> Word<'a> {
    match (one, other) {
        (Word::Rejects(who, words), _) | (_, Word::Rejects(who, words)) => Word::Rejects(who, words),
        (Word::Lags(one), Word::Lags(other)) => Word::Lags(one.min(other)),
        (Word::Lags(lag), Word::Holds) | (Word::Holds, Word::Lags(lag)) => Word::Lags(lag),
        (Word::Holds, Word::Holds) => Word::Holds,
    }
}

/// How far a part of the plan has come.
#[derive(Default)]
pub(super) struct Rollout<'a> {
    pub(super) holding: usize,
    pub(super) total: usize,
    lagging: Vec<(Lag, &'a str)>,
    rejecting: Vec<(&'a str, Who, &'a str)>,
}

impl<'a> Rollout<'a> {
    pub(super) fn of(applied: &'a Applied, word: impl Fn(&'a Gateway) -> Word<'a>) -> Self {
        let mut rollout = Self { total: applied.gateways.len(), ..Self::default() };
        for (name, gateway) in &applied.gateways {
            match word(gateway) {
                Word::Holds => rollout.holding += 1,
                Word::Lags(lag) => rollout.lagging.push((lag, name)),
                Word::Rejects(who, words) => rollout.rejecting.push((name, who, words)),
            }
        }
        rollout.lagging.sort_unstable();
        rollout
    }

    /// Why not every gateway has it: a reason and its words.
    pub(super) fn trouble(&self) -> Option<(&'static str, String)> {
        if let Some(rejection) = self.rejection() {
            let lagging = listed(&self.lagging);
            let lagging = if lagging.is_empty() { lagging } else { format!(" Beside that, {lagging}.") };
            return Some(("RejectedByGateway", rejection + &lagging));
        }
        if let Some((worst, _)) = self.lagging.first() {
            let reason = if worst.passes() { "WaitingForGateways" } else { "GatewayDisconnected" };
            return Some((reason, listed(&self.lagging) + &worst.remedy()));
        }
        (self.total == 0).then(|| ("NoGateway", "no gateway is connected; start one".to_owned()))
    }

    /// How the object does, given that nothing is wrong with it. A gateway that is not there holds nothing
    /// back: one lost node must not keep every change from being ready.
    pub(super) fn health(&self, was_ready: bool) -> Health {
        if was_ready {
            return Health::in_force();
        }
        // Those that pass come last.
        let passing = self.lagging.partition_point(|(lag, _)| !lag.passes());
        if let Some(passing @ [_, ..]) = self.lagging.get(passing..) {
            return Health::Reconciling("WaitingForGateways", listed(passing));
        }
        match self.rejection() {
            Some(rejection) if self.holding == 0 => Health::Stalled("RejectedByGateway", rejection),
            Some(_) | None => Health::in_force(),
        }
    }

    /// Whether nothing is known against what was said before the operator started: gateways that held it then
    /// hold it still, and are only not back yet.
    pub(super) fn is_unheard(&self) -> bool {
        self.rejecting.is_empty()
            && !self.lagging.is_empty()
            && self.lagging.iter().all(|(lag, _)| *lag == Lag::Expected)
    }

    fn rejection(&self) -> Option<String> {
        let (_, who, words) = self.rejecting.first()?;
        let names = names(self.rejecting.iter().map(|(name, _, _)| *name));
        let words = cut(words, LONGEST_WORDS);
        Some(match who {
            Who::Filter => format!("{names} does not understand it: {words}. Update the gateway."),
            Who::Envoy(Part::Cluster) => format!(
                "Envoy of {names} rejects the cluster: {words}. Mend what it names; a file must be on the gateway \
                 when it starts (providerCAFile in the operator's settings)."
            ),
            Who::Envoy(Part::Key) => {
                format!("Envoy of {names} rejects the key: {words}. Mend the Secret.")
            }
        })
    }
}

/// `reason: gw-1, gw-2; other reason: gw-3 and 5 more`.
fn listed(lagging: &[(Lag, &str)]) -> String {
    let mut text = String::new();
    let mut last = None;
    for (lag, name) in lagging.iter().take(MOST_NAMES) {
        let name = cut(name, LONGEST_NAME);
        if last == Some(lag) {
            text.push_str(", ");
            text.push_str(&name);
        } else {
            let between = if last.is_some() { "; " } else { "" };
            text.push_str(&format!("{between}{lag}: {name}"));
        }
        last = Some(lag);
    }
    text + &more(lagging.len())
}

/// `gw-1, gw-2, gw-3 and 5 more`.
fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = more(all.len());
    all.take(MOST_NAMES).map(|name| cut(name, LONGEST_NAME)).collect::<Vec<_>>().join(", ") + &more
}

fn more(count: usize) -> String {
    match count.saturating_sub(MOST_NAMES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}
