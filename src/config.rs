//! The installation's settings file (`--config FILE`), read, checked and watched.
//!
//! What plans depend on changes while the operator runs; what binds the process (ledger, listen,
//! tls) needs a restart, and a change of it is said, not half done. A bad file is reported and the
//! last good settings stay.

use crate::ledger::{TlsFiles, Transport};
use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::{Enforcement, Verdict};
use plimsoll_plan::Settings;
use plimsoll_plan::settings::Duration;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The file, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The namespace whose objects may span the cluster, and whose prices are believed.
    #[serde(default = "root_namespace")]
    pub root_namespace: String,
    /// Namespaces beside the root namespace in which provider Secrets are read.
    #[serde(default)]
    pub secret_namespaces: BTreeSet<String>,
    /// Enforce, or observe everywhere.
    #[serde(default)]
    pub mode: Enforcement,
    /// Callers without identity.
    #[serde(default)]
    pub anonymous: Anonymous,
    /// Calls that no enforcing budget matches.
    #[serde(default = "allow")]
    pub unbudgeted: Verdict,
    /// Where unknown models go while observing, `namespace/name`.
    #[serde(default)]
    pub default_backend: Option<ObjectName>,
    /// The output bound where neither client, route nor model gives one, in tokens.
    #[serde(default = "max_output_tokens")]
    pub max_output_tokens: u64,
    /// How long gateways should last without the operator.
    #[serde(default = "ride_through")]
    pub ride_through: Duration,
    /// Where the ledger is kept.
    pub ledger: Ledger,
    /// Where the operator listens.
    #[serde(default)]
    pub listen: Listen,
    /// Mutual TLS with the gateways.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// No TLS with the gateways: for one machine only.
    #[serde(default)]
    pub plain_text: bool,
    /// Where gateways find the roots that providers' certificates are checked against.
    #[serde(default = "ca_file", rename = "providerCAFile")]
    pub provider_ca_file: String,
}

/// Callers without identity.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    /// Whether they are served.
    #[serde(default = "allow")]
    pub action: Verdict,
    /// The namespace that they get.
    #[serde(default = "default_namespace")]
    pub namespace: String,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { action: allow(), namespace: default_namespace() }
    }
}

/// Where the ledger is kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ledger {
    /// In one file.
    pub sqlite: Sqlite,
}

/// A ledger in one file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sqlite {
    /// The file; made if it is missing.
    pub path: PathBuf,
}

/// Where the operator listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// For gateways: the ledger, and clusters and keys by xDS.
    #[serde(default = "grpc")]
    pub grpc: SocketAddr,
    /// For health, readiness, metrics and status. Without authentication.
    #[serde(default = "http")]
    pub http: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Self { grpc: grpc(), http: http() }
    }
}

/// Files of mutual TLS, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// Whose signature a gateway's certificate must have.
    pub ca: PathBuf,
    /// The operator's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

fn root_namespace() -> String {
    "plimsoll-system".to_owned()
}

fn default_namespace() -> String {
    "default".to_owned()
}

const fn allow() -> Verdict {
    Verdict::Allow
}

const fn ride_through() -> Duration {
    Duration { ms: 600_000 }
}

const fn max_output_tokens() -> u64 {
    4096
}

fn ca_file() -> String {
    crate::gateway::cluster::SYSTEM_CA_FILE.to_owned()
}

fn grpc() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9443))
}

fn http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9080))
}

/// A settings file that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// The file and, where it is known, the line.
    pub place: String,
    /// Which field, what is wrong, what to do.
    pub message: String,
}

