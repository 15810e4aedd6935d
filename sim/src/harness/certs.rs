//! Certificates for mutual TLS between operator and gateways, good for a demo or a test.
//!
//! A fresh authority signs each name's certificate; its key is never written, so nothing can be added
//! to the set later.

use super::{HarnessError, at};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};

/// A certificate with its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key, readable by its owner alone.
    pub key: PathBuf,
}

/// An authority that lives as long as this value.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its certificate, as a PEM file.
    pub ca: PathBuf,
}

impl Authority {
    /// A new authority; `ca.pem` is written to `dir`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn new(dir: &Path) -> Result<Self, HarnessError> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "plimsoll demo authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, params.self_signed(&key)?.pem()).map_err(at(&ca))?;
        Ok(Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), ca })
    }

    /// A certificate for `name`, valid for these DNS names and addresses, as server and as client.
    ///
    /// # Errors
    /// When a name is none, or the files can't be written.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Result<Pair, HarnessError> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        self.sign(name, CertificateParams::new(hosts)?)
    }

    /// A certificate that Kubernetes reads as user `name` in `group`.
    ///
    /// # Errors
    /// When the files can't be written.
    pub fn identify(&self, name: &str, group: &str) -> Result<Pair, HarnessError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, group);
        self.sign(name, params)
    }

    fn sign(&self, name: &str, mut params: CertificateParams) -> Result<Pair, HarnessError> {
        let key = KeyPair::generate()?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer)?;
        let pair =
            Pair { cert: self.dir.join(format!("{name}.pem")), key: self.dir.join(format!("{name}.key")) };
        std::fs::write(&pair.cert, cert.pem()).map_err(at(&pair.cert))?;
        write_secret(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }
}

/// Writes a file that its owner alone can read.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), HarnessError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(at(path))?;
    file.write_all(text.as_bytes()).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path()).unwrap();
        let pair = authority.issue("operator", &["localhost", "127.0.0.1"]).unwrap();
        assert_eq!(std::fs::metadata(&pair.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(&pair.cert).unwrap().starts_with("-----BEGIN CERTIFICATE"));
    }
}
