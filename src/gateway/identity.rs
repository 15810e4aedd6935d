//! Who a gateway may be, by its certificate.
//!
//! A certificate with DNS names below [`SUFFIX`] is for the gateways that they name, and for no other:
//! `gw-1.gateway.plimsoll` for `gw-1`, `*.gateway.plimsoll` for any. One without such a name (several
//! gateways share it, as in the demo) lets its holder be whoever it says; so does plain text.

use tonic::{Request, Status};
use webpki::EndEntityCert;

/// What follows a gateway's id in its certificate.
pub const SUFFIX: &str = ".gateway.plimsoll";

/// The gateways that a peer may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Ids, or `*`; none: any.
    ids: Vec<String>,
}

impl Names {
    /// Those in the certificate that came with `request`.
    ///
    /// # Errors
    /// The certificate can't be taken apart.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let Some(certificates) = request.peer_certs() else { return Ok(Self::default()) };
        let Some(own) = certificates.first() else { return Ok(Self::default()) };
        let own = EndEntityCert::try_from(own)
            .map_err(|error| Status::unauthenticated(format!("the certificate can't be read: {error}")))?;
        Ok(Self::among(own.valid_dns_names()))
    }

    fn among<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names = names.map(str::to_ascii_lowercase);
        Self { ids: names.filter_map(|name| Some(name.strip_suffix(SUFFIX)?.to_owned())).collect() }
    }

    /// Whether the peer may be `gateway`.
    ///
    /// # Errors
    /// Its certificate is another's.
    pub fn permit(&self, gateway: &str) -> Result<(), Status> {
        let is = |id: &String| id == "*" || id.eq_ignore_ascii_case(gateway);
        if self.ids.is_empty() || self.ids.iter().any(is) {
            return Ok(());
        }
        let named: Vec<String> = self.ids.iter().map(|id| format!("{id}{SUFFIX}")).collect();
        let named = named.join(", ");
        Err(Status::permission_denied(format!(
            "gateway {gateway} shows a certificate for {named}; set Envoy's node id to that name, or give it a \
             certificate with the DNS name {gateway}{SUFFIX}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_be(names: &[&str], gateway: &str) -> bool {
        Names::among(names.iter().copied()).permit(gateway).is_ok()
    }

    #[test]
    fn a_certificate_that_names_gateways_is_for_those_alone() {
        assert!(may_be(&["gw-1.gateway.plimsoll", "localhost"], "gw-1"));
        assert!(!may_be(&["gw-1.gateway.plimsoll", "localhost"], "gw-2"));
        assert!(!may_be(&["gw-1.gateway.plimsoll"], "localhost"));
        assert!(may_be(&["gw-1.gateway.plimsoll", "gw-2.gateway.plimsoll"], "GW-2"));
        assert!(may_be(&["*.gateway.plimsoll"], "gw-2"));
        assert!(may_be(&["a.b.gateway.plimsoll"], "a.b"));
    }

    #[test]
    fn a_certificate_that_names_no_gateway_is_for_any() {
        assert!(may_be(&["localhost"], "gw-1"));
        assert!(may_be(&[], "gw-1"));
        assert!(may_be(&["gateway.plimsoll.example"], "gw-1"));
    }
}
