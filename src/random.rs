//! Random bytes: the one place where the operator asks the system for them.

use std::io;

/// `N` bytes from the system's generator.
///
/// # Errors
/// It gives nothing.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let none = |_| io::Error::other("the system's random generator gives nothing");
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).map_err(none)?;
    Ok(bytes)
}
