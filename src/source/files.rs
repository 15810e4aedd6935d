//! A directory of manifests as a source: what each file holds, and what that changes.
//!
//! The rule: a new or changed object counts at once, a missing one only when it has been missing for
//! [`GRACE`], and never while its file has something wrong in it. A budget must not vanish for a
//! moment because an editor replaces its file, or for good because of a typing error. At the first
//! look nobody knows what a bad file should hold: [`Change::Whole`] waits until none is bad.

use super::manifest;
use super::watch::{self, Watch};
use super::{Batch, Change, Fault, Places, Source};
use anyhow::Context;
use plimsoll_api::{Object, ObjectId};
use plimsoll_plan::Settings;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long an object must be missing before it counts as deleted.
pub const GRACE: Duration = Duration::from_millis(500);

/// How often the directory is looked at even if nothing is heard: network file systems tell nothing.
const POLL: Duration = Duration::from_secs(2);

/// How long to wait for the rest when something changed.
const QUIET: Duration = Duration::from_millis(5);

/// The largest file that is read.
const MAX_FILE: u64 = 64 << 20;

/// The directory of `--manifests`.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    owners: Owners,
}

impl Files {
    /// Everything below `directory` that ends in .yaml, .yml or .json; hidden names are left out.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), owners: Owners::default() }
    }
}

impl Source for Files {
    fn places(&self) -> Places {
        let owners = self.owners.clone();
        Places::new(move |id| {
            owners.lock().get(id).map(|owner| format!("{}:{}", owner.file.shown, owner.line))
        })
    }

