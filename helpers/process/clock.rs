//! The local calendar, in which rate limits are stated.

/// A moment of the local calendar.
pub type LocalTime = nix::libc::tm;

/// The local time of a moment in seconds since 1970.
pub fn local_time(seconds: u64) -> Option<LocalTime> {
    let seconds = seconds.try_into().ok()?;
    // SAFETY: `tm` is numbers and a pointer that may be null.
    let mut local: LocalTime = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of these types.
    let done = unsafe { nix::libc::localtime_r(&raw const seconds, &raw mut local) };
    (!done.is_null()).then_some(local)
}

/// The seconds since 1970 of a local time. Days beyond the end of a month count into the next.
pub fn local_seconds(mut local: LocalTime) -> Option<u64> {
    local.tm_isdst = -1;
    // SAFETY: the pointer is to a live value of this type.
    let seconds = unsafe { nix::libc::mktime(&raw mut local) };
    u64::try_from(seconds).ok()
}
