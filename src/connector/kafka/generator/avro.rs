//! The same events as Avro, framed; the broken ones are broken as Avro can be.

use super::event::{Drawn, Event, Generator, KINDS, number};
use crate::Result;
use crate::connector::kafka::schemas::client::{Registry, RegistryOptions};
use crate::format::avro::defaults::{put_bytes, put_long};

/// Every field may be null, so that fields can be added and taken away.
pub const SCHEMA: &str = r#"{"type": "record", "name": "user_event", "namespace": "poundlock", "fields": [
{"name": "user_id", "type": ["null", "long"], "default": null},
{"name": "product_id", "type": ["null", "long"], "default": null},
{"name": "action", "type": ["null", "string"], "default": null},
{"name": "timestamp", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}], "default": null},
{"name": "device_id", "type": ["null", "string"], "default": null},
{"name": "device_type", "type": ["null", "string"], "default": null},
{"name": "location", "type": ["null", "string"], "default": null},
{"name": "user_segment", "type": ["null", "string"], "default": null},
{"name": "ip_address", "type": ["null", "string"], "default": null}]}"#;

/// A schema id that no registry has given out, for those that count up.
const NO_SCHEMA: u32 = 0x7fff_0000;

/// The schema's id, and room for the texts that are put together.
#[derive(Debug)]
pub struct AvroWriter {
    id: u32,
    text: Vec<u8>,
}

impl AvroWriter {
    /// Registers the schema under `<topic>-value`. Blocks.
    ///
    /// # Errors
    /// The registry does not answer, or the topic has a schema that this one does not fit.
    pub fn register(registry: &RegistryOptions, topic: &str) -> Result<Self> {
        Registry::try_new(registry)?.register(&format!("{topic}-value"), SCHEMA).map(Self::new)
    }

    /// For a schema that is registered with this id.
    pub fn new(id: u32) -> Self {
        Self { id, text: Vec::with_capacity(32) }
    }

    /// Puts the next event, of this time (µs since 1970, UTC), into `out`, in place of what was there.
    pub fn write(&mut self, generator: &mut Generator, micros: i64, out: &mut Vec<u8>) -> Event {
        let Drawn { user, is_valid, product, action, device, device_type, location, segment, kind, word, address } =
            generator.draw();
        out.clear();
        match kind {
            0 => {
                out.extend_from_slice(b"not avro #");
                number(out, word);
            }
            1 => {}
            _ => {
                out.push(0);
                out.extend_from_slice(&if kind == 3 { NO_SCHEMA } else { self.id }.to_be_bytes());
                optional(out, (kind != 2).then_some(i64::from(user)));
                optional(out, Some(product as i64));
                self.text(out, (kind != 4).then_some(action.as_bytes()));
                optional(out, (kind != 5).then_some(micros));
                self.text.clear();
                self.text.extend_from_slice(b"device_");
                number(&mut self.text, device);
                some(out, &self.text);
                self.text(out, Some(device_type.as_bytes()));
                self.text(out, Some(if kind == 6 { b"\xff\xfe" } else { location.as_bytes() }));
                self.text(out, Some(segment.as_bytes()));
                self.text.clear();
                for (index, octet) in address.to_le_bytes().into_iter().take(4).enumerate() {
                    if index > 0 {
                        self.text.push(b'.');
                    }
                    number(&mut self.text, u64::from(octet));
                }
                some(out, &self.text);
            }
        }
        match kind {
            7 => out.truncate(out.len() / 2),
            8 => out.truncate(3), // Not even an id.
            _ => debug_assert!(kind <= KINDS),
        }
        Event { user, is_valid }
    }

    fn text(&self, out: &mut Vec<u8>, text: Option<&[u8]>) {
        match text {
            Some(text) => some(out, text),
            None => out.push(0),
        }
    }
}

fn some(out: &mut Vec<u8>, text: &[u8]) {
    put_long(1, out);
    put_bytes(text, out);
}

fn optional(out: &mut Vec<u8>, value: Option<i64>) {
    match value {
        Some(value) => {
            put_long(1, out);
            put_long(value, out);
        }
        None => out.push(0),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, TimeUnit};

    use super::super::GeneratorOptions;
    use super::*;
    use crate::format::avro;
    use crate::format::json::JsonDecoder;

    #[test]
    fn valid_events_decode_and_the_broken_ones_do_not_or_lack_a_field() {
        let columns = [("user_id", DataType::Int64), ("timestamp", DataType::Timestamp(TimeUnit::Microsecond, None))];
        let columns = columns.map(|(name, data_type)| Arc::new(Field::new(name, data_type, true)));
        let known = avro::known(7, SCHEMA, &[], None, &columns);
        for invalid_share in [0.0, 1.0] {
            let mut generator = Generator::new(&GeneratorOptions { invalid_share, ..GeneratorOptions::default() });
            let (mut writer, mut payload) = (AvroWriter::new(7), vec![]);
            let mut decoder = JsonDecoder::try_new(&columns).unwrap();
            let mut reasons = std::collections::BTreeSet::new();
            for index in 0..1_000 {
                writer.write(&mut generator, index, &mut payload);
                let known = (avro::frame_id(&payload) == Some(7)).then_some(&known);
                if let Err(reason) = avro::push(&mut decoder, &payload, known) {
                    reasons.insert(reason.split(['(', ':']).next().unwrap_or_default().to_string());
                }
            }
            let nulls: usize = decoder.finish().unwrap().iter().map(|array| array.null_count()).sum();
            assert_eq!((reasons.len() >= 3, nulls > 300), (invalid_share > 0.0, invalid_share > 0.0), "{reasons:?}");
        }
    }
}