    async fn run(
        self,
        into: mpsc::Sender<Batch>,
        _: tokio::sync::watch::Receiver<Settings>,
    ) -> anyhow::Result<()> {
        let directory = std::path::absolute(&self.directory)?;
        let shown = self.directory.display();
        std::fs::read_dir(&directory)
            .with_context(|| format!("--manifests {shown} can't be read; give a directory"))?;
        let mut watch = Watch::new(&directory);
        let catalogue = Catalogue { owners: self.owners, ..Catalogue::default() };
        let mut scanner = Scanner { shown: self.directory, directory, catalogue, ..Scanner::default() };
        loop {
            watch.renew();
            let busy = watch.busy();
            let (back, batch, again) = tokio::task::spawn_blocking(move || {
                let (batch, again) = scanner.scan(&busy, Instant::now());
                (scanner, batch, again)
            })
            .await?;
            scanner = back;
            if let Some(batch) = batch
                && into.send(batch).await.is_err()
            {
                return Ok(());
            }
            let deadline = [again, watch.deadline()].into_iter().flatten().min();
            let pause = deadline.map_or(POLL, |at| at.saturating_duration_since(Instant::now()).min(POLL));
            tokio::select! {
                () = into.closed() => return Ok(()),
                () = watch.changed() => tokio::time::sleep(QUIET).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Reads what changed since it last looked.
#[derive(Debug, Default)]
struct Scanner {
    directory: PathBuf,
    shown: PathBuf,
    seen: BTreeMap<PathBuf, watch::Fingerprint>,
    catalogue: Catalogue,
    reported: Option<Vec<Fault>>,
    /// Whether [`Change::Whole`] was said.
    whole: bool,
}

impl Scanner {
    /// The changes since the last scan, and when to look again although nothing is heard. Files in
    /// `busy` are just being written.
    fn scan(&mut self, busy: &BTreeSet<PathBuf>, now: Instant) -> (Option<Batch>, Option<Instant>) {
        let mut batch = Batch::new();
        let mut again = None;
        let mut unreadable = None;
        let mut unread = false;
        match watch::files_below(&self.directory) {
            Ok(files) => {
                let gone: Vec<PathBuf> =
                    self.seen.keys().filter(|path| !files.contains_key(*path)).cloned().collect();
                for path in gone {
                    self.seen.remove(&path);
                    self.catalogue.lose(&path, now);
                }
                for (path, print) in files {
                    if self.seen.get(&path) == Some(&print) {
                        continue;
                    }
                    unread |= busy.contains(&path) || !print.is_settled();
                    if busy.contains(&path) && self.reported.is_some() {
                        continue;
                    }
                    batch.extend(self.catalogue.take(&path, &self.show(&path), load(&path), now));
                    if print.is_settled() {
                        self.seen.insert(path, print);
                    } else {
                        // Written so lately that a second write could have the same time stamp.
                        self.seen.remove(&path);
                        self.seen.insert(path, print.unsettled());
                        again = Some(now + watch::SETTLE);
                    }
                }
                for path in self.catalogue.heirs() {
                    batch.extend(self.catalogue.take(&path, &self.show(&path), load(&path), now));
                }
            }
            // The first batch is everything there is, and this would be nothing.
            Err(error) if self.reported.is_none() => {
                let directory = self.shown.display();
                tracing::warn!(%directory, %error, "the directory can't be read; gateways are not let in until it is");
                return (None, None);
            }
            // Nothing is deleted: a volume that is away for a moment is not an empty one.
            Err(error) => {
                let message = format!("the directory can't be read, its objects stay in force: {error}");
                unread = true;
                unreadable = Some(Fault { place: self.shown.display().to_string(), object: None, message });
            }
        }
        batch.extend(self.catalogue.bury(now).into_iter().map(Change::Gone));
        let mut faults: Vec<Fault> = unreadable.into_iter().chain(self.catalogue.faults()).collect();
        faults.sort();
        // What was missing for a moment may be just being written.
        if !self.whole && !unread && self.catalogue.is_whole() && self.catalogue.missing.is_empty() {
            self.whole = true;
            batch.push(Change::Whole);
        }
        let first = self.reported.is_none();
        if self.reported.as_ref() != Some(&faults) {
            batch.push(Change::Faults(faults.clone()));
            self.reported = Some(faults);
        }
        let again = [again, self.catalogue.next_burial()].into_iter().flatten().min();
        ((first || !batch.is_empty()).then_some(batch), again)
    }

    fn show(&self, path: &Path) -> String {
        let rest = path.strip_prefix(&self.directory).unwrap_or(path);
        self.shown.join(rest).display().to_string()
    }
}

fn load(path: &Path) -> Result<String, String> {
    if let (Ok(target), false) = (std::fs::read_link(path), path.exists()) {
        let target = target.display();
        return Err(format!("is a link to {target}, which is not there; mend the link or remove it"));
    }
    let length = std::fs::metadata(path).map_err(|error| format!("can't be read: {error}"))?.len();
    if length > MAX_FILE {
        return Err(format!("has {length} bytes, more than {MAX_FILE}; cut it into several files"));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("can't be read: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text; save it as UTF-8".to_owned())
}

/// Which file has which object, and what was told. Does no I/O.
#[derive(Debug, Default)]
struct Catalogue {
    files: BTreeMap<PathBuf, File>,
    owners: Owners,
    missing: BTreeMap<ObjectId, Instant>,
}

#[derive(Debug, Default)]
struct File {
    faults: Vec<Fault>,
    /// Something in it can't be read.
    torn: bool,
    /// Documents without fault, by the hash of their text: what is in them.
    documents: HashMap<u64, Vec<(ObjectId, u64)>>,
    /// Objects in it that another file had first.
    doubles: BTreeSet<ObjectId>,
}

/// Every object that was told, with the file that has it; looked into from outside too.
#[derive(Clone, Debug, Default)]
struct Owners(Arc<Mutex<BTreeMap<ObjectId, Owner>>>);

impl Owners {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectId, Owner>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Owner {
    file: Arc<FileName>,
    line: usize,
    content: u64,
    generation: i64,
}

/// A file for the machine, and for people.
#[derive(Debug)]
struct FileName {
    path: PathBuf,
    shown: String,
}

impl Catalogue {
    /// `text` is what `path` (for people: `shown`) holds now.
    fn take(&mut self, path: &Path, shown: &str, text: Result<String, String>, now: Instant) -> Vec<Change> {
        let mut file = File::default();
        let mut present = BTreeSet::new();
        let mut changes = Vec::new();
        let name = Arc::new(FileName { path: path.to_owned(), shown: shown.to_owned() });
        let text = text.unwrap_or_else(|message| {
            file.torn = true;
            file.faults.push(Fault { place: shown.to_owned(), object: None, message });
            String::new()
        });
        let before = self.files.remove(path).unwrap_or_default();
        let mut entries = Vec::new();
        for document in manifest::documents(&text) {
            let hash = hash(document.text);
            // One changed budget in a file of 10,000 must not cost reading them all.
            let known = before.documents.get(&hash);
            if let Some(known) = known.filter(|known| self.has(path, document.first_line(), known, &present))
            {
                present.extend(known.iter().map(|(id, _)| id.clone()));
                file.documents.insert(hash, known.clone());
                continue;
            }
            let read = document.read();
            let good = |entry: &manifest::Entry| entry.object.is_ok().then(|| entry.id.clone()).flatten();
            let good: Option<Vec<_>> = read.iter().map(|entry| Some((good(entry)?, entry.content))).collect();
            if let Some(good) = good {
                file.documents.insert(hash, good);
            }
            entries.extend(read);
        }
        let owners = self.owners.clone();
        let mut owners = owners.lock();
        for entry in entries {
            let object = entry.id.as_ref().map(ObjectId::to_string);
            let mut fault = |line: usize, message: String| {
                file.faults.push(Fault { place: format!("{shown}:{line}"), object: object.clone(), message });
            };
            let (object, id) = match (entry.object, entry.id) {
                (Ok(object), Some(id)) => (object, id),
                (Ok(_), None) => continue,
                (Err(wrongs), _) => {
                    wrongs.into_iter().for_each(|wrong| fault(wrong.line, wrong.message));
                    file.torn = true;
                    continue;
                }
            };
            if !present.insert(id.clone()) {
                fault(
                    entry.line,
                    "stands twice in this file; the first one counts, remove the other".to_owned(),
                );
                continue;
            }
            if let Some(owner) = owners.get(&id)
                && owner.file.path != path
                && !self.missing.contains_key(&id)
            {
                let other = &owner.file.shown;
                fault(entry.line, format!("stands in {other} too, and that one counts; remove one of them"));
                file.doubles.insert(id.clone());
                present.remove(&id);
                continue;
            }
            self.missing.remove(&id);
            let before = owners.get(&id).map(|owner| (owner.generation, owner.content));
            let changed = before.is_none_or(|(_, content)| content != entry.content);
            let generation = before.map_or(0, |(generation, _)| generation) + i64::from(changed);
            let (file, line, content) = (Arc::clone(&name), entry.line, entry.content);
            owners.insert(id, Owner { file, line, content, generation });
            if changed {
                changes.push(Change::Put(numbered(object, generation)));
            }
        }
        drop(owners);
        // What can't be read may be just the document that is missing now.
        if !file.torn {
            self.miss(path, &present, now);
        }
        self.files.insert(path.to_owned(), file);
        changes
    }

    /// Whether all of `known` was told, is in `path`, and did not stand there already; it stands on `line`
    /// now.
    fn has(&self, path: &Path, line: usize, known: &[(ObjectId, u64)], present: &BTreeSet<ObjectId>) -> bool {
        let mut owners = self.owners.lock();
        known.iter().all(|(id, content)| {
            let owner = owners.get_mut(id);
            let Some(owner) = owner.filter(|owner| owner.file.path == path && owner.content == *content)
            else {
                return false;
            };
            owner.line = line;
            !self.missing.contains_key(id) && !present.contains(id)
        })
    }

    /// Whether nothing is left that can't be read.
    fn is_whole(&self) -> bool {
        !self.files.values().any(|file| file.torn)
    }

    /// `path` is no more.
    fn lose(&mut self, path: &Path, now: Instant) {
        self.files.remove(path);
        self.miss(path, &BTreeSet::new(), now);
    }

    fn miss(&mut self, path: &Path, present: &BTreeSet<ObjectId>, now: Instant) {
        let owners = self.owners.lock();
        let mine = owners.iter().filter(|(id, owner)| owner.file.path == path && !present.contains(*id));
        for (id, _) in mine {
            self.missing.entry(id.clone()).or_insert(now);
        }
    }

    /// Files that have an object which its owner lacks now: to be taken again.
    fn heirs(&self) -> Vec<PathBuf> {
        let inherits = |file: &File| file.doubles.iter().any(|id| self.missing.contains_key(id));
        self.files.iter().filter(|(_, file)| inherits(file)).map(|(path, _)| path.clone()).collect()
    }

    /// Forgets what has been missing long enough.
    fn bury(&mut self, now: Instant) -> Vec<ObjectId> {
        let due = |since: &Instant| now.saturating_duration_since(*since) >= GRACE;
        let dead: Vec<ObjectId> =
            self.missing.iter().filter(|(_, since)| due(since)).map(|(id, _)| id.clone()).collect();
        for id in &dead {
            self.missing.remove(id);
            self.owners.lock().remove(id);
        }
        dead
    }

    fn next_burial(&self) -> Option<Instant> {
        self.missing.values().min().map(|since| *since + GRACE)
    }

    fn faults(&self) -> impl Iterator<Item = Fault> {
        self.files.values().flat_map(|file| file.faults.iter().cloned())
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// As an API server counts: statuses say which generation they are about.
fn numbered(mut object: Object, generation: i64) -> Object {
    match &mut object {
        Object::Budget(budget) => budget.metadata.generation = Some(generation),
        Object::Route(route) => route.metadata.generation = Some(generation),
        Object::Backend(backend) => backend.metadata.generation = Some(generation),
        Object::Namespace(_) | Object::Secret(_) => {}
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(names: &[&str]) -> String {
        let one = |name: &&str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n");
        names.iter().map(one).collect()
    }

    struct World {
        catalogue: Catalogue,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { catalogue: Catalogue::default(), now: Instant::now() }
        }

        fn put(&mut self, file: &str, text: &str) -> Vec<String> {
            let path = Path::new(file);
            let mut changes = self.catalogue.take(path, file, Ok(text.to_owned()), self.now);
            for heir in self.catalogue.heirs() {
                let text = Ok(namespaces(&["a"]));
                changes.extend(self.catalogue.take(&heir, "heir", text, self.now));
            }
            changes
                .iter()
                .map(|change| match change {
                    Change::Put(object) => object.id().name,
                    other => panic!("{other:?}"),
                })
                .collect()
        }

        fn after(&mut self, pause: Duration) -> Vec<String> {
            self.now += pause;
            self.catalogue.bury(self.now).into_iter().map(|id| id.name).collect()
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut world = World::new();
        assert_eq!(world.put("f", &namespaces(&["a", "b"])), ["a", "b"]);
        assert!(world.put("f", &namespaces(&["a", "b"])).is_empty());
        assert_eq!(world.put("f", &namespaces(&["a", "b", "c"])), ["c"]);
    }

    #[test]
    fn a_file_that_is_empty_for_a_moment_deletes_nothing() {
        let mut world = World::new();
        world.put("f", &namespaces(&["a"]));
        world.put("f", "");
        assert!(world.after(GRACE / 2).is_empty());
        assert!(world.put("f", &namespaces(&["a"])).is_empty());
        assert!(world.after(GRACE * 2).is_empty());
        world.put("f", "");
        assert_eq!(world.after(GRACE), ["a"]);
    }

    #[test]
    fn nothing_is_deleted_while_its_file_has_something_wrong() {
        let mut world = World::new();
        world.put("f", &namespaces(&["a", "b"]));
        let changed =
            world.put("f", &format!("{}kind: Namespce\nmetadata: {{name: b}}\n", namespaces(&["a", "c"])));
        assert_eq!(changed, ["c"], "a good document isn't held up by a bad one");
        assert!(world.after(GRACE * 2).is_empty());
        assert_eq!(world.catalogue.faults().count(), 1);
        world.put("f", &namespaces(&["a", "c"]));
        assert_eq!(world.after(GRACE), ["b"]);
        assert_eq!(world.catalogue.faults().count(), 0);
    }

    #[test]
    fn an_object_in_two_files_is_reported_and_inherited() {
        let mut world = World::new();
        world.put("f", &namespaces(&["a"]));
        world.put("g", &namespaces(&["a"]));
        let fault = world.catalogue.faults().next().unwrap();
        assert!(fault.to_string().starts_with("g:1: Namespace a: stands in f too"), "{fault}");
        world.put("f", "");
        assert!(world.after(GRACE * 2).is_empty());
        assert_eq!(world.catalogue.faults().count(), 0);
    }
}
