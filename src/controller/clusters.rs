//! Envoy's clusters and keys, as gateways should have them.
//!
//! What no policy names any more lingers for a while: gateways hear of clusters and of policy on different
//! streams.

use crate::gateway::{ResourceKey, Snapshot, cluster, secret};
use plimsoll_plan::{EnvoyCluster, World};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a cluster outlives the policy that named it.
const LINGER: Duration = Duration::from_secs(30);

/// What gateways should have by xDS.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    current: BTreeMap<String, EnvoyCluster>,
    /// Those that no policy names any more, and until when they stay.
    lingering: BTreeMap<String, (EnvoyCluster, Instant)>,
    snapshot: Snapshot,
}

impl Clusters {
    /// What was made last.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// When the next of those that linger goes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lingering.values().map(|(_, until)| *until).min()
    }

    /// From now on `wanted` are the clusters, with keys from `world`. `salt` makes versions of keys tell nothing
    /// about them.
    pub(super) fn update(
        &mut self,
        wanted: &BTreeMap<String, EnvoyCluster>,
        world: &World,
        ca_file: &str,
        salt: &[u8],
        now: Instant,
    ) -> &Snapshot {
        for (name, cluster) in std::mem::take(&mut self.current) {
            if !wanted.contains_key(&name) {
                self.lingering.insert(name, (cluster, now + LINGER));
            }
        }
        self.lingering.retain(|name, (_, until)| !wanted.contains_key(name) && *until > now);
        self.current.clone_from(wanted);
        let World { secrets, secrets_denied, .. } = world;
        let mut snapshot = Snapshot::default();
        for cluster in self.current.values().chain(self.lingering.values().map(|(cluster, _)| cluster)) {
            snapshot.insert(ResourceKey::cluster(&cluster.name), &cluster::cluster(cluster, ca_file), b"");
            let Some(reference) = &cluster.inject_key else { continue };
            let name = secret::name(reference);
            let resource = ResourceKey::secret(&name);
            match secrets.get(&reference.secret) {
                Some(keys) => {
                    if let Some(key) = keys.get(&reference.key) {
                        snapshot.insert(resource, &secret::secret(&name, key.expose()), salt);
                    }
                }
                None if secrets_denied.contains_key(&reference.secret.namespace) => snapshot.leave(resource),
                None => {}
            }
        }
        self.snapshot = snapshot;
        &self.snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_plan::Settings;

    fn wanted(names: &[&str]) -> BTreeMap<String, EnvoyCluster> {
        let cluster = |name: &&str| {
            let (host, tls, inject_key) = ("127.0.0.1".to_owned(), false, None);
            ((*name).to_owned(), EnvoyCluster { name: (*name).to_owned(), host, port: 1, tls, inject_key })
        };
        names.iter().map(cluster).collect()
    }

    #[test]
    fn a_cluster_outlives_its_policy_for_half_a_minute() {
        let (mut clusters, world) = (Clusters::default(), World::new(Settings::default()));
        let start = Instant::now();
        let has = |snapshot: &Snapshot, name: &str| snapshot.get(&ResourceKey::cluster(name)).is_some();
        clusters.update(&wanted(&["a", "b"]), &world, "", b"", start);
        assert_eq!(clusters.due(), None);
        let snapshot = clusters.update(&wanted(&["b"]), &world, "", b"", start);
        assert!(has(snapshot, "a") && has(snapshot, "b"));
        assert_eq!(clusters.due(), Some(start + LINGER));
        // Whatever else happens meanwhile, its time is its time.
        clusters.update(&wanted(&["b", "c"]), &world, "", b"", start + LINGER / 2);
        assert_eq!(clusters.due(), Some(start + LINGER));
        let snapshot = clusters.update(&wanted(&["b", "c"]), &world, "", b"", start + LINGER);
        assert!(!has(snapshot, "a") && has(snapshot, "c"));
        assert_eq!(clusters.due(), None);
    }
}
