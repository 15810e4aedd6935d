//! A provider's key as an SDS resource.

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, Secret};
use plimsoll_plan::SecretRef;

/// The name under which gateways know `key`: `plimsoll-system/openai/api-key`.
#[must_use]
pub fn name(key: &SecretRef) -> String {
    let SecretRef { secret, key } = key;
    format!("{secret}/{key}")
}

/// `key` under the name that clusters refer to. Line ends and blanks round the key are dropped: an
/// editor's last newline would make an invalid header of every call.
#[must_use]
pub fn secret(name: &str, key: &[u8]) -> Secret {
    let source = DataSource {
        specifier: Some(Specifier::InlineBytes(key.trim_ascii().to_vec())),
        ..Default::default()
    };
    Secret {
        name: name.to_owned(),
        r#type: Some(Type::GenericSecret(GenericSecret { secret: Some(source), ..Default::default() })),
    }
}
