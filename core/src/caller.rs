//! The caller: what a request says of who calls, bounded and safe to carry on.
//!
//! The raw user id is used for matching and ends here; what leaves is its hash.

use crate::protocol::{Caller, NONE};
use crate::refusal::Invalid;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::borrow::Cow;
use std::fmt::Write;

/// The most bytes that a feature, user, customer or session may have.
pub const MOST_BYTES: usize = 256;

/// The raw dimensions of a call; [`NONE`] where it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dimensions<'a> {
    pub namespace: &'a str,
    pub feature: Cow<'a, str>,
    pub user: Cow<'a, str>,
    pub customer: Cow<'a, str>,
    pub session: Cow<'a, str>,
    /// The first thing wrong with them. They are cut and cleaned then: a call that may not be refused goes on.
    pub invalid: Option<Invalid>,
}

impl Dimensions<'_> {
    /// Who called, as far as it may be known outside.
    pub(crate) fn caller(&self, hmac_key: &[u8; 32]) -> Caller {
        Caller {
            namespace: self.namespace.to_owned(),
            feature: self.feature.as_ref().to_owned(),
            customer: self.customer.as_ref().to_owned(),
            user_hash: hash_user(&self.user, hmac_key),
            service_account: NONE.to_owned(),
            session: self.session.as_ref().to_owned(),
        }
    }
}

/// HMAC-SHA256 of a raw user id with the installation's key, in hexadecimal; [`NONE`] for none.
#[must_use]
pub fn hash_user(user: &str, hmac_key: &[u8; 32]) -> String {
    if user == NONE {
        return NONE.to_owned();
    }
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(hmac_key) else { return NONE.to_owned() };
    mac.update(user.as_bytes());
    mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One dimension: absent and empty are [`NONE`]; what is too long or not printable is noted in `invalid`.
pub(crate) fn dimension<'a>(
    what: &'static str,
    value: Option<Cow<'a, str>>,
    invalid: &mut Option<Invalid>,
) -> Cow<'a, str> {
    let Some(mut value) = value.filter(|value| !value.is_empty()) else { return Cow::Borrowed(NONE) };
    if value.len() > MOST_BYTES {
        let length = value.len();
        invalid.get_or_insert(Invalid::TooLong { what, length, most: MOST_BYTES });
        value = Cow::Owned(value[..value.floor_char_boundary(MOST_BYTES)].to_owned());
    }
    if value.contains(char::is_control) {
        invalid.get_or_insert(Invalid::ControlCharacters(what));
        value = Cow::Owned(value.replace(char::is_control, "_"));
    }
    value
}
