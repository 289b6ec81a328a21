//! JSON numbers, exactly: no digit passes through a float on its way into an integer or a decimal.

use super::scan::number_length;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    Value(i128),
    /// Digits are left behind the point (or beyond the scale).
    Fraction,
    /// More than 38 digits.
    TooLarge,
    /// No JSON number (only possible for the inside of a string).
    NotANumber,
}

/// `text` × 10^`scale`, if that is a whole number: with scale 0, `1.0` and `1e3` are 1 and 1000, `1.5` is a fraction.
#[inline]
pub fn exact(text: &str, scale: i8) -> Exact {
    let bytes = text.as_bytes();
    let (negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let plain = scale == 0 && (1..=18).contains(&digits.len()) && (digits[0] != b'0' || digits.len() == 1);
    if plain && digits.iter().all(u8::is_ascii_digit) {
        let value = digits.iter().fold(0_i64, |value, digit| value * 10 + i64::from(digit - b'0'));
        return Exact::Value(i128::from(if negative { -value } else { value }));
    }
    if number_length(bytes) != Ok(bytes.len()) {
        return Exact::NotANumber;
    }
    exact_slowly(digits, negative, scale)
}

/// Any JSON number without its sign: its significant digits, and the power of ten that the last of them stands for.
fn exact_slowly(number: &[u8], negative: bool, scale: i8) -> Exact {
    let mantissa_length = number.iter().position(|b| matches!(b, b'e' | b'E')).unwrap_or(number.len());
    let (mantissa, exponent) = number.split_at(mantissa_length);
    let decimals = mantissa.iter().position(|b| *b == b'.').map_or(0, |point| mantissa.len() - point - 1);
    let mut shift = exponent_of(exponent) + i64::from(scale) - i64::try_from(decimals).unwrap_or(i64::MAX / 4);
    let (mut value, mut zeros, mut length) = (0_i128, 0_u32, 0_u32);
    for digit in mantissa.iter().filter(|b| b.is_ascii_digit()) {
        // Zeros count only once another digit follows: those in front are nothing, those at the end are a shift.
        if *digit == b'0' {
            zeros = zeros.saturating_add(u32::from(value != 0));
            continue;
        }
        length = length.saturating_add(zeros).saturating_add(1);
        if length > 38 {
            return Exact::TooLarge;
        }
        value = value * 10_i128.pow(zeros + 1) + i128::from(digit - b'0');
        zeros = 0;
    }
    shift += i64::from(zeros);
    if value == 0 {
        return Exact::Value(0);
    }
    if shift < 0 {
        return Exact::Fraction;
    }
    match u32::try_from(shift) {
        Ok(shift) if length + shift.min(39) <= 38 => {
            let value = value * 10_i128.pow(shift);
            Exact::Value(if negative { -value } else { value })
        }
        _ => Exact::TooLarge,
    }
}

/// Of `e-12`: saturated far beyond what any mantissa can make up for.
fn exponent_of(text: &[u8]) -> i64 {
    let digits = text.iter().filter(|b| b.is_ascii_digit());
    let value = digits.fold(0_i64, |value, digit| (value * 10 + i64::from(digit - b'0')).min(1 << 40));
    if text.get(1) == Some(&b'-') { -value } else { value }
}

/// The nearest float; `None` if it is no JSON number. Java's Jackson writes NaN and the infinities as these strings.
/// A number too large for the type becomes an infinity, which the caller refuses.
pub fn float(text: &str, single: bool) -> Option<f64> {
    if number_length(text.as_bytes()) != Ok(text.len()) {
        return None;
    }
    if single { text.parse::<f32>().ok().map(f64::from) } else { text.parse().ok() }
}

/// What Jackson writes, in quotes, for the floats that JSON has no numbers for.
pub fn special_float(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_whole_or_refused() {
        use Exact::{Fraction, NotANumber, TooLarge, Value};
        let cases = [
            ("0", 0, Value(0)),
            ("-0", 0, Value(0)),
            ("-0.0e9", 0, Value(0)),
            ("42", 0, Value(42)),
            ("1.0", 0, Value(1)),
            ("1e3", 0, Value(1000)),
            ("1200e-2", 0, Value(12)),
            ("1.5", 0, Fraction),
            ("1e-1", 0, Fraction),
            ("-9223372036854775808", 0, Value(-9_223_372_036_854_775_808)),
            ("18446744073709551615", 0, Value(18_446_744_073_709_551_615)),
            ("1e400", 0, TooLarge),
            ("1e99999999999999999999", 0, TooLarge),
            ("1e-99999999999999999999", 0, Fraction),
            ("0e99999999999999999999", 0, Value(0)),
            ("12.340", 2, Value(1234)),
            ("12.345", 2, Fraction),
            ("0.01", 2, Value(1)),
            ("100.0100", 4, Value(1_000_100)),
            ("1200", -2, Value(12)),
            ("1210", -2, Fraction),
            ("99999999999999999999999999999999999999", 0, Value(10_i128.pow(38) - 1)),
            ("100000000000000000000000000000000000000", 0, TooLarge),
            ("", 0, NotANumber),
            ("-", 0, NotANumber),
            ("+1", 0, NotANumber),
            ("01", 0, NotANumber),
            ("-01", 0, NotANumber),
            (" 1", 0, NotANumber),
            ("1 ", 0, NotANumber),
            ("0x1", 0, NotANumber),
            ("1.", 0, NotANumber),
            (".5", 0, NotANumber),
            ("1e", 0, NotANumber),
        ];
        for (text, scale, expected) in cases {
            assert_eq!(exact(text, scale), expected, "{text} at scale {scale}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_i8..38) {
            let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale as usize + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
            let point = if scale == 0 { "" } else { "." };
            let text = format!("{}{whole}{point}{fraction}", if value < 0 { "-" } else { "" });
            prop_assert_eq!(exact(&text, scale), Exact::Value(value));
            prop_assert_eq!(exact(&format!("{value}e-{scale}"), scale), Exact::Value(value));
        }
    }
}
