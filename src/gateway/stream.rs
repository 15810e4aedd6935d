//! What one gateway must be told: a delta xDS stream as a state machine.
//!
//! It never sends or waits ([`super::ads`] does). One response of a kind is in flight at a time:
//! what changes meanwhile goes with the next one, so that a slow gateway costs no memory and skips
//! versions instead of falling behind. A rejected version isn't sent again until it changes.

use super::acks::{Held, Rejected};
use super::snapshot::{Kind, ResourceKey, Snapshot, Version, Want};
use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use std::collections::{BTreeMap, BTreeSet};

/// Every resource of a kind.
const WILDCARD: &str = "*";

/// The most names of secrets and clusters that one stream may subscribe to; a gateway needs two for each backend.
const MAX_NAMES: usize = 100_000;

/// In place of what Envoy says of a key.
const UNQUOTED: &str = "its words stand in its log alone, because they may quote the key";

/// One stream's state.
#[derive(Debug, Default)]
pub struct Stream {
    subscriptions: BTreeMap<Kind, Subscription>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    acknowledged: BTreeMap<String, Version>,
    rejected: BTreeMap<String, Rejected>,
    /// Subscribed, told that there is no such thing.
    absent: BTreeSet<String>,
    /// Subscribed again: xDS wants it sent even if unchanged.
    again: BTreeSet<String>,
    /// The first answer is due even if it is empty: Envoy's start waits for it.
    greeted: bool,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    sent: Vec<(String, Version)>,
    removed: Vec<String>,
}

/// What a request said about an earlier response.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing, or something about a response that is no longer waited for.
    Nothing,
    /// Everything in it is in force.
    Acknowledged(Kind),
    /// Some of it is not; see [`Stream::held`].
    Rejected(Kind, String),
    /// It wants a kind that isn't served here.
    NotServed(String),
    /// It subscribes to more names than a gateway can need; end the stream.
    TooMany(Kind),
}

impl Stream {
    /// Takes in a request. What is due afterwards, [`Stream::due`] tells.
    pub fn hear(&mut self, request: DeltaDiscoveryRequest) -> Heard {
        let Some(kind) = Kind::of_type_url(&request.type_url) else {
            return Heard::NotServed(request.type_url);
        };
        let first = !self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind).or_default();
        if first {
            // An empty first subscription is xDS's old way to write "*".
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            subscription.acknowledged = request
                .initial_resource_versions
                .into_iter()
                .map(|(name, version)| (name, Version(version)))
                .collect();
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                subscription.wildcard = true;
                continue;
            }
            subscription.absent.remove(&name);
            if !first {
                subscription.again.insert(name.clone());
            }
            subscription.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                subscription.wildcard = false;
                continue;
            }
            subscription.forget(&name);
        }
        if subscription.names.len() > MAX_NAMES {
            return Heard::TooMany(kind);
        }
        let error = request.error_detail.map(|status| status.message);
        subscription.answered(kind, &request.response_nonce, error)
    }

    /// What the gateway must be told now, for `snapshot` to be in force.
    pub fn due(&mut self, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for (&kind, subscription) in &mut self.subscriptions {
            if subscription.in_flight.is_some() {
                continue;
            }
            let Some(change) = subscription.change(kind, snapshot) else { continue };
            self.nonces += 1;
            let nonce = self.nonces.to_string();
            let response = DeltaDiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                nonce: nonce.clone(),
                resources: change
                    .sent
                    .iter()
                    .filter_map(|(name, version)| {
                        let resource = snapshot.get(&ResourceKey { kind, name: name.clone() })?;
                        Some(Resource {
                            name: name.clone(),
                            version: version.0.clone(),
                            resource: Some(resource.body.clone()),
                            ..Default::default()
                        })
                    })
                    .collect(),
                removed_resources: change.removed.clone(),
                control_plane: Some(ControlPlane { identifier: "plimsoll".to_owned() }),
                ..Default::default()
            };
            subscription.in_flight = Some(InFlight { nonce, ..change });
            responses.push(response);
        }
        responses
    }

    /// What the gateway holds, as far as it has said.
    #[must_use]
    pub fn held(&self) -> Held {
        let mut held = Held::default();
        for (&kind, subscription) in &self.subscriptions {
            let key = |name: &String| ResourceKey { kind, name: name.clone() };
            held.acknowledged
                .extend(subscription.acknowledged.iter().map(|(name, version)| (key(name), version.clone())));
            held.rejected
                .extend(subscription.rejected.iter().map(|(name, rejected)| (key(name), rejected.clone())));
        }
        held
    }
}

