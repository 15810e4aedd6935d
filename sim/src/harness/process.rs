//! One child process: its log, its end. Signals go to its own pid, never to a name or a group.

use super::{HarnessError, at, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its output is appended to `log`.
    ///
    /// # Errors
    /// When the log can't be written or the program does not start.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self, HarnessError> {
        let file = File::options().create(true).append(true).open(log).map_err(at(log))?;
        let both = file.try_clone().map_err(at(log))?;
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        let child = command.spawn().map_err(|error| HarnessError::Spawn {
            program: command.get_program().to_string_lossy().into_owned(),
            error,
        })?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails when it has ended, with the end of its log.
    ///
    /// # Errors
    /// `Ended`.
    pub fn check(&mut self) -> Result<(), HarnessError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(&status.to_string())),
            Err(error) => Err(self.ended(&error.to_string())),
        }
    }

    /// Waits until `ready` says so; a process that ends meanwhile fails at once.
    ///
    /// # Errors
    /// `Ended`, or `Late` with the end of the log.
    pub fn wait_ready(
        &mut self,
        what: &str,
        within: Duration,
        mut ready: impl FnMut() -> Result<(), String>,
    ) -> Result<(), HarnessError> {
        let mut ended = None;
        let waited = wait_until(what, within, || {
            if let Err(error) = self.check() {
                ended = Some(error);
                return Ok(());
            }
            ready()
        });
        if let Some(error) = ended {
            return Err(error);
        }
        waited.map_err(|error| match error {
            HarnessError::Late { what, seconds, detail } => {
                let detail = format!("{detail}; the end of {}:\n{}", self.log.display(), self.tail(15));
                HarnessError::Late { what, seconds, detail }
            }
            other => other,
        })
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself, which is what is wanted.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// SIGTERM, and waits; SIGKILL after `patience`.
    ///
    /// # Errors
    /// `Late` when it had to be killed.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus, HarnessError> {
        self.signal(Signal::TERM);
        let mut ended = None;
        let waited = wait_until(&format!("the end of {} after SIGTERM", self.name), patience, || match self
            .child
            .try_wait()
        {
            Ok(Some(status)) => {
                ended = Some(status);
                Ok(())
            }
            Ok(None) => Err(String::new()),
            Err(error) => Err(error.to_string()),
        });
        match (waited, ended) {
            (Ok(()), Some(status)) => Ok(status),
            (Ok(()), None) => Err(self.ended("unknown")),
            (Err(late), _) => {
                self.kill();
                Err(late)
            }
        }
    }

    /// SIGSTOP: it stands still, as if its node had lost the network.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT after [`Process::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// From now on no file that it writes grows past `bytes`, as on a full disk: writes end short, then fail
    /// (EFBIG). `None` takes the limit away. It must ignore SIGXFSZ.
    ///
    /// # Errors
    /// When the process is gone, or this program's own limit is lower.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<(), HarnessError> {
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let new = Rlimit { current: bytes.or(maximum), maximum };
        match prlimit(pid, Resource::Fsize, new) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.ended(&error.to_string())),
        }
    }

    /// Its CPU time so far, user and system, in microseconds (in steps of the kernel's 10 ms tick).
    #[must_use]
    pub fn cpu_us(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        // The command's name may hold spaces; it ends at the last parenthesis.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(ticks * 10_000)
    }

    /// Its resident memory, in KiB.
    #[must_use]
    pub fn rss_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
    }

    /// The last lines of its output.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(16_384)..]).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        // A child that ended and was not reaped still has its pid: no other process can be hit.
        let _sent = pid.map(|pid| kill_process(pid, signal));
    }

    fn ended(&self, status: &str) -> HarnessError {
        HarnessError::Ended {
            name: self.name.clone(),
            status: status.to_owned(),
            log: self.log.display().to_string(),
            tail: self.tail(15),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo its last words; exit 3"]);
        let mut process = Process::spawn("sh", command, &dir.path().join("log")).unwrap();
        let error =
            process.wait_ready("readiness", Duration::from_secs(10), || Err(String::new())).unwrap_err();
        assert!(error.to_string().contains("its last words"), "{error}");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn dropping_a_process_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let process = Process::spawn("sleep", command, &dir.path().join("log")).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }
}
