//! What a plain scalar means.
//!
//! The same as to kubectl, whose library (`sigs.k8s.io/yaml`, on go-yaml v2) keeps to YAML 1.1 here: `on` and `no` are
//! booleans, `0x1F` and `017` are numbers. A manifest that reads differently here than there would run on one machine
//! and be refused by a cluster.

use serde_json::{Number, Value};

/// Integers up to here are exact in a 64-bit float.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Why a plain scalar has no meaning in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotJson;

/// Resolves a plain scalar without a tag.
///
/// # Errors
/// For infinities and not-a-number, which JSON does not have.
pub(super) fn resolve(text: &str) -> Result<Value, NotJson> {
    Ok(match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Err(NotJson),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    })
}

fn number(text: &str) -> Option<Number> {
    let first = *text.as_bytes().first()?;
    if first == b'.' {
        return float(text);
    }
    if !(first.is_ascii_digit() || matches!(first, b'+' | b'-')) || text.len() > 64 {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain))
}

/// Integers with the prefixes of Go's `strconv.ParseInt(_, 0, 64)`: `0x`, `0o`, `0b`, and a leading `0` for octal.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hexadecimal) = lower.strip_prefix("0x") {
        (16, hexadecimal)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.get(1..)?)
    } else {
        (10, lower.as_str())
    };
    // `from_str_radix` would take a second sign.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        0_i64.checked_sub_unsigned(magnitude).map(Number::from)
    } else {
        Some(Number::from(magnitude))
    }
}

/// Floats in YAML's own form; one without a fraction becomes an integer, as it does on kubectl's way through JSON.
fn float(text: &str) -> Option<Number> {
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'))
    {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and exactly representable")]
    let whole = (value.fract() == 0.0 && value.abs() <= MAX_EXACT).then_some(value as i64);
    whole.map(Number::from).or_else(|| Number::from_f64(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn means_what_it_means_to_kubectl() {
        for (text, value) in [
            ("true", json!(true)),
            ("on", json!(true)),
            ("No", json!(false)),
            ("~", json!(null)),
            ("", json!(null)),
            ("12", json!(12)),
            ("+12", json!(12)),
            ("-12", json!(-12)),
            ("-0", json!(0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("0x1F", json!(31)),
            ("017", json!(15)),
            ("0o17", json!(15)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000)),
            ("4.0", json!(4)),
            ("089", json!(89)),
        ] {
            assert_eq!(resolve(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn everything_else_is_text() {
        for text in [
            "yess",
            "tRue",
            "1.2.3",
            "0x",
            "--1",
            "+",
            "-",
            ".",
            "1:30",
            "2026-11-21",
            "2026-11-21T10:00:00Z",
            "10s",
            "1e",
            "0xZZ",
            "ns=2;s=a",
            "1e999",
        ] {
            assert_eq!(resolve(text), Ok(json!(text)), "{text}");
        }
    }

    #[test]
    fn what_json_lacks_is_refused() {
        for text in [".nan", ".inf", "-.INF"] {
            assert_eq!(resolve(text), Err(NotJson), "{text}");
        }
    }
}
