//! Sizes in bytes.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::StringRule;

/// A number of bytes, as a Kubernetes quantity of whole bytes: `512`, `64Ki`, `512Mi`, `10G`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is no [`ByteSize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, allowed are sizes such as 512, 64Ki, 512Mi or 10G")]
pub struct ParseByteSizeError {
    /// The text.
    pub found: String,
}

const UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("T", 1_000_000_000_000),
    ("Gi", 1 << 30),
    ("G", 1_000_000_000),
    ("Mi", 1 << 20),
    ("M", 1_000_000),
    ("Ki", 1 << 10),
    ("k", 1_000),
];
/// Six digits of tebibytes still fit 64 bits.
const MAX_DIGITS: usize = 6;
/// Without a unit.
const MAX_PLAIN_DIGITS: usize = 15;

impl ByteSize {
    /// What this type accepts.
    pub const RULE: StringRule = StringRule {
        pattern: r"^([0-9]{1,15}|[0-9]{1,6}(k|M|G|T|Ki|Mi|Gi|Ti))$",
        allowed: "a size in bytes such as 512, 64Ki, 512Mi or 10G",
    };

    /// A size in bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_bytes(text).map(Self).ok_or_else(|| ParseByteSizeError {
            found: text.chars().take(64).collect(),
        })
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let (factor, most) = match unit {
        "" => (1, MAX_PLAIN_DIGITS),
        unit => (UNITS.iter().find(|(name, _)| *name == unit)?.1, MAX_DIGITS),
    };
    if digits == 0 || digits > most {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = UNITS
            .iter()
            .find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor) && self.0 / factor < 1_000_000);
        match fitting {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": 15, "pattern": Self::RULE.pattern })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_pattern_allows() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64Ki", 65_536),
            ("1k", 1000),
            ("10Gi", 10 << 30),
            ("999999Ti", 999_999 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize::from_bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "Ki", "1KiB", "1K", "-1", "1.5Gi", "1000000Ti", "1 Gi", "1e3"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_a_form_that_reads_back() {
        for text in ["0", "513", "64Ki", "1500M", "10Gi"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }
}
