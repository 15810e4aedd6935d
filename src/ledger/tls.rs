//! Who may connect: mutual TLS from given files, or plain text where that was asked for by name.

use std::path::{Path, PathBuf};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// How gateways and ledger prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Each side shows a certificate that the authority has signed.
    MutualTls(TlsFiles),
    /// No encryption, no identity: whoever reaches the port may spend. For a laptop.
    PlainText,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signs gateways' certificates.
    pub ca: PathBuf,
    /// Our certificate, with its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("the ledger's TLS file {path} can't be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("the ledger's TLS file {path} holds no {what} in PEM")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        what: &'static str,
    },
}

impl Transport {
    pub(super) fn server(&self) -> Result<Option<ServerTlsConfig>, TlsError> {
        let Self::MutualTls(TlsFiles { ca, cert, key }) = self else { return Ok(None) };
        let authority = Certificate::from_pem(pem(ca, "CERTIFICATE")?);
        let identity = Identity::from_pem(pem(cert, "CERTIFICATE")?, pem(key, "PRIVATE KEY")?);
        Ok(Some(
            ServerTlsConfig::new().identity(identity).client_ca_root(authority).client_auth_optional(false),
        ))
    }
}

fn pem(path: &Path, what: &'static str) -> Result<String, TlsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })?;
    // "RSA PRIVATE KEY" and "EC PRIVATE KEY" as well.
    if !text.contains(&format!("{what}-----")) {
        return Err(TlsError::NotPem { path: path.to_owned(), what });
    }
    Ok(text)
}
