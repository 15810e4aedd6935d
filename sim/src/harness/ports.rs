//! Ports for servers that must know theirs before they bind it: none is given twice, neither to two
//! callers, nor to two processes that ask here, nor by the kernel to an outgoing connection.
//! Who can bind port 0 itself should.

use std::net::TcpListener;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The first port of the first block.
const FIRST: u16 = 10_000;
/// Ports of one process; the first one is its claim on the others.
const BLOCK: u16 = 500;
/// Below the ports that kernels give to outgoing connections (Linux from 32768, macOS from 49152).
const END: u16 = 32_500;

struct Block {
    /// Held as long as the process runs: says to others that the block is taken.
    _claim: TcpListener,
    base: u16,
    next: u16,
}

impl Block {
    /// A block that no other process holds, sought from one that depends on the process's id.
    fn claim() -> std::io::Result<Self> {
        let blocks = (END - FIRST) / BLOCK;
        let start = u16::try_from(std::process::id() % u32::from(blocks)).unwrap_or(0);
        let mut last = None;
        for i in 0..blocks {
            let base = FIRST + (start + i) % blocks * BLOCK;
            match TcpListener::bind(("127.0.0.1", base)) {
                Ok(claim) => return Ok(Self { _claim: claim, base, next: 1 }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into()))
    }
}

/// A port of 127.0.0.1 that nothing listens at.
///
/// # Errors
/// When there is none.
pub fn free_port() -> std::io::Result<u16> {
    static OURS: OnceLock<Mutex<Option<Block>>> = OnceLock::new();
    let mut ours = OURS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let block = match &mut *ours {
        Some(block) => block,
        none => none.insert(Block::claim()?),
    };
    for _ in 1..BLOCK {
        let port = block.base + block.next;
        block.next = block.next % (BLOCK - 1) + 1;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_port_is_given_twice_and_none_could_be_an_outgoing_connections() {
        let ports: BTreeSet<_> = (0..100).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 100);
        assert!(ports.iter().all(|port| (FIRST..END).contains(port)), "{ports:?}");
    }

    #[test]
    fn another_process_gets_another_block() {
        let (one, two) = (Block::claim().unwrap(), Block::claim().unwrap());
        assert_ne!(one.base, two.base);
    }
}
