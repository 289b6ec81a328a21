//! Dates and timestamps as text, both ways: ISO 8601 / RFC 3339, proleptic Gregorian calendar, UTC.
//!
//! Ours rather than chrono's, for speed (one per event) and for a form without surprises: a fraction of any length is
//! cut to what the column holds, never rounded up into the next second.
//!
//! Source of the calendar: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".

/// 0001-01-01 and 9999-12-31 as days since 1970-01-01: what four digits can name. A number outside is nearly always
/// one in another unit (microseconds read as milliseconds), so it is refused.
pub const DAYS_MIN: i64 = -719_162;
pub const DAYS_MAX: i64 = 2_932_896;

/// A point of time: seconds since 1970-01-01T00:00:00Z and nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instant {
    pub seconds: i64,
    pub nanos: i64,
}

impl Instant {
    /// In units of 1/`per_second`, rounded down; `None` where 64 bits do not hold it (nanoseconds after 2262).
    #[inline]
    pub fn in_units(self, per_second: i64) -> Option<i64> {
        self.seconds.checked_mul(per_second)?.checked_add(self.nanos / (1_000_000_000 / per_second))
    }
}

fn digit(text: &[u8], at: usize) -> Option<i64> {
    text.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10).map(i64::from)
}

fn two(text: &[u8], at: usize) -> Option<i64> {
    Some(digit(text, at)? * 10 + digit(text, at + 1)?)
}

/// `YYYY-MM-DD` as days since 1970-01-01. Years 0001 to 9999.
pub fn parse_date(text: &[u8]) -> Option<i64> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let (year, month, day) = (two(text, 0)? * 100 + two(text, 2)?, two(text, 5)?, two(text, 8)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last_day = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    (year >= 1 && (1..=last_day).contains(&day)).then(|| days_of(year, month, day))
}

/// `YYYY-MM-DD[(T|t| )HH:MM[:SS[.f…]][Z|z|±HH[[:]MM]]]`. Without an offset it is UTC, without a time midnight.
/// Seconds may be missing because Java leaves them out where they are zero. No leap second, no 24:00.
pub fn parse_timestamp(text: &[u8]) -> Option<Instant> {
    let (date, time) = text.split_at_checked(10)?;
    let days = parse_date(date)?;
    let [b'T' | b't' | b' ', time @ ..] = time else {
        return time.is_empty().then_some(Instant { seconds: days * 86_400, nanos: 0 });
    };
    let (hour, minute) = (two(time, 0)?, two(time, 3)?);
    let (mut at, mut second, mut nanos) = (5, 0, 0);
    if time[2] != b':' || hour > 23 || minute > 59 {
        return None;
    }
    if time.get(at) == Some(&b':') {
        second = two(time, 6)?;
        at = 8;
        if second > 59 {
            return None;
        }
        if time.get(at) == Some(&b'.') {
            at += 1;
            digit(time, at)?;
            let mut unit = 100_000_000;
            while let Some(d) = digit(time, at) {
                nanos += d * unit;
                unit /= 10;
                at += 1;
            }
        }
    }
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset_seconds(&time[at..])?;
    Some(Instant { seconds, nanos })
}

