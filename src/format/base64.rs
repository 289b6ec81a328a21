//! Base64 (RFC 4648, section 4: `+`, `/`, padding), as Kafka Connect and Jackson write bytes into JSON.
//!
//! Forty lines rather than one more crate in the tree.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the text of `bytes`.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= chunk.len() { ALPHABET[sextet] } else { b'=' });
        }
    }
}

/// Appends the bytes that `text` stands for. False if it is not base64: another character, a wrong length, or bits
/// set beyond the last byte (else two texts would stand for the same bytes). `out` then ends with a part of them.
pub fn decode(text: &[u8], out: &mut Vec<u8>) -> bool {
    if !text.len().is_multiple_of(4) {
        return false;
    }
    let padding = text.iter().rev().take(2).take_while(|b| **b == b'=').count();
    for chunk in text[..text.len() - padding].chunks(4) {
        let mut bits = 0_u32;
        for byte in chunk {
            let sextet = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return false,
            };
            bits = bits << 6 | u32::from(sextet);
        }
        bits <<= 6 * (4 - chunk.len());
        let [_, decoded @ ..] = bits.to_be_bytes();
        let (decoded, rest) = decoded.split_at(chunk.len() - 1);
        if rest.iter().any(|b| *b != 0) {
            return false;
        }
        out.extend_from_slice(decoded);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors_of_the_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let (mut encoded, mut decoded) = (vec![], vec![]);
            encode(bytes.as_bytes(), &mut encoded);
            assert_eq!(String::from_utf8_lossy(&encoded), text);
            assert!(decode(text.as_bytes(), &mut decoded));
            assert_eq!(decoded, bytes.as_bytes());
        }
        for wrong in ["Zg", "Zg=", "Z===", "====", "Zh==", "Zm9=", "Zm 9", "Zm9v\n", "Z=g=", "_-__", "Zg==Zg=="] {
            assert!(!decode(wrong.as_bytes(), &mut vec![]), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes: Vec<u8>) {
            let (mut encoded, mut decoded) = (vec![], vec![]);
            encode(&bytes, &mut encoded);
            prop_assert!(decode(&encoded, &mut decoded));
            prop_assert_eq!(decoded, bytes);
        }
    }
}
