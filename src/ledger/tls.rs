//! Who may connect: mutual TLS from given files, or plain text where that was asked for by name.

use super::acceptor::{Acceptor, Pems};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Each file is PEM, and they can't be used.
    #[error("the ledger's TLS files {cert}, {key} and {ca} can't be used: {why}")]
    Useless {
        /// The certificate.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
        /// The authority.
        ca: PathBuf,
        /// Why.
        why: String,
    },
}

impl Transport {
    pub(super) fn acceptor(&self) -> Result<Option<Acceptor>, TlsError> {
        match self {
            Self::MutualTls(files) => Acceptor::new(files.clone()).map(Some),
            Self::PlainText => Ok(None),
        }
    }
}

impl TlsFiles {
    pub(super) fn read(&self) -> Result<Pems, TlsError> {
        Ok(Pems {
            ca: pem(&self.ca, "CERTIFICATE")?,
            cert: pem(&self.cert, "CERTIFICATE")?,
            key: pem(&self.key, "PRIVATE KEY")?,
        })
    }

    pub(super) fn config(&self, pems: &Pems) -> Result<ServerConfig, TlsError> {
        config(pems).map_err(|why| {
            let Self { ca, cert, key } = self.clone();
            TlsError::Useless { ca, cert, key, why: why.to_string() }
        })
    }
}

fn config(Pems { ca, cert, key }: &Pems) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(authority?)?;
    }
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
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
