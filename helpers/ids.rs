//! Names and times: random numbers, hashes that never change, and the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// A random number as 16 hexadecimal digits.
pub fn random_hex() -> Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// Eight hexadecimal digits that stand for a text: FNV-1a, because they must be the same in every
/// version of the helpers.
pub fn short_hash(text: &[u8]) -> String {
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) as u32)
}

/// The wall clock, to show: `2026-11-21T10:02:15Z`.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The seconds since 1970, by which the end of a rate limit is told.
pub fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A UUID (version 4) of 32 random hexadecimal digits.
pub fn uuid(high: &str, low: &str) -> String {
    format!("{}-{}-4{}-8{}-{}", &high[..8], &high[8..12], &high[13..], &low[1..4], &low[4..])
}
