//! Operators on values.
//!
//! One thing is wider than CEL: numbers of different kinds may be added, subtracted, multiplied and divided, as they
//! may be compared. With a double the result is a double; of an integer and an unsigned integer it is an integer. JSON
//! knows one kind of number only, so whether a temperature of 20 degrees arrives as `20` or `20.0` is chance, and
//! `payload.temperature * 1.8` has to work for both. What CEL itself gives a value for has the same value here.

use std::{cmp::Ordering, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use crate::{
    budget::Meter,
    error::EvalError,
    types::Kind,
    value::{Key, Value},
};

/// Arithmetic operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Comparisons by order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Arithmetic {
    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
        }
    }
}

impl Relation {
    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    pub(crate) const fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

// === arithmetic ===

/// Applies an arithmetic operator.
pub(crate) fn arithmetic<'r>(
    operator: Arithmetic,
    left: &Value<'r>,
    right: &Value<'r>,
    meter: &mut Meter,
) -> Result<Value<'r>, EvalError> {
    use Value::{Double, Int, UInt};
    match (left, right) {
        (Int(a), Int(b)) => integers(operator, *a, *b).map(Int),
        (Double(a), Double(b)) => doubles(operator, *a, *b),
        (UInt(a), UInt(b)) => unsigned(operator, *a, *b).map(UInt),
        (Int(a), Double(b)) => doubles(operator, *a as f64, *b),
        (Double(a), Int(b)) => doubles(operator, *a, *b as f64),
        (UInt(a), Double(b)) => doubles(operator, *a as f64, *b),
        (Double(a), UInt(b)) => doubles(operator, *a, *b as f64),
        (Int(a), UInt(b)) => mixed(operator, i128::from(*a), i128::from(*b)),
        (UInt(a), Int(b)) => mixed(operator, i128::from(*a), i128::from(*b)),
        _ => match operator {
            Arithmetic::Add => add(left, right, meter),
            Arithmetic::Subtract => subtract(left, right),
            _ => Err(EvalError::overload(
                operator.symbol(),
                &[left.kind(), right.kind()],
            )),
        },
    }
}

const fn overflow(operator: Arithmetic) -> EvalError {
    EvalError::Overflow {
        operation: operator.symbol(),
    }
}

fn integers(operator: Arithmetic, a: i64, b: i64) -> Result<i64, EvalError> {
    let result = match operator {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Subtract => a.checked_sub(b),
        Arithmetic::Multiply => a.checked_mul(b),
        Arithmetic::Divide | Arithmetic::Remainder if b == 0 => return Err(EvalError::DivisionByZero),
        Arithmetic::Divide => a.checked_div(b),
        Arithmetic::Remainder => a.checked_rem(b),
    };
    result.ok_or_else(|| overflow(operator))
}

fn unsigned(operator: Arithmetic, a: u64, b: u64) -> Result<u64, EvalError> {
    let result = match operator {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Subtract => a.checked_sub(b),
        Arithmetic::Multiply => a.checked_mul(b),
        Arithmetic::Divide | Arithmetic::Remainder if b == 0 => return Err(EvalError::DivisionByZero),
        Arithmetic::Divide => a.checked_div(b),
        Arithmetic::Remainder => a.checked_rem(b),
    };
    result.ok_or_else(|| overflow(operator))
}

fn doubles(operator: Arithmetic, a: f64, b: f64) -> Result<Value<'static>, EvalError> {
    Ok(Value::Double(match operator {
        Arithmetic::Add => a + b,
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply => a * b,
        Arithmetic::Divide => a / b,
        Arithmetic::Remainder => return Err(EvalError::overload("%", &[Kind::Double, Kind::Double])),
    }))
}

/// An integer and an unsigned integer. The operands have 65 bits, so nothing overflows in 128.
fn mixed(operator: Arithmetic, a: i128, b: i128) -> Result<Value<'static>, EvalError> {
    let result = match operator {
        Arithmetic::Add => a + b,
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply => a * b,
        Arithmetic::Divide | Arithmetic::Remainder if b == 0 => return Err(EvalError::DivisionByZero),
        Arithmetic::Divide => a / b,
        Arithmetic::Remainder => a % b,
    };
    let integer = i64::try_from(result).map(Value::Int);
    let fitting = integer.or_else(|_| u64::try_from(result).map(Value::UInt));
    fitting.map_err(|_| overflow(operator))
}