impl Config {
    /// The settings in `file`.
    ///
    /// # Errors
    /// It can't be read, is no YAML, has a field that isn't known, or contradicts itself.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let place = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            place: place.clone(),
            message: format!("can't be read: {error}"),
        })?;
        Self::parse(&text, &place)
    }

    /// The settings in `text`, which stands at `place`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, place: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let mut field = String::new();
        let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                field = error.path().to_string();
                error.into_inner()
            })
        });
        let config: Self = read.map_err(|error| {
            let line = error.location().map(|location| format!(":{}", location.line())).unwrap_or_default();
            let error = error.to_string();
            // The whole file has the path "."; an unknown field is named already.
            let named = field == "." || field.rsplit('.').next().is_some_and(|last| error.contains(last));
            let message = if named { error } else { format!("{field}: {error}") };
            ConfigError { place: format!("{place}{line}"), message }
        })?;
        config.check().map_err(|message| ConfigError { place: place.to_owned(), message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        for (field, value) in
            [("rootNamespace", &self.root_namespace), ("anonymous.namespace", &self.anonymous.namespace)]
                .into_iter()
                .chain(self.secret_namespaces.iter().map(|namespace| ("secretNamespaces", namespace)))
        {
            if !is_namespace(value) {
                return Err(format!(
                    "{field} \"{value}\" is not a namespace; use lower case letters, digits and -"
                ));
            }
        }
        match (&self.tls, self.plain_text) {
            (Some(_), true) => {
                return Err("tls and plainText: true contradict each other; remove one".to_owned());
            }
            (None, false) => {
                return Err("tls is missing; give ca, cert and key, or write plainText: true on a machine \
                            that nobody else can reach"
                    .to_owned());
            }
            (Some(_), false) | (None, true) => {}
        }
        if self.max_output_tokens == 0 {
            return Err("maxOutputTokens is 0, so no call could be answered; write 4096".to_owned());
        }
        if !(1_000..=86_400_000).contains(&self.ride_through.ms) {
            return Err("rideThrough must be between 1s and 24h; write 10m".to_owned());
        }
        if self.listen.grpc == self.listen.http && self.listen.grpc.port() != 0 {
            return Err("listen.grpc and listen.http are the same address; give each its own port".to_owned());
        }
        Ok(())
    }

    /// The part that plans depend on.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            root_namespace: self.root_namespace.clone(),
            secret_namespaces: self.secret_namespaces.clone(),
            mode: self.mode,
            anonymous: self.anonymous.action,
            anonymous_namespace: self.anonymous.namespace.clone(),
            unbudgeted: self.unbudgeted,
            default_backend: self.default_backend.clone(),
            max_output_tokens: self.max_output_tokens,
            ride_through: self.ride_through,
        }
    }

    /// Keeps what binds the running process as `current` has it.
    pub fn bind_to(&mut self, current: &Self) {
        self.ledger = current.ledger.clone();
        self.listen = current.listen;
        self.tls = current.tls.clone();
        self.plain_text = current.plain_text;
        self.ride_through = current.ride_through;
    }

    /// How gateways prove who they are.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match &self.tls {
            Some(Tls { ca, cert, key }) => {
                Transport::MutualTls(TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
            }
            None => Transport::PlainText,
        }
    }

    /// The fields that `next` changes although they bind the running process.
    #[must_use]
    pub fn needs_restart(&self, next: &Self) -> Vec<&'static str> {
        let mut fields = Vec::new();
        if self.ledger != next.ledger {
            fields.push("ledger");
        }
        if self.listen != next.listen {
            fields.push("listen");
        }
        if self.tls != next.tls || self.plain_text != next.plain_text {
            fields.push("tls");
        }
        // Slices are sized by the serving ledger, which takes it once.
        if self.ride_through != next.ride_through {
            fields.push("rideThrough");
        }
        fields
    }
}

fn is_namespace(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|byte| edge(Some(byte)) || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "ledger: {sqlite: {path: /tmp/ledger.db}}\nplainText: true\n";

    fn wrong(text: &str) -> String {
        Config::parse(text, "plimsoll.yaml").unwrap_err().to_string()
    }

    #[test]
    fn the_least_file_has_every_default() {
        let config = Config::parse(LEAST, "f").unwrap();
        assert_eq!(config.ride_through, Duration { ms: 600_000 });
        assert_eq!(config.max_output_tokens, 4096);
        assert_eq!(config.mode, Enforcement::Enforce);
        assert_eq!(config.anonymous, Anonymous { action: Verdict::Allow, namespace: "default".to_owned() });
    }

    #[test]
    fn what_is_wrong_names_line_field_and_remedy() {
        let unknown = wrong(&format!("{LEAST}rootNamespaec: x\n"));
        assert!(unknown.starts_with("plimsoll.yaml:3") && unknown.contains("rootNamespaec"), "{unknown}");
        let time = wrong(&format!("{LEAST}rideThrough: soon\n"));
        assert!(time.contains("\"soon\" is not a duration; write it like 10m"), "{time}");
        let port = wrong(&format!("{LEAST}listen: {{grpc: nowhere}}\n"));
        assert!(port.starts_with("plimsoll.yaml:3: listen.grpc: "), "{port}");
        let tokens = wrong(&format!("{LEAST}maxOutputTokens: -1\n"));
        assert!(tokens.starts_with("plimsoll.yaml:3: maxOutputTokens: "), "{tokens}");
        assert!(wrong("ledger: {sqlite: {path: x}}").contains("tls is missing"));
        assert!(wrong("plainText: true").contains("ledger"));
        assert!(wrong(&format!("{LEAST}tls: {{ca: a, cert: b, key: c}}")).contains("contradict"));
        assert!(wrong(&format!("{LEAST}rootNamespace: Root")).contains("rootNamespace \"Root\""));
        assert!(
            wrong(&format!("{LEAST}listen: {{grpc: 127.0.0.1:1, http: 127.0.0.1:1}}"))
                .contains("same address")
        );
    }

    #[test]
    fn what_binds_the_process_needs_a_restart() {
        let now = Config::parse(LEAST, "f").unwrap();
        let next = Config::parse(&format!("{LEAST}mode: Observe\n"), "f").unwrap();
        assert!(now.needs_restart(&next).is_empty());
        let next = Config::parse(&format!("{LEAST}listen: {{http: 127.0.0.1:1}}\n"), "f").unwrap();
        assert_eq!(now.needs_restart(&next), ["listen"]);
    }
}
