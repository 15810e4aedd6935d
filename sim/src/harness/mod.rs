//! Real processes for the demo, the tests and the benches: started, awaited, stopped, killed.
//!
//! Everything blocks, so that it serves tests with and without a runtime. Nothing here waits for a
//! time: it waits for an event, with a deadline that fails loudly and names the process's log.

pub mod certs;
pub mod envoy;
pub mod http;
pub mod kubernetes;
mod ports;
mod process;
pub mod stack;

pub use ports::free_port;
pub use process::Process;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What went wrong around a process.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// It did not start.
    #[error("{program} did not start: {error}")]
    Spawn {
        /// What was started.
        program: String,
        /// Why not.
        error: std::io::Error,
    },
    /// Something did not come about in time.
    #[error("{what} did not happen within {seconds} s{detail}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// The last thing that was seen.
        detail: String,
    },
    /// A process ended that should run.
    #[error("{name} ended ({status}); the end of its log {log}:\n{tail}")]
    Ended {
        /// The process.
        name: String,
        /// How.
        status: String,
        /// Where its output is.
        log: String,
        /// The last lines of it.
        tail: String,
    },
    /// A command that was waited for said no.
    #[error("{command} failed: {said}")]
    Failed {
        /// As it would be typed.
        command: String,
        /// Its error output.
        said: String,
    },
    /// Something that must be there is missing.
    #[error("{0}")]
    Missing(String),
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Certificates.
    #[error("no certificate could be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> HarnessError + use<> {
    let path = path.display().to_string();
    move |error| HarnessError::File { path, error }
}

/// Where `make envoy` and `make kubernetes` put what they install: `${XDG_CACHE_HOME:-~/.cache}/plimsoll`.
fn cache_dir() -> PathBuf {
    let dir = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")));
    cache.unwrap_or_else(|| "/tmp".into()).join("plimsoll")
}

/// Asks `ready` every 10 ms until it says so. Its `Err` is what `within` running out will report.
///
/// # Errors
/// `Late`, with the last `Err` of `ready`.
pub fn wait_until(
    what: &str,
    within: Duration,
    mut ready: impl FnMut() -> Result<(), String>,
) -> Result<(), HarnessError> {
    let started = Instant::now();
    loop {
        let Err(last) = ready() else { return Ok(()) };
        if started.elapsed() >= within {
            let detail = if last.is_empty() { String::new() } else { format!(": {last}") };
            return Err(HarnessError::Late { what: what.to_owned(), seconds: within.as_secs(), detail });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The directory that this program's profile is built in, `target/debug`.
///
/// # Errors
/// When this program's own path can't be known.
pub fn profile_dir() -> Result<PathBuf, HarnessError> {
    let program = std::env::current_exe().map_err(at(Path::new("this program")))?;
    let mut dir = program.parent().unwrap_or(Path::new("/"));
    // Tests and benches stand in deps/, examples in examples/.
    if dir.file_name().is_some_and(|name| name == "deps" || name == "examples") {
        dir = dir.parent().unwrap_or(dir);
    }
    Ok(dir.to_owned())
}

/// `plimsoll` and the filter, of the same profile as this program; built first, once a process, so that
/// a plain `cargo test` never runs yesterday's.
///
/// # Errors
/// When the build fails; its messages went to stderr.
pub fn build() -> Result<&'static Built, HarnessError> {
    static BUILT: OnceLock<Result<Built, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = profile_dir().map_err(|error| error.to_string())?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args([
            "build",
            "--quiet",
            "--package",
            "plimsoll",
            "--bin",
            "plimsoll",
            "--package",
            "plimsoll-filter",
            "--lib",
        ]);
        if dir.file_name().is_some_and(|name| name == "release") {
            cargo.arg("--release");
        }
        if let Some(target) = dir.parent() {
            cargo.arg("--target-dir").arg(target);
        }
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        match cargo.status() {
            Ok(status) if status.success() => Ok(Built::in_dir(&dir)),
            Ok(status) => Err(format!("cargo build of plimsoll and its filter failed ({status})")),
            Err(error) => Err(format!("cargo did not start: {error}")),
        }
    });
    built.as_ref().map_err(|why| HarnessError::Missing(why.clone()))
}

/// What `cargo build` made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The binary `plimsoll`.
    pub plimsoll: PathBuf,
    /// `libplimsoll_filter.so`.
    pub filter: PathBuf,
}

impl Built {
    /// As they stand in a profile's directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { plimsoll: dir.join("plimsoll"), filter: dir.join("libplimsoll_filter.so") }
    }
}