fn add<'r>(left: &Value<'r>, right: &Value<'r>, meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    const OVERFLOW: EvalError = EvalError::Overflow { operation: "+" };
    match (left, right) {
        (Value::String(a), Value::String(b)) => {
            meter.allocate(a.len() + b.len())?;
            Ok(Value::text([&**a, &**b].concat()))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.allocate(a.len() + b.len())?;
            Ok(Value::octets([&**a, &**b].concat()))
        }
        (Value::List(a), Value::List(b)) => {
            meter.allocate((a.len() + b.len()) * size_of::<Value<'_>>())?;
            Ok(Value::List(
                a.iter().chain(b.iter()).cloned().collect::<Arc<[_]>>(),
            ))
        }
        (Value::Timestamp(a), Value::Duration(b)) | (Value::Duration(b), Value::Timestamp(a)) => {
            a.checked_add(*b).map(Value::Timestamp).map_err(|_| OVERFLOW)
        }
        (Value::Duration(a), Value::Duration(b)) => a.checked_add(*b).map(Value::Duration).ok_or(OVERFLOW),
        _ => Err(EvalError::overload("+", &[left.kind(), right.kind()])),
    }
}

fn subtract<'r>(left: &Value<'r>, right: &Value<'r>) -> Result<Value<'r>, EvalError> {
    const OVERFLOW: EvalError = EvalError::Overflow { operation: "-" };
    match (left, right) {
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(a.duration_since(*b))),
        (Value::Timestamp(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Timestamp).map_err(|_| OVERFLOW)
        }
        (Value::Duration(a), Value::Duration(b)) => a.checked_sub(*b).map(Value::Duration).ok_or(OVERFLOW),
        _ => Err(EvalError::overload("-", &[left.kind(), right.kind()])),
    }
}

/// Changes the sign.
pub(crate) fn negate<'r>(value: &Value<'r>) -> Result<Value<'r>, EvalError> {
    const OVERFLOW: EvalError = EvalError::Overflow { operation: "-" };
    match value {
        Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(OVERFLOW),
        Value::Double(value) => Ok(Value::Double(-value)),
        Value::Duration(value) => value.checked_neg().map(Value::Duration).ok_or(OVERFLOW),
        value => Err(EvalError::overload("-", &[value.kind()])),
    }
}

// === comparison ===

/// Whether two values are equal: numbers by their magnitude, values of different kinds never.
pub(crate) fn equal(left: &Value<'_>, right: &Value<'_>, meter: &mut Meter) -> Result<bool, EvalError> {
    Ok(match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::String(a), Value::String(b)) => {
            meter.scan(a.len().min(b.len()))?;
            **a == **b
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.scan(a.len().min(b.len()))?;
            **a == **b
        }
        (Value::List(a), Value::List(b)) => {
            meter.steps(a.len())?;
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Map(a), Value::Map(b)) => {
            meter.steps(a.len())?;
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.iter() {
                meter.steps(b.len().min(LOOKUP_STEPS))?;
                match b.get(key) {
                    Some(other) if equal(value, other, meter)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (a, b) => numbers(a, b).is_some_and(Ordering::is_eq),
    })
}

/// What a look-up in a large map costs.
const LOOKUP_STEPS: usize = 16;

/// The order of two values of one kind, or of two numbers.
pub(crate) fn order(
    operation: &'static str,
    left: &Value<'_>,
    right: &Value<'_>,
    meter: &mut Meter,
) -> Result<Option<Ordering>, EvalError> {
    Ok(Some(match (left, right) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => {
            meter.scan(a.len().min(b.len()))?;
            a.cmp(b)
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.scan(a.len().min(b.len()))?;
            a.cmp(b)
        }
        (a, b) if a.kind().is_number() && b.kind().is_number() => return Ok(numbers(a, b)),
        (a, b) => return Err(EvalError::overload(operation, &[a.kind(), b.kind()])),
    }))
}