impl Subscription {
    fn forget(&mut self, name: &str) {
        self.names.remove(name);
        self.absent.remove(name);
        self.again.remove(name);
        if !self.wildcard {
            self.acknowledged.remove(name);
            self.rejected.remove(name);
        }
    }

    fn answered(&mut self, kind: Kind, nonce: &str, error: Option<String>) -> Heard {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.nonce == nonce) else {
            return Heard::Nothing;
        };
        for name in &in_flight.removed {
            self.acknowledged.remove(name);
            self.rejected.remove(name);
        }
        let Some(words) = error else {
            for (name, version) in in_flight.sent {
                self.take(name, version);
            }
            return Heard::Acknowledged(kind);
        };
        // Envoy applies the good ones of a response and names the others. If it names none, nothing of the
        // response can be believed to be in force.
        let mut named = named(&words, in_flight.sent.iter().map(|(name, _)| name.as_str()));
        let any_named = !named.is_empty();
        let words = match kind {
            Kind::Cluster => words,
            Kind::Secret => UNQUOTED.to_owned(),
        };
        for (name, version) in in_flight.sent {
            let about = named.remove(&name);
            if any_named && about.is_none() {
                self.take(name, version);
            } else if self.wildcard || self.names.contains(&name) {
                let about = about.filter(|_| kind == Kind::Cluster).unwrap_or_else(|| words.clone());
                self.rejected.insert(name, Rejected { version, words: about });
            }
        }
        Heard::Rejected(kind, words)
    }

    fn take(&mut self, name: String, version: Version) {
        self.rejected.remove(&name);
        // It may have unsubscribed while the response was on its way.
        if self.wildcard || self.names.contains(&name) {
            self.acknowledged.insert(name, version);
        }
    }

    fn change(&mut self, kind: Kind, snapshot: &Snapshot) -> Option<InFlight> {
        let mut sent = Vec::new();
        for (name, resource) in snapshot.of(kind) {
            if !self.wildcard && !self.names.contains(name) {
                continue;
            }
            let version = &resource.version;
            let holds = self.acknowledged.get(name) == Some(version);
            let rejects = self.rejected.get(name).is_some_and(|rejected| rejected.version == *version);
            if (!holds && !rejects) || self.again.contains(name) {
                self.absent.remove(name);
                sent.push((name.to_owned(), version.clone()));
            }
        }
        let gone =
            |name: &&String| snapshot.want(&ResourceKey { kind, name: (*name).clone() }) == Want::Nothing;
        let mut removed: BTreeSet<String> =
            self.acknowledged.keys().chain(self.rejected.keys()).filter(gone).cloned().collect();
        // A name that doesn't exist is answered as removed, or Envoy's cluster would wait for it.
        for name in self.names.iter().filter(gone) {
            if self.absent.insert(name.clone()) {
                removed.insert(name.clone());
            }
        }
        self.again.clear();
        let first = !std::mem::replace(&mut self.greeted, true);
        (first || !sent.is_empty() || !removed.is_empty()).then(|| InFlight {
            nonce: String::new(),
            sent,
            removed: removed.into_iter().collect(),
        })
    }
}

/// What `words` say about each of `names` that they name: `… a: why, b: why`.
fn named<'a>(words: &str, names: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut places: Vec<(usize, usize, &str)> = names
        .filter_map(|name| {
            let mark = format!("{name}: ");
            let places = words.match_indices(&mark).map(|(at, _)| at);
            // Not the end of a longer name.
            let at = places.into_iter().find(|at| words[..*at].ends_with(' ') || *at == 0)?;
            Some((at, at + mark.len(), name))
        })
        .collect();
    places.sort_unstable();
    let ends = places.iter().skip(1).map(|(at, _, _)| *at).chain([words.len()]);
    let ends: Vec<usize> = ends.collect();
    let about = |(place, end): (&(usize, usize, &str), usize)| {
        let about = words.get(place.1..end).unwrap_or(words).trim_end_matches([',', ' ']);
        (place.2.to_owned(), about.to_owned())
    };
    places.iter().zip(ends).map(about).collect()
}

#[cfg(test)]
mod tests {
    use super::super::secret::secret;
    use super::*;
    use envoy_types::pb::google::rpc::Status;

