//! A provider's base URL in its parts, and whether it points into private address space.
//!
//! A name is judged by its shape only: what it resolves to is known when Envoy connects, and is the
//! business of the network's own rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The parts of `https://api.openai.com:8443/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// https, not http.
    pub tls: bool,
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// As given, or 443 and 80.
    pub port: u16,
    /// Host and port as they stand in the URL.
    pub authority: String,
    /// The path without a slash at its end; empty for none.
    pub path: String,
}

impl BaseUrl {
    /// Takes `text` apart.
    ///
    /// # Errors
    /// The rest of a sentence that began with the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("\"{text}\" {what}");
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => {
                return Err(wrong("does not begin with https://; write it like https://api.openai.com/v1"));
            }
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => {
                let address = host
                    .parse::<Ipv6Addr>()
                    .map_err(|_| wrong("has no valid IPv6 address in its brackets"))?;
                (address.to_string(), port)
            }
            None => {
                let colon = authority.find(':').unwrap_or(authority.len());
                (authority[..colon].to_ascii_lowercase(), &authority[colon..])
            }
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| wrong("has a port that is none of 1 to 65535"))?,
            None if port.is_empty() => {
                if tls {
                    443
                } else {
                    80
                }
            }
            None => return Err(wrong("has something after its brackets that is no port")),
        };
        if host.parse::<IpAddr>().is_err() && !is_dns_name(&host) {
            return Err(wrong("has a host that is neither a DNS name nor an address"));
        }
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self { tls, host, port, authority: authority.to_owned(), path })
    }

    /// Whether the host is, by its shape, inside: not an address or a name of the internet.
    #[must_use]
    pub fn is_private(&self) -> bool {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return match address {
                IpAddr::V4(address) => v4_is_private(address),
                IpAddr::V6(address) => v6_is_private(address),
            };
        }
        let name = self.host.trim_end_matches('.');
        let inside = ["local", "localhost", "internal", "svc", "lan", "home", "corp", "intranet", "arpa"];
        match name.rsplit_once('.') {
            // `127.1` and `0x7f.1` are addresses to a resolver: the last label of a name is a word.
            Some((_, last)) => {
                inside.contains(&last)
                    || !last.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-')
                        && !last.starts_with("xn--")
            }
            None => true,
        }
    }
}

fn v4_is_private(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || a == 0
        || a >= 240
        // Shared by carriers, and by some clusters for pods.
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0)
}

fn v6_is_private(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4() {
        return v4_is_private(v4);
    }
    let first = address.segments()[0];
    // All that is routed on the internet stands in 2000::/3; NAT64 and 6to4 reach any IPv4 address.
    first & 0xe000 != 0x2000 || first == 0x2002
}

fn is_dns_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.trim_end_matches('.').split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_comes_apart() {
        let url = BaseUrl::parse("https://API.openai.com/v1/").unwrap();
        assert_eq!((url.tls, &*url.host, url.port, &*url.path), (true, "api.openai.com", 443, "/v1"));
        let url = BaseUrl::parse("http://[::1]:8080").unwrap();
        assert_eq!(
            (url.tls, &*url.host, url.port, &*url.path, &*url.authority),
            (false, "::1", 8080, "", "[::1]:8080")
        );
        for bad in
            ["ftp://a", "https://a:0", "https://a:99999", "https://[::z]/", "https://a..b", "https://[::1]x"]
        {
            assert!(BaseUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_way_to_write_an_inner_address_passes_for_the_internet() {
        for inner in [
            "http://127.0.0.1",
            "http://127.1",
            "http://2130706433",
            "http://0x7f.1",
            "http://0.0.0.0",
            "http://10.1.2.3",
            "http://169.254.169.254",
            "http://100.64.0.1",
            "http://[::1]",
            "http://[fd00::1]",
            "http://[fe80::1]",
            "http://[::ffff:10.0.0.1]",
            "http://[::10.0.0.1]",
            "http://[64:ff9b::a00:1]",
            "http://[2002:a00:1::]",
            "http://localhost",
            "http://vllm",
            "http://vllm.ml.svc",
            "http://vllm.ml.svc.cluster.local",
            "http://metadata.google.internal",
            "http://localhost.",
            "http://127.0.0.1.",
        ] {
            assert!(BaseUrl::parse(inner).unwrap().is_private(), "{inner}");
        }
        for outer in
            ["https://api.openai.com", "https://8.8.8.8", "https://[2606:4700::1111]", "https://a.xn--p1ai"]
        {
            assert!(!BaseUrl::parse(outer).unwrap().is_private(), "{outer}");
        }
    }
}