/// The order of two numbers on the number line; `None` when one is no number.
fn numbers(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    use Value::{Double, Int, UInt};
    match (left, right) {
        (Int(a), Int(b)) => Some(a.cmp(b)),
        (UInt(a), UInt(b)) => Some(a.cmp(b)),
        (Double(a), Double(b)) => a.partial_cmp(b),
        (Int(a), UInt(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (UInt(a), Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Int(a), Double(b)) => integer_to_double(i128::from(*a), *b),
        (UInt(a), Double(b)) => integer_to_double(i128::from(*a), *b),
        (Double(a), Int(b)) => integer_to_double(i128::from(*b), *a).map(Ordering::reverse),
        (Double(a), UInt(b)) => integer_to_double(i128::from(*b), *a).map(Ordering::reverse),
        _ => None,
    }
}

/// Compares exactly, where a conversion to a double would round.
fn integer_to_double(integer: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // Saturates, which keeps the order: an integer of 64 bits is never that large.
    let whole = double.trunc() as i128;
    let by_fraction = || 0.0_f64.partial_cmp(&double.fract()).unwrap_or(Ordering::Equal);
    Some(integer.cmp(&whole).then_with(by_fraction))
}

// === membership and look-up ===

/// Whether a list holds a value, or a map a key.
pub(crate) fn contains(
    container: &Value<'_>,
    value: &Value<'_>,
    meter: &mut Meter,
) -> Result<bool, EvalError> {
    match container {
        Value::List(elements) => {
            meter.steps(elements.len())?;
            for element in elements.iter() {
                if equal(element, value, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Map(map) => {
            meter.steps(map.len().min(LOOKUP_STEPS))?;
            Ok(Key::from_value(value).is_some_and(|key| map.get(&key).is_some()))
        }
        other => Err(EvalError::overload("in", &[value.kind(), other.kind()])),
    }
}

/// The element of a list or a map.
pub(crate) fn index<'v, 'r>(
    container: &'v Value<'r>,
    at: &Value<'_>,
    meter: &mut Meter,
) -> Result<&'v Value<'r>, EvalError> {
    match (container, at) {
        (Value::List(elements), Value::Int(at)) => {
            let element = usize::try_from(*at).ok().and_then(|at| elements.get(at));
            element.ok_or(EvalError::OutOfRange {
                index: *at,
                length: elements.len(),
            })
        }
        (Value::Map(map), at) => {
            meter.steps(map.len().min(LOOKUP_STEPS))?;
            let key =
                Key::from_value(at).ok_or_else(|| EvalError::overload("[]", &[Kind::Map, at.kind()]))?;
            map.get(&key)
                .ok_or_else(|| EvalError::no_such_key(&key.to_string()))
        }
        (container, at) => Err(EvalError::overload("[]", &[container.kind(), at.kind()])),
    }
}

/// The point in time so many seconds after the Unix epoch.
pub(crate) fn timestamp_from_seconds(seconds: i64) -> Result<Timestamp, EvalError> {
    Timestamp::from_second(seconds).map_err(|_| EvalError::Overflow {
        operation: "timestamp",
    })
}

/// Reads a duration as CEL writes it: numbers with units `h`, `m`, `s`, `ms`, `us`, `ns`, such as `1h30m` or `-1.5s`.
pub(crate) fn parse_duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(&str, i128); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanoseconds: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at_checked(end)?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanoseconds = nanoseconds.checked_add(decimal(number)?.checked_mul(*factor)? / DECIMAL_ONE)?;
        rest = next;
    }
    let signed = if negative { -nanoseconds } else { nanoseconds };
    let seconds = i64::try_from(signed / 1_000_000_000).ok()?;
    Some(SignedDuration::new(seconds, (signed % 1_000_000_000) as i32))
}

const DECIMAL_ONE: i128 = 1_000_000_000;

/// A decimal number in units of 10⁻⁹; further digits are cut off.
fn decimal(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let kept: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(whole * DECIMAL_ONE + kept.parse::<i128>().ok()?)
}
