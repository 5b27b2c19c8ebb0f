//! Durations as Kubernetes' Gateway API writes them (GEP-2257).

use std::{borrow::Cow, fmt, str::FromStr, time::Duration as StdDuration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::StringRule;

/// A span of time: one to four numbers of at most five digits, each with `h`, `m`, `s` or `ms`, as in
/// `250ms`, `10s`, `1h30m` (GEP-2257 of the Gateway API, a subset of what Go and CEL's `duration()` read).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(StdDuration);

/// Why a text is no [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, allowed are durations such as 250ms, 10s or 1h30m")]
pub struct ParseDurationError {
    /// The text.
    pub found: String,
}

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const MAX_DIGITS: usize = 5;
const MAX_PARTS: usize = 4;

impl Duration {
    /// What this type accepts.
    pub const RULE: StringRule = StringRule {
        pattern: r"^([0-9]{1,5}(h|m|s|ms)){1,4}$",
        allowed: "a duration such as 250ms, 10s or 1h30m: numbers of at most five digits with h, m, s or ms",
    };

    /// A duration of whole milliseconds; anything finer is cut off.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(StdDuration::from_millis(millis))
    }

    /// A duration of whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(StdDuration::from_secs(secs))
    }

    /// The same span in the standard library's type.
    #[must_use]
    pub const fn get(self) -> StdDuration {
        self.0
    }
}

impl From<Duration> for StdDuration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_millis(text)
            .map(Self::from_millis)
            .ok_or_else(|| ParseDurationError {
                found: text.chars().take(64).collect(),
            })
    }
}

fn parse_millis(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    for _ in 0..MAX_PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        let (number, tail) = rest.split_at_checked(digits)?;
        let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at_checked(letters)?;
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total += number.parse::<u64>().ok()? * millis;
        rest = tail;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 2, "maxLength": 28, "pattern": Self::RULE.pattern })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_pattern_allows() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("99999h", 99_999 * 3_600_000),
            ("1m1m", 120_000),
        ] {
            assert_eq!(text.parse(), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "10",
            "s",
            "1d",
            "-1s",
            "1.5s",
            "100000s",
            "1h1m1s1ms1ms",
            "10 s",
            "10S",
            "1µs",
        ] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["250ms", "10s", "1h30m", "0s", "1h1m1s1ms"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
    }
}
