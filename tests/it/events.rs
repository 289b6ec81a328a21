//! The input of the end-to-end tests: user events of a seed, the same for the same seed, with every kind of bad record.
//!
//! Events come up to 20 s out of order: less than the watermark's delay of 30 s, so that none is late wherever the
//! batches are cut, and one query over all of them is what the windows must hold.

use chrono::{DateTime, TimeDelta};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const ACTIONS: &[&str] = &["view", "click", "search", "add_to_cart", "remove_from_cart", "purchase", "login", "logout"];
const DEVICES: &[&str] = &["mobile", "desktop", "tablet"];
/// Texts that a COPY, a CSV or a JSON encoder could get wrong.
const PLACES: &[&str] = &[
    "Hà Nội",
    "Da Nang",
    "",
    "NULL",
    "\\N",
    "\\.",
    "tab\there",
    "line\nbreak",
    "quote \" and ' and \\",
    "{\"a\": 1}",
    "emoji 🚢",
    "a,b;c",
];
const SPAMMERS: &[i64] = &[10, 123, 455, 789, 999];
/// Of event time, between one event and the next: 100 events a second.
const STEP_MS: i64 = 10;
const DISORDER_MS: i64 = 20_000;

pub struct Events {
    chance: ChaCha8Rng,
    number: i64,
    /// Produced again now and then: the same event twice.
    recent: Vec<Vec<u8>>,
}

impl Events {
    pub fn new(seed: u64) -> Self {
        Self { chance: ChaCha8Rng::seed_from_u64(seed), number: 0, recent: vec![] }
    }

    /// The payload of the next record; `None` is a tombstone.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let event = self.event();
        self.number += 1;
        match self.chance.random_range(0..1000) {
            0..60 => self.bad(event),
            60..75 if !self.recent.is_empty() => {
                Some(self.recent[self.chance.random_range(0..self.recent.len())].clone())
            }
            _ => {
                let payload = event.to_string().into_bytes();
                if self.recent.len() < 50 {
                    self.recent.push(payload.clone());
                } else {
                    self.recent[self.number as usize % 50] = payload.clone();
                }
                Some(payload)
            }
        }
    }

    fn event(&mut self) -> Value {
        // The share of spam changes every 20 s of event time, so that scores of every severity come up.
        let share = [0.02, 0.4, 0.0, 0.1][(self.number * STEP_MS / 20_000) as usize % 4];
        let spam = self.chance.random_bool(share);
        let user = match self.chance.random_range(0..1000) {
            _ if spam => SPAMMERS[self.chance.random_range(0..SPAMMERS.len())],
            0 => 9_007_199_254_740_993,                     // no f64 holds it
            1..20 => self.chance.random_range(1001..=1040), // not in the dimension
            _ => self.chance.random_range(1..=300),
        };
        let late_ms = if self.chance.random_bool(0.3) { self.chance.random_range(0..DISORDER_MS) } else { 0 };
        let start = DateTime::UNIX_EPOCH + TimeDelta::days(20_000); // long past: ahead of no clock
        let moment = start + TimeDelta::milliseconds(DISORDER_MS + self.number * STEP_MS - late_ms);
        let action = if spam { "click" } else { ACTIONS[self.chance.random_range(0..ACTIONS.len())] };
        let mut event = json!({
            "user_id": user,
            "product_id": self.chance.random_range(1000..2000),
            "action": action,
            "timestamp": moment.format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
            "device_id": format!("device_{}", self.chance.random_range(10_000..100_000)),
            "device_type": DEVICES[self.chance.random_range(0..DEVICES.len())],
            "location": PLACES[self.chance.random_range(0..PLACES.len())],
            "user_segment": "new",
            "ip_address": format!("10.0.{}.{}", self.number / 256 % 256, self.number % 256),
            "a_field_nobody_declared": [1, 2, {"x": null}],
        });
        match self.chance.random_range(0..100) {
            0..3 => event["product_id"] = Value::Null,
            3..6 => remove(&mut event, "location"),
            _ => {}
        }
        event
    }

    /// The judge knows these kinds; what it must say of them is in judge.py.
    fn bad(&mut self, mut event: Value) -> Option<Vec<u8>> {
        let text = event.to_string();
        let kind = self.chance.random_range(0..23);
        match kind {
            0 => return Some(b"not json {{{".to_vec()),
            1 => return Some(text.as_bytes()[..text.len() / 2].to_vec()),
            2 => return Some(format!("[{text}]").into_bytes()),
            3 => return Some(vec![]),
            4 => return Some(b"{\"user_id\": 1, \"action\": \"\xff\xfe\"}".to_vec()),
            5 => return Some(format!("{text} {text}").into_bytes()),
            6 => return None,
            7 => event["user_id"] = json!("forty-two"),
            8 => event["user_id"] = json!(1.5),
            9 => event["user_id"] = json!(9_223_372_036_854_775_808_u64),
            10 => event["timestamp"] = json!("yesterday at noon"),
            11 => event["timestamp"] = json!("2026-02-30T00:00:00"),
            12 => event["action"] = json!({"name": "view"}), // its text, which is no action
            13 => remove(&mut event, "user_id"),
            14 => event["user_id"] = json!(0),
            15 => event["user_id"] = json!(-7),
            16 => event["action"] = Value::Null,
            17 => event["action"] = json!("teleport"),
            18 => remove(&mut event, "timestamp"),
            19 => remove(&mut event, "device_id"),
            20 => event = json!({}),
            // Valid, but PostgreSQL's text holds no NUL: in the lake and the windows, and a dead letter of the database.
            21 => event["location"] = json!(format!("nul \u{0} {}", self.number)),
            _ => {
                event["user_id"] = json!(-1);
                event["action"] = json!("teleport");
            }
        }
        Some(event.to_string().into_bytes())
    }
}

fn remove(event: &mut Value, field: &str) {
    if let Value::Object(fields) = event {
        fields.remove(field);
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let mut runs = [Events::new(7), Events::new(7)];
    let [first, second] = runs.each_mut().map(|events| (0..2_000).map(|_| events.next()).collect::<Vec<_>>());
    assert_eq!(first, second);
}
