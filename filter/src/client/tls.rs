//! Mutual TLS out of files that are read again for each connection: certificates are rotated under a running
//! gateway.
//!
//! Files that are of no use (gone, half written, a key of another certificate) are told once, and what they
//! held before serves on. What can be read but is not trusted by the operator is for the handshake to find out.

use super::link::causes;
use crate::abi::{self, Level};
use crate::config::Tls;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io;
use std::path::Path;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

pub(super) struct TlsFiles {
    files: Tls,
    /// What they held when they were last of use.
    good: ClientTlsConfig,
    /// They are of no use now, and that was told.
    told: bool,
}

impl TlsFiles {
    /// # Errors
    /// A file can't be read, or the authorities are none.
    pub fn read(files: &Tls) -> io::Result<Self> {
        Ok(Self { files: files.clone(), good: read(files)?, told: false })
    }

    /// `endpoint` with TLS as the files say now.
    ///
    /// # Errors
    /// What they held before can't be used either.
    pub fn secure(&mut self, endpoint: &Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        let now = read(&self.files).map_err(|error| error.to_string()).and_then(|config| {
            let secured = endpoint.clone().tls_config(config.clone()).map_err(|error| causes(&error))?;
            Ok((config, secured))
        });
        match now {
            Ok((config, secured)) => {
                self.good = config;
                if std::mem::take(&mut self.told) {
                    abi::log(Level::Info, "plimsoll: the files of filter_config.tls can be used again");
                }
                Ok(secured)
            }
            Err(why) => {
                let secured = endpoint.clone().tls_config(self.good.clone())?;
                if !std::mem::replace(&mut self.told, true) {
                    abi::log(
                        Level::Warn,
                        &format!(
                            "plimsoll: the files of filter_config.tls can't be used: {why}; what they held before is \
                             used on. Mend them before that expires"
                        ),
                    );
                }
                Ok(secured)
            }
        }
    }
}

fn read(files: &Tls) -> io::Result<ClientTlsConfig> {
    let Tls { ca, cert, key, server_name } = files;
    let of = |path: &Path| {
        let error = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        std::fs::read(path).map_err(error)
    };
    let authorities = of(ca)?;
    trusts_somebody(&authorities)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", ca.display())))?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authorities))
        .identity(Identity::from_pem(of(cert)?, of(key)?));
    Ok(match server_name {
        Some(name) => tls.domain_name(name),
        None => tls,
    })
}

/// An empty file, or half a one, would be taken for no authorities at all.
fn trusts_somebody(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem) {
        let authority = authority.map_err(|error| error.to_string())?;
        roots.add(authority).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(()) }
}
