//! A real Envoy: where it is, and a bootstrap filled in for it.

use super::{HarnessError, Process, at, cache_dir, http};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Envoy 1.40.0: `PLIMSOLL_ENVOY`, else where `make envoy` puts it.
///
/// # Errors
/// Says to run `make envoy`.
pub fn find() -> Result<PathBuf, HarnessError> {
    if let Some(path) = std::env::var_os("PLIMSOLL_ENVOY").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        let why = format!(
            "PLIMSOLL_ENVOY is {}, which is no file; unset it or let it name an Envoy 1.40 binary",
            path.display()
        );
        return Err(HarnessError::Missing(why));
    }
    let dir = cache_dir().join("envoy-1.40.0");
    let pythons = std::fs::read_dir(dir.join("lib")).into_iter().flatten().flatten();
    let found = pythons
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        let why = format!("no Envoy in {}; run `make envoy` (about 40 MB, under a minute), or let PLIMSOLL_ENVOY name an Envoy 1.40 binary", dir.display());
        HarnessError::Missing(why)
    })
}

/// `template` with every `${NAME}` replaced.
///
/// # Errors
/// `Missing`, naming the placeholders that `values` does not fill.
pub fn fill(template: &str, values: &BTreeMap<&str, String>) -> Result<String, HarnessError> {
    let mut out = String::with_capacity(template.len());
    let mut missing = Vec::new();
    let mut rest = template;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else { break };
        let name = &rest[start + 2..start + length];
        out.push_str(&rest[..start]);
        match values.get(name) {
            Some(value) => out.push_str(value),
            None => missing.push(name),
        }
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    if missing.is_empty() {
        return Ok(out);
    }
    Err(HarnessError::Missing(format!("the bootstrap's placeholders {} have no value", missing.join(", "))))
}

/// A gateway's bootstrap whose filter keeps every decision record until it is sent, so that every refusal
/// can be judged; in production the oldest give way.
///
/// # Errors
/// `Missing`, when `template` has no `filter_config` of the filter.
pub fn keep_every_decision(template: &str) -> Result<String, HarnessError> {
    let setting = "decisionsUncapped: true";
    // The filter's settings begin there; the new one stands beside it.
    let first = "gatewayId: ";
    let no_place =
        || HarnessError::Missing(format!("the bootstrap has no \"{first}\" to put {setting} beside"));
    let at = template.find(first).ok_or_else(no_place)?;
    let line = template[..at].rfind('\n').map_or(0, |end| end + 1);
    let indent = &template[line..at];
    Ok(format!("{}{setting}\n{indent}{}", &template[..at], &template[at..]))
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    /// The process.
    pub process: Process,
    /// The admin page's port.
    pub admin: u16,
}

/// How Envoy is started.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// Names its log.
    pub name: &'a str,
    /// The bootstrap, filled in.
    pub bootstrap: &'a str,
    /// Where bootstrap and log are written.
    pub dir: &'a Path,
    /// The admin port that the bootstrap names.
    pub admin: u16,
    /// Worker threads.
    pub concurrency: u32,
}

impl Envoy {
    /// Starts Envoy; it may not be ready when this returns.
    ///
    /// # Errors
    /// When there is no Envoy, or it does not start.
    pub fn spawn(start: &Start<'_>) -> Result<Self, HarnessError> {
        let config = start.dir.join(format!("{}.yaml", start.name));
        std::fs::write(&config, start.bootstrap).map_err(at(&config))?;
        // Ignored signals stay ignored over exec: see `Process::limit_files`.
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(find()?)
            .arg("--config-path")
            .arg(&config)
            .args(["--concurrency", &start.concurrency.to_string()])
            // Envoys of one machine would else share a socket for hot restarts.
            .args(["--disable-hot-restart", "--log-level", "info"]);
        let log = start.dir.join(format!("{}.log", start.name));
        let process = Process::spawn(start.name, command, &log)?;
        Ok(Self { process, admin: start.admin })
    }

    /// Waits until Envoy says that it is ready: listeners up, first configuration received.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), HarnessError> {
        let admin = self.admin;
        self.process.wait_ready("Envoy's readiness", within, || {
            let page = http::get(("127.0.0.1", admin), "/ready").map_err(|error| error.to_string())?;
            if page.status == 200 { Ok(()) } else { Err(format!("/ready says {}", page.body.trim())) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_without_a_value_is_named() {
        let values = BTreeMap::from([("A", "1".to_owned())]);
        assert_eq!(fill("x: ${A}, y: $B", &values).unwrap(), "x: 1, y: $B");
        let error = fill("${A} ${B} ${C}", &values).unwrap_err().to_string();
        assert_eq!(error, "the bootstrap's placeholders B, C have no value");
    }

    #[test]
    fn every_decision_is_kept_by_a_setting_of_the_filter_alone() {
        let template = include_str!("../../../filter/envoy.yaml");
        let kept = keep_every_decision(template).unwrap();
        let lines: Vec<_> = kept.lines().collect();
        let at = lines.iter().position(|line| line.trim() == "decisionsUncapped: true").unwrap();
        let indent = |line: &str| line.len() - line.trim_start().len();
        assert!(lines[at + 1].trim().starts_with("gatewayId: "), "{}", lines[at + 1]);
        assert_eq!(indent(lines[at]), indent(lines[at + 1]));
        let without: Vec<_> =
            lines.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, line)| *line).collect();
        assert_eq!(without, template.lines().collect::<Vec<_>>());
        assert!(keep_every_decision("node: {}").is_err());
    }
}
