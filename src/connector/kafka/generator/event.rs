//! One event after the other, of a seed: pure.

use chrono::{DateTime, Datelike, Timelike};

use super::GeneratorOptions;

const SPAM_USERS: [u32; 5] = [10, 455, 789, 123, 999];
const ACTIONS: [&str; 4] = ["view", "click", "add_to_cart", "purchase"];
const DEVICES: [&str; 6] = ["mobile", "desktop", "tablet", "smart_tv", "wearable", "other"];
const PLACES: [&str; 7] = ["Hanoi", "Ho Chi Minh City", "Da Nang", "Hue", "Can Tho", "Nha Trang", "other"];
const SEGMENTS: [&str; 5] = ["new", "loyal", "promo_hunter", "high_value", "other"];

/// Kinds of broken records; see [`Generator::write`].
pub(super) const KINDS: u64 = 9;

/// Writes events; pure.
#[derive(Debug)]
pub struct Generator {
    /// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    state: u64,
    users: u64,
    /// Thresholds on 32 random bits.
    spam: u64,
    invalid: u64,
    /// `YYYY-MM-DDTHH:MM:SS.` of the last second that was written.
    second: i64,
    second_text: Vec<u8>,
}

/// An event before it is written.
pub(super) struct Drawn {
    pub user: u32,
    pub is_valid: bool,
    pub product: u64,
    pub action: &'static str,
    pub device: u64,
    pub device_type: &'static str,
    pub location: &'static str,
    pub segment: &'static str,
    /// Of broken records; [`KINDS`] if it is none.
    pub kind: u64,
    /// Of chance.
    pub word: u64,
    pub address: u64,
}

/// What was written by [`Generator::write`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    pub user: u32,
    pub is_valid: bool,
}