    fn snapshot(secrets: &[(&str, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, key) in secrets {
            snapshot.insert(ResourceKey::secret(name), &secret(name, key.as_bytes()), b"");
        }
        snapshot
    }

    fn ask(names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: Kind::Secret.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..Default::default()
        }
    }

    fn answer(response: &DeltaDiscoveryResponse, error: Option<&str>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|words| Status { message: words.to_owned(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
        response.resources.iter().map(|resource| resource.name.as_str()).collect()
    }

    fn one(responses: Vec<DeltaDiscoveryResponse>) -> DeltaDiscoveryResponse {
        assert_eq!(responses.len(), 1, "{responses:?}");
        responses.into_iter().next().unwrap()
    }

    /// A stream on which `*` was asked and `snapshot` acknowledged.
    fn settled(snapshot: &Snapshot) -> Stream {
        let mut stream = Stream::default();
        stream.hear(ask(&["*"]));
        let response = one(stream.due(snapshot));
        assert_eq!(stream.hear(answer(&response, None)), Heard::Acknowledged(Kind::Secret));
        assert!(stream.due(snapshot).is_empty());
        stream
    }

    #[test]
    fn what_cannot_be_known_is_left_where_it_is_and_answered_with_silence() {
        let (mut stream, mut unknown) = (Stream::default(), Snapshot::default());
        unknown.leave(ResourceKey::secret("a"));
        let mut request = ask(&["a"]);
        request.initial_resource_versions.insert("a".to_owned(), "of before".to_owned());
        stream.hear(request);
        let responses = stream.due(&unknown);
        let said: Vec<_> = responses.iter().map(|it| (names(it), it.removed_resources.clone())).collect();
        assert_eq!(said, [(vec![], vec![])], "the greeting, and nothing of a");
        stream.hear(answer(&responses[0], None));
        assert!(stream.held().acknowledged.contains_key(&ResourceKey::secret("a")));
        assert_eq!(stream.due(&Snapshot::default())[0].removed_resources, ["a"], "it is known to be gone");
    }

    #[test]
    fn only_what_changed_is_sent() {
        let mut stream = settled(&snapshot(&[("a", "1"), ("b", "1"), ("c", "1")]));
        let response = one(stream.due(&snapshot(&[("a", "1"), ("b", "2"), ("d", "1")])));
        assert_eq!(names(&response), ["b", "d"]);
        assert_eq!(response.removed_resources, ["c"]);
    }

    #[test]
    fn a_start_with_nothing_to_send_is_still_answered() {
        let mut stream = Stream::default();
        stream.hear(ask(&[]));
        let response = one(stream.due(&Snapshot::default()));
        assert!(response.resources.is_empty() && response.removed_resources.is_empty());
    }

    #[test]
    fn a_slow_gateway_skips_versions() {
        let mut stream = settled(&snapshot(&[("a", "1")]));
        let second = one(stream.due(&snapshot(&[("a", "2")])));
        assert!(stream.due(&snapshot(&[("a", "3")])).is_empty(), "one response of a kind is in flight");
        let last = snapshot(&[("a", "4")]);
        assert!(stream.due(&last).is_empty());
        stream.hear(answer(&second, None));
        assert_eq!(names(&one(stream.due(&last))), ["a"]);
    }

    #[test]
    fn a_rejected_version_is_not_sent_again_until_it_changes() {
        let first = snapshot(&[("a", "1"), ("b", "1")]);
        let mut stream = settled(&first);
        let bad = snapshot(&[("a", "2"), ("b", "2")]);
        let response = one(stream.due(&bad));
        let heard = stream.hear(answer(&response, Some("Error adding/updating secret(s) a: no good")));
        assert!(matches!(heard, Heard::Rejected(Kind::Secret, _)));
        let held = stream.held();
        let (a, b) = (ResourceKey::secret("a"), ResourceKey::secret("b"));
        assert_eq!(held.acknowledged.get(&a), first.version(&a), "the predecessor stays");
        assert_eq!(held.acknowledged.get(&b), bad.version(&b), "the other one of the response is in force");
        assert_eq!(held.rejected.keys().collect::<Vec<_>>(), [&a]);
        assert_eq!(held.rejected[&a].words, UNQUOTED);
        assert_eq!(heard, Heard::Rejected(Kind::Secret, UNQUOTED.to_owned()), "nor is it logged");
        assert!(stream.due(&bad).is_empty());

        let good = snapshot(&[("a", "3"), ("b", "2")]);
        let response = one(stream.due(&good));
        assert_eq!(names(&response), ["a"]);
        stream.hear(answer(&response, None));
        assert!(stream.held().rejected.is_empty());
    }

    #[test]
    fn of_what_envoy_says_each_gets_its_own_part() {
        let about = |words: &str, names: &[&str]| -> Vec<(String, String)> {
            named(words, names.iter().copied()).into_iter().collect()
        };
        let pair = |name: &str, words: &str| (name.to_owned(), words.to_owned());
        let words = "Error adding/updating cluster(s) backend/a/x: Invalid path: /no/ca, backend/a/x/passthrough: \
                     Invalid path: /no/ca, backend/b/x: no, never";
        assert_eq!(
            about(words, &["backend/a/x", "backend/a/x/passthrough", "backend/b/x", "backend/c/x"]),
            [
                pair("backend/a/x", "Invalid path: /no/ca"),
                pair("backend/a/x/passthrough", "Invalid path: /no/ca"),
                pair("backend/b/x", "no, never"),
            ]
        );
        assert_eq!(about("long-a: bad", &["a"]), []);
        assert_eq!(about("a: bad", &["a"]), [pair("a", "bad")]);
        assert_eq!(about("out of memory", &["a"]), []);
    }

    #[test]
    fn a_rejection_that_names_nothing_holds_for_the_whole_response() {
        let mut stream = settled(&Snapshot::default());
        let response = one(stream.due(&snapshot(&[("a", "1"), ("b", "1")])));
        stream.hear(answer(&response, Some("out of memory")));
        assert_eq!(stream.held().rejected.len(), 2);
    }

    #[test]
    fn a_gateway_that_reconnects_is_sent_only_what_it_lacks() {
        let before = snapshot(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let version = |name: &str| before.version(&ResourceKey::secret(name)).unwrap().0.clone();
        let mut request = ask(&["*"]);
        request.initial_resource_versions =
            ["a", "b", "c"].iter().map(|&name| (name.to_owned(), version(name))).collect();
        let mut stream = Stream::default();
        stream.hear(request);
        let response = one(stream.due(&snapshot(&[("a", "1"), ("b", "2")])));
        assert_eq!(names(&response), ["b"]);
        assert_eq!(response.removed_resources, ["c"]);
        stream.hear(answer(&response, None));
        assert_eq!(stream.held().acknowledged.len(), 2);
    }

    #[test]
    fn a_name_that_does_not_exist_is_said_to_be_gone_once_and_sent_when_it_appears() {
        let mut stream = Stream::default();
        stream.hear(ask(&["a"]));
        let response = one(stream.due(&Snapshot::default()));
        assert_eq!(response.removed_resources, ["a"]);
        stream.hear(answer(&response, None));
        assert!(stream.due(&Snapshot::default()).is_empty());
        assert_eq!(names(&one(stream.due(&snapshot(&[("a", "1"), ("b", "1")])))), ["a"]);
    }

    #[test]
    fn a_name_subscribed_again_is_sent_again_and_one_given_up_no_more() {
        let now = snapshot(&[("a", "1"), ("b", "1")]);
        let mut stream = Stream::default();
        stream.hear(ask(&["a", "b"]));
        let response = one(stream.due(&now));
        stream.hear(answer(&response, None));
        stream.hear(ask(&["a"]));
        let response = one(stream.due(&now));
        assert_eq!(names(&response), ["a"]);
        stream.hear(answer(&response, None));
        let mut give_up = ask(&[]);
        give_up.resource_names_unsubscribe = vec!["b".to_owned()];
        stream.hear(give_up);
        assert!(stream.due(&snapshot(&[("a", "1"), ("b", "2")])).is_empty());
        assert_eq!(stream.held().acknowledged.len(), 1);
    }

    #[test]
    fn an_answer_to_a_response_that_is_not_in_flight_changes_nothing() {
        let mut stream = settled(&snapshot(&[("a", "1")]));
        let held = stream.held();
        let stale = DeltaDiscoveryResponse {
            type_url: Kind::Secret.type_url().to_owned(),
            nonce: "77".to_owned(),
            ..Default::default()
        };
        assert_eq!(stream.hear(answer(&stale, Some("a: bad"))), Heard::Nothing);
        assert_eq!(stream.held(), held);
    }
}
