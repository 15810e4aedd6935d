//! An API server as a source: one watch a kind, and one for the Secrets of each namespace that may be read.
//!
//! What a watch tells is judged in [`Catalogue`]; here stand only the watches themselves. kube's watcher
//! resumes, lists anew where it must, and backs off; it never ends.

use super::access;
use super::catalogue::{Catalogue, Failure, LONGEST_PAUSE, Seen, Told, Version, Watch};
use super::lenient::{Lenient, Unreadable};
use super::metrics::Requests;
use super::stored::{Fingerprint, Reported, Stored};
use super::{at, next_pause};
use crate::source::{Batch, Change, Source};
use futures::stream::{AbortHandle, BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{ObjectMeta, PartialObjectMeta};
use kube::core::object::HasStatus;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use plimsoll_api::{AIBudget, ModelBackend, ModelRoute, Object, ObjectId};
use plimsoll_plan::Settings;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// The most that is taken at once, so that a long list is planned in parts while it is read.
const MOST: usize = 4096;

/// The first pause before a watch that failed is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Helm's records lie beside providers' keys, a megabyte each, and none of them is one.
const SECRETS: &str = "type!=helm.sh/release.v1";

/// The objects of an API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    stored: Arc<Stored>,
    requests: Requests,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes(…)")
    }
}

impl Kubernetes {
    /// Those that `client`, made with `requests`, may see. `stored` is told which statuses they have.
    #[must_use]
    pub fn new(client: Client, stored: Arc<Stored>, requests: Requests) -> Self {
        Self { client, stored, requests }
    }
}