impl Generator {
    pub fn new(options: &GeneratorOptions) -> Self {
        let threshold = |share: f64| (share.clamp(0.0, 1.0) * 4_294_967_296.0) as u64;
        Self {
            state: options.seed,
            users: u64::from(options.users.max(1)),
            spam: threshold(options.spam_share),
            invalid: threshold(options.invalid_share),
            second: i64::MIN,
            second_text: Vec::with_capacity(20),
        }
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next event.
    #[inline]
    pub(super) fn draw(&mut self) -> Drawn {
        // Three random words, cut into pieces: one call per field would cost more than the writing.
        let (a, b, c) = (self.random(), self.random(), self.random());
        let is_spam = (a & 0xffff_ffff) < self.spam;
        let is_valid = (b & 0xffff_ffff) >= self.invalid;
        let below = |bits: u64, n: u64| ((bits & 0xffff) * n) >> 16;
        let wide = a >> 32;
        let kind = if is_valid { KINDS } else { (c >> 40) % KINDS };
        Drawn {
            user: if is_spam { SPAM_USERS[(wide % 5) as usize] } else { 1 + (wide % self.users) as u32 },
            is_valid,
            product: 1_000 + below(b >> 32, 1_000),
            action: if is_spam { "click" } else { ACTIONS[below(b >> 48, 4) as usize] },
            device: 10_000 + (c & 0xff_ffff) % 90_000,
            device_type: DEVICES[below(c >> 32, 6) as usize],
            location: PLACES[below(c >> 48, 7) as usize],
            segment: if is_spam { "promo_hunter" } else { SEGMENTS[below(c >> 24, 5) as usize] },
            kind,
            word: c,
            address: if kind > 1 { self.random() } else { 0 },
        }
    }

    /// Puts one event of this time (µs since 1970, UTC) into `out`, in place of what was there: JSON.
    pub fn write(&mut self, micros: i64, out: &mut Vec<u8>) -> Event {
        let Drawn { user, is_valid, product, action, device, device_type, location, segment, kind, word, address } =
            self.draw();
        out.clear();
        if kind == 0 {
            out.extend_from_slice(b"not json #");
            number(out, word);
            return Event { user, is_valid };
        }
        if kind == 1 {
            return Event { user, is_valid }; // An empty payload.
        }
        out.push(b'{');
        if kind != 2 {
            out.extend_from_slice(b"\"user_id\": ");
            if kind == 3 {
                out.extend_from_slice(b"\"user_");
                number(out, u64::from(user));
                out.push(b'"');
            } else {
                number(out, u64::from(user));
            }
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(b"\"product_id\": ");
        number(out, product);
        out.extend_from_slice(b", \"action\": ");
        if kind == 4 {
            out.extend_from_slice(b"null");
        } else {
            quoted(out, action);
        }
        out.extend_from_slice(b", \"timestamp\": \"");
        if kind == 5 {
            out.extend_from_slice(b"yesterday at noon");
        } else {
            self.time(micros, out);
        }
        out.extend_from_slice(b"\", \"device_id\": \"device_");
        number(out, device);
        out.extend_from_slice(b"\", \"device_type\": ");
        quoted(out, device_type);
        out.extend_from_slice(b", \"location\": ");
        if kind == 6 {
            out.extend_from_slice(b"\"\xff\xfe\""); // Not UTF-8.
        } else {
            quoted(out, location);
        }
        out.extend_from_slice(b", \"user_segment\": ");
        quoted(out, segment);
        out.extend_from_slice(b", \"ip_address\": \"");
        for (index, octet) in address.to_le_bytes().into_iter().take(4).enumerate() {
            if index > 0 {
                out.push(b'.');
            }
            number(out, u64::from(octet));
        }
        out.extend_from_slice(b"\"}");
        match kind {
            7 => out.truncate(out.len() / 2),
            8 => {
                out.insert(0, b'[');
                out.push(b']');
            }
            _ => {}
        }
        Event { user, is_valid }
    }

    /// `2026-01-31T08:00:00.000001`.
    fn time(&mut self, micros: i64, out: &mut Vec<u8>) {
        let second = micros.div_euclid(1_000_000);
        if second != self.second {
            let time = DateTime::from_timestamp(second, 0).unwrap_or_default();
            let text = &mut self.second_text;
            text.clear();
            digits(text, time.year().clamp(0, 9_999) as u32, 1_000);
            for (separator, part) in [
                (b'-', time.month()),
                (b'-', time.day()),
                (b'T', time.hour()),
                (b':', time.minute()),
                (b':', time.second()),
            ] {
                text.push(separator);
                digits(text, part, 10);
            }
            text.push(b'.');
            self.second = second;
        }
        out.extend_from_slice(&self.second_text);
        digits(out, micros.rem_euclid(1_000_000) as u32, 100_000);
    }
}

pub(super) fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Decimal digits, the first one worth `place`.
fn digits(out: &mut Vec<u8>, value: u32, mut place: u32) {
    while place > 0 {
        out.push(b'0' + (value / place % 10) as u8);
        place /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(options: &GeneratorOptions, count: usize) -> Vec<(Event, Vec<u8>)> {
        let mut generator = Generator::new(options);
        let mut out = vec![];
        let mut all = vec![];
        for index in 0..count {
            let event = generator.write(1_767_225_599_999_998 + index as i64, &mut out);
            all.push((event, out.clone()));
        }
        all
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let options = GeneratorOptions::default();
        assert_eq!(events(&options, 500), events(&options, 500));
        assert_ne!(events(&options, 500), events(&GeneratorOptions { seed: 2, ..options }, 500));
        // Fixed for ever: recorded runs are compared over versions.
        let options = GeneratorOptions { invalid_share: 0.0, ..GeneratorOptions::default() };
        let expected =
            r#"{"user_id": 789, "product_id": 1361, "action": "click", "timestamp": "2026-01-01T00:00:00.000000", "#;
        let third = String::from_utf8(events(&options, 3)[2].1.clone()).unwrap();
        assert!(third.starts_with(expected) && third.ends_with(r#""ip_address": "254.139.207.20"}"#), "{third}");
    }

    #[test]
    fn shares_are_kept_and_valid_events_are_json() {
        let options = GeneratorOptions { invalid_share: 0.1, ..GeneratorOptions::default() };
        let all = events(&options, 20_000);
        let spam = all.iter().filter(|(event, _)| SPAM_USERS.contains(&event.user)).count();
        let invalid = all.iter().filter(|(event, _)| !event.is_valid).count();
        assert!((7_700..8_300).contains(&spam), "{spam}");
        assert!((1_850..2_150).contains(&invalid), "{invalid}");
        for (event, payload) in all.iter().filter(|(event, _)| event.is_valid) {
            let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
            assert_eq!((value["user_id"].as_u64(), value.as_object().unwrap().len()), (Some(u64::from(event.user)), 9));
        }
        let first = all.iter().position(|(event, _)| event.is_valid).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&all[first].1).unwrap();
        assert!(value["timestamp"].as_str().unwrap().starts_with("2025-12-31T23:59:59.99999") || first > 1);
    }

    #[test]
    fn every_kind_of_broken_record_comes() {
        let options = GeneratorOptions { invalid_share: 1.0, ..GeneratorOptions::default() };
        let all = events(&options, 500);
        let has = |test: &dyn Fn(&[u8]) -> bool| all.iter().any(|(_, payload)| test(payload));
        assert!(has(&|p| p.starts_with(b"not json")) && has(&|p| p.is_empty()) && has(&|p| p.starts_with(b"[")));
        assert!(has(&|p| std::str::from_utf8(p).is_err()) && has(&|p| p.starts_with(b"{\"product_id")));
        assert!(has(&|p| p.starts_with(b"{\"user_id\": \"user_")));
        assert!(has(&|p| p.starts_with(b"{") && !p.ends_with(b"}")));
        let text = all.iter().map(|(_, p)| String::from_utf8_lossy(p)).collect::<String>();
        assert!(text.contains("\"action\": null") && text.contains("yesterday at noon"));
    }
}
