//! Who a gateway may be, by its certificate.
//!
//! A certificate with DNS names below [`SUFFIX`] is for the gateways that they name, and for no other:
//! `gw-1.gateway.plimsoll` for `gw-1`, `*.gateway.plimsoll` for any. One without such a name (several
//! gateways share it, as in the demo) lets its holder be whoever it says; so does plain text. One that speaks
//! of such names, and has none that can be read, is for nobody.

use crate::ledger::Transport;
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
    /// Those in the certificate that came with `request` by `transport`.
    ///
    /// # Errors
    /// There must be a certificate and there is none, or it can't be taken apart, or the gateways that it
    /// names can't be read.
    pub fn of<T>(request: &Request<T>, transport: &Transport) -> Result<Self, Status> {
        let certificates = request.peer_certs();
        let Some(own) = certificates.as_ref().and_then(|chain| chain.first()) else {
            return match transport {
                Transport::PlainText => Ok(Self::default()),
                Transport::MutualTls(_) => {
                    Err(Status::unauthenticated("the gateway shows no certificate; give it one"))
                }
            };
        };
        let parts = EndEntityCert::try_from(own)
            .map_err(|error| Status::unauthenticated(format!("the certificate can't be read: {error}")))?;
        Self::among(parts.valid_dns_names(), own)
    }

    /// `names` are those of `certificate` that are valid; others are in its bytes alone.
    fn among<'a>(names: impl Iterator<Item = &'a str>, certificate: &[u8]) -> Result<Self, Status> {
        let names = names.map(str::to_ascii_lowercase);
        let ids: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(SUFFIX)?.to_owned())).collect();
        let mut spans = certificate.windows(SUFFIX.len());
        // No id would let it be any gateway: it was made for one.
        if ids.is_empty() && spans.any(|span| span.eq_ignore_ascii_case(SUFFIX.as_bytes())) {
            return Err(Status::permission_denied(format!(
                "the certificate speaks of {SUFFIX}, and none of its names is a valid DNS name of a gateway; give \
                 the gateway an id of letters, digits, - and ., of at most 63 between two dots, and a certificate \
                 with the DNS name <id>{SUFFIX}"
            )));
        }
        Ok(Self { ids })
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
        let certificate = names.join("\0");
        Names::among(names.iter().copied(), certificate.as_bytes()).unwrap().permit(gateway).is_ok()
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

    #[test]
    fn a_certificate_whose_gateways_cannot_be_read_is_for_none() {
        // What is no valid DNS name never gets here as a name.
        for certificate in ["gw~1.gateway.plimsoll", "0\u{7f}GW_~.Gateway.Plimsoll\0localhost"] {
            let refused = Names::among(["localhost"].into_iter(), certificate.as_bytes()).unwrap_err();
            assert!(refused.message().contains("a valid DNS name of a gateway"), "{refused}");
        }
    }

    #[test]
    fn no_certificate_is_any_gateway_on_plain_text_alone() {
        let file = || std::path::PathBuf::from("unread.pem");
        let tls = crate::ledger::TlsFiles { ca: file(), cert: file(), key: file() };
        assert_eq!(Names::of(&Request::new(()), &Transport::PlainText).unwrap(), Names::default());
        let refused = Names::of(&Request::new(()), &Transport::MutualTls(tls)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }
}