impl Source for Kubernetes {
    async fn run(
        self,
        into: mpsc::Sender<Batch>,
        mut settings: watch::Receiver<Settings>,
    ) -> anyhow::Result<()> {
        let mut catalogue = Catalogue::default();
        let mut answers = self.requests.answers();
        let mut watches = Watches::of(self);
        for watch in Watch::ALWAYS {
            catalogue.begin(watch.clone());
            watches.begin(watch);
        }
        let mut batch = Batch::new();
        let mut reported = Vec::new();
        let mut begun = false;
        watches.read_secrets_of(&secret_namespaces(&settings.borrow_and_update()), &mut catalogue);
        loop {
            let wake = catalogue.wake(Instant::now()).map(tokio::time::Instant::from_std);
            tokio::select! {
                () = into.closed() => return Ok(()),
                changed = settings.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let namespaces = secret_namespaces(&settings.borrow_and_update());
                    batch.extend(watches.read_secrets_of(&namespaces, &mut catalogue));
                }
                Ok(()) = answers.changed() => {
                    for (watch, at) in watches.answered(&answers.borrow_and_update()) {
                        catalogue.answered(watch, at);
                    }
                }
                () = at(wake) => {}
                Some((watch, told)) = watches.streams.next() => {
                    batch.extend(watches.heard(catalogue.hear(&watch, told, Instant::now())));
                    while batch.len() < MOST
                        && let Some(Some((watch, told))) = watches.streams.next().now_or_never()
                    {
                        batch.extend(watches.heard(catalogue.hear(&watch, told, Instant::now())));
                    }
                }
            }
            let now = Instant::now();
            batch.extend(catalogue.settle(now));
            let faults = catalogue.faults(now);
            let news = faults != reported;
            // The first batch is everything there is: a part of it would let too much pass.
            let first = !begun && catalogue.is_listed(now);
            begun |= first;
            let next = if !begun {
                if !news {
                    continue;
                }
                vec![Change::Waiting(faults.clone())]
            } else {
                // What was told while waiting is told again: it may be what stays.
                if news || first {
                    batch.push(Change::Faults(faults.clone()));
                }
                if batch.is_empty() {
                    continue;
                }
                std::mem::take(&mut batch)
            };
            reported = faults;
            if into.send(next).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn secret_namespaces(settings: &Settings) -> BTreeSet<String> {
    settings.secret_namespaces.iter().chain([&settings.root_namespace]).cloned().collect()
}

/// The watches that run.
struct Watches {
    client: Client,
    stored: Arc<Stored>,
    streams: SelectAll<BoxStream<'static, (Watch, Told)>>,
    /// By namespace; dropped streams would be polled once more.
    secrets: BTreeMap<String, AbortHandle>,
    /// Where each lists and watches.
    paths: BTreeMap<Watch, String>,
}

impl Watches {
    fn of(Kubernetes { client, stored, requests: _ }: Kubernetes) -> Self {
        let (secrets, paths) = (BTreeMap::new(), BTreeMap::new());
        Self { client, stored, streams: SelectAll::new(), secrets, paths }
    }

    /// When each watch was last answered, by what was answered at which path.
    fn answered<'a>(
        &'a self,
        answers: &'a BTreeMap<String, Instant>,
    ) -> impl Iterator<Item = (&'a Watch, Instant)> {
        self.paths.iter().filter_map(|(watch, path)| Some((watch, *answers.get(path)?)))
    }

    /// Lets go of what is gone. Before the next word of a watch is asked for: that may be of an object which has
    /// the name by now.
    fn heard(&self, changes: Vec<Change>) -> Vec<Change> {
        for change in &changes {
            if let Change::Gone(id) = change {
                self.stored.gone(id);
            }
        }
        changes
    }

    fn begin(&mut self, watch: Watch) {
        let client = self.client.clone();
        let path = match &watch {
            Watch::Budgets => AIBudget::url_path(&(), None),
            Watch::Routes => ModelRoute::url_path(&(), None),
            Watch::Backends => ModelBackend::url_path(&(), None),
            Watch::Namespaces => Namespace::url_path(&(), None),
            Watch::Secrets(namespace) => Secret::url_path(&(), Some(namespace)),
        };
        self.paths.insert(watch.clone(), path);
        let stream = match &watch {
            Watch::Budgets => self.ours::<AIBudget>(|object| Object::Budget(Box::new(object))),
            Watch::Routes => self.ours::<ModelRoute>(|object| Object::Route(Box::new(object))),
            Watch::Backends => self.ours::<ModelBackend>(|object| Object::Backend(Box::new(object))),
            // Only their labels matter.
            Watch::Namespaces => {
                let api = Api::<PartialObjectMeta<Namespace>>::all(client);
                let namespace = |it: PartialObjectMeta<Namespace>| Namespace {
                    metadata: slim(it.metadata),
                    ..Namespace::default()
                };
                followed(api, watcher::Config::default(), move |it| {
                    let uid = it.metadata.uid.clone().unwrap_or_default();
                    let version = Version { uid, content: format!("{:?}", it.metadata.labels) };
                    let object = Object::Namespace(Box::new(namespace(it)));
                    Seen { id: object.id(), version, object: Ok(object) }
                })
            }
            Watch::Secrets(namespace) => {
                let api = Api::<Secret>::namespaced(client, namespace);
                followed(api, watcher::Config::default().fields(SECRETS), |mut it| {
                    let version = version(&it.metadata);
                    it.metadata = slim(it.metadata);
                    let object = Object::Secret(Box::new(it));
                    Seen { id: object.id(), version, object: Ok(object) }
                })
            }
        };
        let (stream, handle) = futures::stream::abortable(stream);
        if let Watch::Secrets(namespace) = &watch {
            self.secrets.insert(namespace.clone(), handle);
        }
        self.streams.push(stream.map(move |told| (watch.clone(), told)).boxed());
    }

    /// The Secrets of these namespaces are read, and no others.
    fn read_secrets_of(&mut self, namespaces: &BTreeSet<String>, catalogue: &mut Catalogue) -> Batch {
        let mut changes = Batch::new();
        for (namespace, handle) in self.secrets.extract_if(.., |namespace, _| !namespaces.contains(namespace))
        {
            handle.abort();
            let watch = Watch::Secrets(namespace);
            self.paths.remove(&watch);
            changes.extend(catalogue.end(&watch));
        }
        for namespace in namespaces
            .iter()
            .filter(|namespace| !self.secrets.contains_key(*namespace))
            .cloned()
            .collect::<Vec<_>>()
        {
            let watch = Watch::Secrets(namespace);
            catalogue.begin(watch.clone());
            self.begin(watch);
        }
        changes
    }

    /// A watch on a kind of ours, in all namespaces.
    fn ours<K>(&self, object: fn(K) -> Object) -> BoxStream<'static, Told>
    where
        K: Resource<DynamicType = ()> + HasStatus + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
        K::Status: Reported,
    {
        let stored = Arc::clone(&self.stored);
        let api = Api::<Lenient<K>>::all(self.client.clone());
        followed(api, watcher::Config::default(), move |it| match (id(&it), it.0) {
            (id, Ok(mut it)) => {
                let version = Version {
                    uid: it.uid().unwrap_or_default(),
                    content: it.meta().generation.unwrap_or_default().to_string(),
                };
                let revision = it.resource_version().unwrap_or_default();
                let status = it.status().map(Fingerprint::of);
                *it.meta_mut() = slim(std::mem::take(it.meta_mut()));
                let object = object(it);
                stored.saw(&id, &version.uid, &revision, status);
                Seen { id, version, object: Ok(object) }
            }
            (id, Err(Unreadable { error, metadata })) => {
                // Its status tells of what is in force, and is written all the same.
                let version = version(&metadata);
                stored.saw_unreadable(&id, &version.uid, &version.content);
                let why = format!(
                    "can't be read: {error}; write it anew. What it was before, if anything, stays in force"
                );
                Seen { id, version, object: Err(why) }
            }
        })
    }
}

/// What a watch on `api` tells, without end.
fn followed<K>(
    api: Api<K>,
    config: watcher::Config,
    seen: impl Fn(K) -> Seen + Send + 'static,
) -> BoxStream<'static, Told>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    let plural = format!("{}.{}", K::plural(&()), K::group(&()));
    let told = move |event| match event {
        Ok(Event::Init) => Told::Listing,
        Ok(Event::InitApply(object) | Event::Apply(object)) => Told::There(seen(object)),
        Ok(Event::InitDone) => Told::Listed,
        Ok(Event::Delete(object)) => Told::Gone(id(&object)),
        Err(error) => Told::Failed(failure(&error, &plural)),
    };
    watcher(api, config).backoff(Pauses::default()).map(told).boxed()
}