/// Seconds east of Greenwich.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let minutes = match rest {
        [_, _] => 0,
        [_, _, b':', _, _] => two(rest, 3)?,
        [_, _, _, _] => two(rest, 2)?,
        _ => return None,
    };
    let hours = two(rest, 0)?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_of`]: year, month, day.
fn date_of(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn put(value: i64, digits: usize, out: &mut Vec<u8>) {
    let begin = out.len();
    out.resize(begin + digits, b'0');
    let mut rest = value;
    for place in out[begin..].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Appends `YYYY-MM-DD`; a year that four digits cannot name as ISO 8601's expanded form, `+012345` or `-000044`.
pub fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = date_of(days);
    if (0..=9999).contains(&year) {
        put(year, 4, out);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        put(year.abs(), if year.abs() < 1_000_000 { 6 } else { 12 }, out);
    }
    out.push(b'-');
    put(month, 2, out);
    out.push(b'-');
    put(day, 2, out);
}

/// Appends `YYYY-MM-DDTHH:MM:SS.ffffff`, with as many decimals as the unit has (none for seconds).
pub fn write_timestamp(value: i64, per_second: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (value.div_euclid(per_second), value.rem_euclid(per_second));
    write_date(seconds.div_euclid(86_400), out);
    let second = seconds.rem_euclid(86_400);
    for (separator, part) in [(b'T', second / 3_600), (b':', second / 60 % 60), (b':', second % 60)] {
        out.push(separator);
        put(part, 2, out);
    }
    if per_second > 1 {
        out.push(b'.');
        put(fraction, per_second.ilog10() as usize, out);
    }
}

/// A length of time in µs for people, in whole seconds: "12s", "3m 5s". Less than nothing is "0s".
pub fn lasting(micros: i64) -> String {
    let whole = std::time::Duration::from_secs(u64::try_from(micros / 1_000_000).unwrap_or(0));
    humantime::format_duration(whole).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(text: &str) -> Option<i64> {
        parse_timestamp(text.as_bytes()).and_then(|i| i.in_units(1_000_000))
    }

    #[test]
    fn forms_of_a_timestamp() {
        let at = 1_704_067_200_000_000; // 2024-01-01T00:00:00Z
        for (text, offset) in [
            ("2024-01-01", 0),
            ("2024-01-01T00:00", 0),
            ("2024-01-01T00:00Z", 0),
            ("2024-01-01 00:00:00", 0),
            ("2024-01-01t00:00:00z", 0),
            ("2024-01-01T00:00:00.5", 500_000),
            ("2024-01-01T00:00:00.123456Z", 123_456),
            ("2024-01-01T00:00:00.123456789+00:00", 123_456),
            ("2024-01-01T00:00:00.9999999999999999999Z", 999_999),
            ("2024-01-01T02:00:00+02:00", 0),
            ("2024-01-01T02:00:00+0200", 0),
            ("2024-01-01T02:00:00+02", 0),
            ("2023-12-31T18:30:00.25-05:30", 250_000),
            ("2023-12-31T23:59:59.999", -1_000),
        ] {
            assert_eq!(micros(text), Some(at + offset), "{text}");
        }
        assert_eq!(micros("1969-12-31T23:59:59.9999999"), Some(-1));
        assert_eq!(micros("0001-01-01"), Some(DAYS_MIN * 86_400_000_000));
        assert_eq!(parse_date(b"9999-12-31"), Some(DAYS_MAX));
    }

    #[test]
    fn what_is_no_timestamp() {
        for text in [
            "",
            "now",
            "2024",
            "2024-01",
            "2024-1-1",
            "20240101",
            "2024-13-01",
            "2024-00-01",
            "2024-02-30",
            "2023-02-29",
            "1900-02-29",
            "2024-01-00",
            "0000-01-01",
            "-0001-01-01",
            "12024-01-01",
            "2024-01-01T",
            "2024-01-01T1",
            "2024-01-01T10",
            "2024-01-01T24:00:00",
            "2024-01-01T23:60:00",
            "2024-01-01T23:59:60",
            "2024-01-01T00:00:00.",
            "2024-01-01T00:00:0",
            "2024-01-01T00:00:00,5",
            "2024-01-01T00:00:00 Z",
            "2024-01-01T00:00:00+1",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00+00:60",
            "2024-01-01T00:00:00ZZ",
            "2024-01-01X00:00:00",
            "2024-01-01T00:00:00 UTC",
            " 2024-01-01",
            "2024-01-01 ",
            "2024/01/01",
            "2024-01-01T-1:00:00",
            "２024-01-01",
            "1704067200000",
        ] {
            assert_eq!(micros(text), None, "{text}");
        }
    }

    #[test]
    fn years_beyond_four_digits_are_written_whole() {
        let mut out = vec![];
        write_date(DAYS_MAX + 1, &mut out);
        out.push(b' ');
        write_date(DAYS_MIN - 367, &mut out);
        out.push(b' ');
        write_timestamp(i64::MAX, 1_000_000, &mut out);
        out.push(b' ');
        write_timestamp(i64::MIN, 1, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "+010000-01-01 -000001-12-31 +294247-01-10T04:00:54.775807 -292277022657-01-27T08:29:52"
        );
    }

    proptest! {
        #[test]
        fn same_calendar_as_chrono(days in DAYS_MIN..=DAYS_MAX) {
            let date = chrono::DateTime::from_timestamp(days * 86_400, 0).unwrap().format("%Y-%m-%d").to_string();
            let mut out = vec![];
            write_date(days, &mut out);
            prop_assert_eq!(String::from_utf8_lossy(&out), date);
            prop_assert_eq!(parse_date(&out), Some(days));
        }

        #[test]
        fn what_is_written_is_read(
            seconds in DAYS_MIN * 86_400..(DAYS_MAX + 1) * 86_400,
            nanos in 0_i64..1_000_000_000,
        ) {
            for per_second in [1, 1_000, 1_000_000, 1_000_000_000] {
                let Some(value) = (Instant { seconds, nanos }).in_units(per_second) else { continue };
                let mut out = vec![];
                write_timestamp(value, per_second, &mut out);
                let read = parse_timestamp(&out).and_then(|i| i.in_units(per_second));
                prop_assert_eq!(read, Some(value), "{}", String::from_utf8_lossy(&out));
            }
        }

        #[test]
        fn any_bytes_are_survived(text: Vec<u8>, tail in "[-0-9T:.Z+ ]{0,30}") {
            parse_timestamp(&text);
            parse_timestamp(format!("2024-01-01{tail}").as_bytes());
        }
    }
}
