//! Times as the database keeps them.

use jiff::Timestamp;

/// A time as the database keeps it. Times outside of the years 1677 to 2262 become the nearest that can be kept.
pub(crate) fn nanoseconds(time: Timestamp) -> i64 {
    let bound = if time < Timestamp::UNIX_EPOCH {
        i64::MIN
    } else {
        i64::MAX
    };
    i64::try_from(time.as_nanosecond()).unwrap_or(bound)
}

/// A time of the database. Every number of 64 bits is one.
pub(crate) fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}
