//! Moments as people read them and as certificates write them: UTC, to the second.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: i64 = 24 * 3600;

/// Seconds since the beginning of 1970, now; negative before.
#[must_use]
pub fn now() -> i64 {
    let seconds = |d: std::time::Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    }
}

/// `2026-11-22T09:05:00Z`, from seconds since the beginning of 1970.
#[must_use]
pub fn format(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Seconds since the beginning of 1970 of a moment of the Gregorian calendar; `None` for what is none.
#[must_use]
pub fn seconds((year, month, day): (i64, i64, i64), (hour, minute, second): (i64, i64, i64)) -> Option<i64> {
    let in_range = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second);
    let days = days(year, month, day);
    // The 31st of a month that has 30 days is a day of the next.
    (in_range && date(days) == (year, month, day)).then_some(days * DAY + hour * 3600 + minute * 60 + second)
}

/// Days since the beginning of 1970. Years begin in March here, so that the day of a leap year is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - DAYS_TO_1970
}

/// From the first of March of the year 0 to the beginning of 1970.
const DAYS_TO_1970: i64 = 719_468;
/// Days of 400 years, after which the calendar repeats itself.
const CYCLE: i64 = 146_097;

fn date(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_1970;
    let (cycle, day) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = 400 * cycle + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_other_programs() {
        // date -u -d @SECONDS +%FT%TZ
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_338_300, "2026-11-22T09:05:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(format(seconds), text);
        }
    }

    #[test]
    fn every_day_of_the_calendar_comes_back() {
        for day in (days(1, 1, 1)..days(9999, 12, 31)).step_by(17) {
            let (y, m, d) = date(day);
            assert_eq!(seconds((y, m, d), (0, 0, 0)), Some(day * DAY), "{y}-{m}-{d}");
        }
        for bad in [(2026, 2, 29), (2026, 4, 31), (2026, 13, 1), (2026, 1, 0), (0, 1, 1), (2100, 2, 29)] {
            assert_eq!(seconds(bad, (0, 0, 0)), None, "{bad:?}");
        }
        assert_eq!(seconds((2026, 1, 1), (24, 0, 0)), None);
    }
}
