//! Random numbers, stable hashes and the wall clock.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A random 64-bit number as 16 hexadecimal digits.
pub fn random_hex() -> Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// A random UUID (version 4).
pub fn random_uuid() -> Result<String> {
    let (high, low) = (random_hex()?, random_hex()?);
    let (first, second, third) = (&high[..8], &high[8..12], &high[13..]);
    Ok(format!("{first}-{second}-4{third}-8{}-{}", &low[1..4], &low[4..]))
}

/// Eight hexadecimal digits of the FNV-1a hash of some bytes. Names on disk hold it, so every
/// version of the helpers has to compute the same digits.
pub fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) as u32)
}

/// The SHA-256 of some bytes as 64 hexadecimal digits.
pub fn long_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a file's content as 64 hexadecimal digits.
pub fn file_hash(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(cannot)?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece).with_context(cannot)? {
            0 => break,
            length => hash.update(&piece[..length]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The time in UTC for a person: `2026-11-21T10:02:15Z`.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// A time in seconds since 1970 for a person, at most the last that RFC 3339 can state: the number may
/// come from a file that others wrote.
pub fn utc(seconds: u64) -> String {
    const LATEST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LATEST));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The time in seconds since 1970 (UTC), as rate limits are stated.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
