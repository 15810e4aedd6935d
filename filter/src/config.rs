//! The filter's settings, as they stand in Envoy's `filter_config`.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The settings of a gateway. Equal in every listener of one Envoy: there is one client for all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Envoy's node id; unique among gateways.
    pub gateway_id: String,
    /// The operators' ledgers, `host:port`; any of them will do.
    pub operators: Vec<String>,
    /// Mutual TLS; required unless `plainText`.
    pub tls: Option<Tls>,
    /// Talk without TLS: whoever can reach the ledger's port can spend.
    #[serde(default)]
    pub plain_text: bool,
    /// The admission log's directory: this gateway's own, on a disk that outlives the container.
    pub log_directory: PathBuf,
    /// Where `/metrics` and `/ready` are served; absent: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// Keep every decision record until it is sent; for tests.
    #[serde(default)]
    pub decisions_uncapped: bool,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// Who may have signed the operators' certificates.
    pub ca: PathBuf,
    /// The gateway's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The name in the operators' certificates; default: the host that is connected to.
    pub server_name: Option<String>,
}

/// Why settings are of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON of this form.
    #[error("filter_config: {0}; see docs for the filter's settings")]
    Unreadable(#[from] serde_json::Error),
    /// A field that makes no sense.
    #[error("filter_config.{field}: {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong, and what to do.
        why: &'static str,
    },
}

impl Config {
    /// Reads `filter_config`.
    ///
    /// # Errors
    /// Names the field.
    pub fn read(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(bytes)?;
        let field = |field, why| Err(ConfigError::Field { field, why });
        if config.gateway_id.is_empty() {
            return field("gatewayId", "it is empty; give it Envoy's node id");
        }
        if config.operators.is_empty() {
            return field("operators", "it is empty; name at least one host:port");
        }
        if config.operators.iter().any(|operator| operator.contains("://")) {
            return field(
                "operators",
                "write host:port, without a scheme; tls or plainText says how to talk",
            );
        }
        match (&config.tls, config.plain_text) {
            (None, false) => field("tls", "it is absent; give ca, cert and key, or set plainText: true"),
            (Some(_), true) => field("plainText", "it contradicts tls; remove one of them"),
            (Some(_), false) | (None, true) => Ok(config),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let read = |text: &str| Config::read(text.as_bytes()).map_err(|error| error.to_string());
        let base = r#""gatewayId": "g", "logDirectory": "/l", "operators": ["a:1"]"#;
        assert!(read(&format!(r#"{{{base}, "plainText": true}}"#)).is_ok());
        for (text, says) in [
            (format!("{{{base}}}"), "filter_config.tls: it is absent"),
            (
                r#"{"gatewayId": "", "logDirectory": "/l", "operators": ["a:1"], "plainText": true}"#.into(),
                "gatewayId",
            ),
            (
                r#"{"gatewayId": "g", "logDirectory": "/l", "operators": [], "plainText": true}"#.into(),
                "operators",
            ),
            (format!(r#"{{{base}, "plainText": true, "operator": 1}}"#), "unknown field `operator`"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