/// How long a watch that failed rests: twice as long each time, until it was quiet for a while.
#[derive(Debug, Default)]
struct Pauses(Option<(Instant, Duration)>);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let pause = match self.0 {
            Some((last, pause)) if now < last + 2 * LONGEST_PAUSE => pause,
            Some(_) | None => Duration::ZERO,
        };
        let pause = next_pause(pause, [FIRST_PAUSE, LONGEST_PAUSE]);
        self.0 = Some((now, pause));
        Some(pause)
    }
}

impl Backoff for Pauses {
    /// Nothing: it is called for the news that a list begins too, and lists may fail for hours.
    fn reset(&mut self) {}
}

fn id<K: Resource<DynamicType = ()>>(object: &K) -> ObjectId {
    ObjectId {
        kind: K::kind(&()).into_owned(),
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// What is left of an object's metadata: who manages which field takes more room than all the rest.
fn slim(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        labels: metadata.labels,
        uid: metadata.uid,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        ..ObjectMeta::default()
    }
}

/// Of an object whose content has no generation, or none that can be believed.
fn version(metadata: &ObjectMeta) -> Version {
    Version {
        uid: metadata.uid.clone().unwrap_or_default(),
        content: metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// Why a watch on `plural` fails, and what to do.
fn failure(error: &watcher::Error, plural: &str) -> Failure {
    use watcher::Error;
    let status = match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => status,
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
            return Failure::Away(access::words(error));
        }
        Error::NoResourceVersion => return Failure::Away(access::NOT_UNDERSTOOD.to_owned()),
    };
    match status.code {
        403 => Failure::Denied(access::answer(status)),
        404 => Failure::Denied(format!(
            "the API server has no {plural}; install it: plimsoll crds | kubectl apply --server-side -f -"
        )),
        _ => Failure::Away(access::answer(status)),
    }
}
