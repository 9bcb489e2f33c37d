//! When a rate limit resets, by a CLI's message: a local time of day, with or without a date.

use std::sync::LazyLock;

use regex::Regex;

use crate::process::{local_seconds, local_time};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

static TIME: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?x)
        (?: resets | try\x20again\x20at ) \x20
        (?: (?<month>[A-Z][a-z][a-z]) \x20 (?<day>[0-9]{1,2}) (?:st|nd|rd|th)? ,? \x20
            (?: (?<year>[0-9]{4}) ,? \x20 )? (?: at \x20 )? )?
        (?<hour>[0-9]{1,2}) (?: : (?<minute>[0-9]{2}) )? \x20? (?<half>[AaPp]) [Mm]";
    Regex::new(pattern).expect("a valid expression")
});

/// The end of the minute that the message states, in seconds since 1970.
pub(super) fn stated_reset(message: &str, now: u64) -> Option<u64> {
    let found = TIME.captures(message)?;
    let number = |name: &str| found.name(name).and_then(|text| text.as_str().parse::<i32>().ok());
    let mut local = local_time(now)?;
    let afternoon = found["half"].eq_ignore_ascii_case("p");
    local.tm_hour = number("hour")? % 12 + if afternoon { 12 } else { 0 };
    local.tm_min = number("minute").unwrap_or(0);
    local.tm_sec = 60;
    let month = found.name("month").map(|name| MONTHS.iter().position(|it| *it == name.as_str()));
    if let Some(month) = month {
        local.tm_mon = i32::try_from(month?).ok()?;
        local.tm_mday = number("day")?;
    }
    if let Some(year) = number("year") {
        local.tm_year = year - 1900;
    }
    // A reset less than an hour ago just happened; an earlier one means the next day or year.
    let past = local_seconds(local)? + 3600 < now;
    match (month, number("year")) {
        (None, _) if past => local.tm_mday += 1,
        (Some(_), None) if past => local.tm_year += 1,
        _ => {}
    }
    local_seconds(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stated_reset_is_the_next_such_local_time() {
        let mut noon = local_time(1_795_267_493).expect("a moment in November 2026");
        (noon.tm_mday, noon.tm_hour, noon.tm_min, noon.tm_sec) = (21, 12, 0, 30);
        let now = local_seconds(noon).expect("noon");
        let rows = [
            ("You've hit your limit \u{b7} resets 2:13pm (UTC)", Some((126, 10, 21, 14, 14))),
            ("resets 12am", Some((126, 10, 22, 0, 1))),
            ("resets 11:59am", Some((126, 10, 21, 12, 0))),
            ("resets Nov 24, 7:35pm (America/New_York)", Some((126, 10, 24, 19, 36))),
            ("resets Jan 2 at 7am", Some((127, 0, 2, 7, 1))),
            ("or try again at 2:00 PM.", Some((126, 10, 21, 14, 1))),
            ("try again at Nov 25th, 2026 12:35 AM.", Some((126, 10, 25, 0, 36))),
            ("try again later", None),
            ("resets Foo 24, 7pm", None),
        ];
        for (said, expected) in rows {
            let end = stated_reset(said, now).map(|end| local_time(end).expect("a moment"));
            let end = end.map(|it| (it.tm_year, it.tm_mon, it.tm_mday, it.tm_hour, it.tm_min));
            assert_eq!(end, expected, "{said}");
        }
    }
}
