//! When to look at the directory again, and what stands in it now.
//!
//! The kernel's notices only say that it is time to look; what counts is what is found. So a lost
//! notice costs a moment (the directory is polled too), never a change.

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// How old a file must be for its time stamp to tell one write from the next.
pub(super) const SETTLE: Duration = Duration::from_millis(50);

/// How long a file that somebody writes without closing it is left alone.
const WRITING: Duration = Duration::from_secs(1);

/// How deep directories are followed; links could go round in circles.
const MAX_DEPTH: usize = 8;

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }

    /// Whether a write after this look will change the fingerprint.
    pub(super) fn is_settled(&self) -> bool {
        self.modified.is_none_or(|at| at.elapsed().is_ok_and(|age| age > SETTLE))
    }

    /// One that no file has: it will be read again.
    pub(super) fn unsettled(self) -> Self {
        Self { modified: None, length: u64::MAX, ..self }
    }
}

/// The manifest files below `directory`, links followed, and links that lead nowhere.
pub(super) fn files_below(directory: &Path) -> io::Result<BTreeMap<PathBuf, Fingerprint>> {
    let mut found = BTreeMap::new();
    walk(directory, 0, &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Fingerprint>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        // `..data` and its like are where a mounted ConfigMap keeps what its links point to.
        if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let Ok(metadata) = std::fs::metadata(&path) else {
            // Gone between the listing and the look: not there. A link into nothing is: what it should
            // lead to may be away for a moment.
            if let Ok(link) = std::fs::symlink_metadata(&path)
                && link.is_symlink()
            {
                found.insert(path, Fingerprint::of(&link));
            }
            continue;
        };
        if metadata.is_dir() {
            if depth < MAX_DEPTH
                && let Err(error) = walk(&path, depth + 1, found)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            found.insert(path, Fingerprint::of(&metadata));
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Heard {
    wake: Notify,
    writing: Mutex<BTreeMap<PathBuf, Instant>>,
}

/// The kernel's notices about one directory.
#[derive(Debug)]
pub(super) struct Watch {
    directory: PathBuf,
    heard: Arc<Heard>,
    watcher: Option<RecommendedWatcher>,
    inode: Option<u64>,
}

impl Watch {
    /// Watches `directory`, an absolute path; where the kernel can't, polling has to do.
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), heard: Arc::default(), watcher: None, inode: None }
    }

    /// Begins anew if another directory stands under the name.
    pub(super) fn renew(&mut self) {
        let inode = std::fs::metadata(&self.directory).ok().map(|metadata| metadata.ino());
        if self.inode == inode && self.watcher.is_some() {
            return;
        }
        self.inode = inode;
        match self.start() {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) if inode.is_some() => {
                tracing::warn!(directory = %self.directory.display(), %error, "can't be watched, so it is polled");
            }
            Err(_) => {}
        }
    }

    fn start(&self) -> notify::Result<RecommendedWatcher> {
        let (heard, directory) = (Arc::clone(&self.heard), self.directory.clone());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => heard.event(&directory, &event),
            Err(_) => heard.wake.notify_one(),
        })?;
        watcher.watch(&self.directory, RecursiveMode::Recursive)?;
        // The directory itself may be swapped by a rename or a link.
        if let Some(parent) = self.directory.parent() {
            watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }

    /// Resolves when something was heard since the last call.
    pub(super) async fn changed(&self) {
        self.heard.wake.notified().await;
    }

    /// Files that are just being written.
    pub(super) fn busy(&self) -> BTreeSet<PathBuf> {
        let mut writing = self.heard.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.retain(|_, since| since.elapsed() < WRITING);
        writing.keys().cloned().collect()
    }

    /// When the first of them is no longer waited for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let writing = self.heard.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.values().min().map(|since| *since + WRITING)
    }
}

impl Heard {
    fn event(&self, directory: &Path, event: &Event) {
        let mine: Vec<&PathBuf> = event.paths.iter().filter(|path| path.starts_with(directory)).collect();
        if mine.is_empty() {
            return;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                mine.iter().for_each(|path| {
                    writing.remove(*path);
                });
            }
            // Our own reading.
            EventKind::Access(_) => return,
            // Linux tells when the writer has done; elsewhere the file is read as it is.
            EventKind::Modify(ModifyKind::Data(_)) if cfg!(target_os = "linux") => {
                let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                writing.extend(mine.iter().map(|path| ((*path).clone(), Instant::now())));
            }
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => {
                let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                mine.iter().for_each(|path| {
                    writing.remove(*path);
                });
            }
            _ => {}
        }
        self.wake.notify_one();
    }
}
