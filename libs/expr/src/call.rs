//! Functions on values.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::Offset};

use crate::{
    budget::Meter,
    error::EvalError,
    function::Function,
    json,
    operator::{Arithmetic, arithmetic, order, parse_duration, timestamp_from_seconds},
    types::Kind,
    value::{Octets, Text, Value},
};

/// Calls a function. The arguments' number and, where they were known, their kinds were checked before.
pub(crate) fn call<'r>(
    function: Function,
    arguments: &[Cow<'_, Value<'r>>],
    meter: &mut Meter,
) -> Result<Value<'r>, EvalError> {
    let values: Vec<&Value<'r>> = arguments.iter().map(|argument| &**argument).collect();
    match function {
        Function::Size => size(&values, meter),
        Function::Contains | Function::StartsWith | Function::EndsWith | Function::IndexOf => {
            search(function, &values, meter)
        }
        Function::LowerAscii | Function::UpperAscii | Function::Trim => reshape(function, &values, meter),
        Function::Replace => replace(&values, meter),
        Function::Split => split(&values, meter),
        Function::Substring => substring(&values, meter),
        Function::Join => join(&values, meter),
        Function::Bool | Function::Int | Function::UInt | Function::Double => to_number(function, &values),
        Function::String | Function::Bytes => to_text(function, &values, meter),
        Function::Timestamp | Function::Duration => to_time(function, &values),
        Function::FullYear
        | Function::Month
        | Function::DayOfYear
        | Function::DayOfMonth
        | Function::Date
        | Function::DayOfWeek
        | Function::Hours
        | Function::Minutes
        | Function::Seconds
        | Function::Milliseconds => part_of_time(function, &values),
        Function::Abs
        | Function::Ceil
        | Function::Floor
        | Function::Round
        | Function::Trunc
        | Function::Sqrt => math(function, &values),
        Function::Least | Function::Greatest => extreme(function, values.iter().copied(), meter),
        Function::ListMin | Function::ListMax | Function::Sum => of_list(function, &values, meter),
        // Compiled into a node of its own, because its pattern is.
        Function::Matches => Err(mismatch(function, &values)),
    }
}

fn mismatch(function: Function, values: &[&Value<'_>]) -> EvalError {
    let kinds: Vec<Kind> = values.iter().map(|value| value.kind()).collect();
    EvalError::overload(function.name(), &kinds)
}

fn size<'r>(values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let size = match values {
        [Value::String(text)] => {
            meter.scan(text.len())?;
            text.chars().count()
        }
        [Value::Bytes(octets)] => octets.len(),
        [Value::List(elements)] => elements.len(),
        [Value::Map(map)] => map.len(),
        _ => return Err(mismatch(Function::Size, values)),
    };
    Ok(Value::Int(size as i64))
}

// === of texts ===

fn search<'r>(function: Function, values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let [Value::String(text), Value::String(wanted)] = values else {
        return Err(mismatch(function, values));
    };
    meter.scan(text.len() + wanted.len())?;
    Ok(match function {
        Function::StartsWith => Value::Bool(text.starts_with(&**wanted)),
        Function::EndsWith => Value::Bool(text.ends_with(&**wanted)),
        Function::IndexOf => Value::Int(match text.find(&**wanted) {
            Some(at) => text.get(..at).map_or(0, |before| before.chars().count()) as i64,
            None => -1,
        }),
        _ => Value::Bool(text.contains(&**wanted)),
    })
}

fn reshape<'r>(function: Function, values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let [Value::String(text)] = values else {
        return Err(mismatch(function, values));
    };
    meter.allocate(text.len())?;
    Ok(match (function, text) {
        (Function::LowerAscii, text) => Value::text(text.to_ascii_lowercase()),
        (Function::UpperAscii, text) => Value::text(text.to_ascii_uppercase()),
        (_, Text::Borrowed(text)) => Value::borrowed(text.trim()),
        (_, Text::Shared(text)) => Value::text(text.trim()),
    })
}

fn replace<'r>(values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let [Value::String(text), Value::String(old), Value::String(new)] = values else {
        return Err(mismatch(Function::Replace, values));
    };
    meter.scan(text.len())?;
    let occurrences = text.matches(&**old).count();
    meter.allocate(text.len() + occurrences * new.len())?;
    Ok(Value::text(text.replace(&**old, new)))
}

fn split<'r>(values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let [Value::String(text), Value::String(separator)] = values else {
        return Err(mismatch(Function::Split, values));
    };
    meter.scan(text.len())?;
    // An empty separator splits into characters, as Kubernetes' function does.
    let parts = if separator.is_empty() {
        text.len()
    } else {
        text.matches(&**separator).count() + 1
    };
    meter.allocate(parts * size_of::<Value<'_>>())?;
    let part = |part: &str| Value::text(part);
    Ok(Value::list(match text {
        _ if separator.is_empty() => text.chars().map(|c| part(c.encode_utf8(&mut [0; 4]))).collect(),
        Text::Borrowed(text) => text.split(&**separator).map(Value::borrowed).collect(),
        Text::Shared(text) => text.split(&**separator).map(part).collect(),
    }))
}

fn substring<'r>(values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let (text, first, last) = match values {
        [Value::String(text), Value::Int(first)] => (text, *first, None),
        [Value::String(text), Value::Int(first), Value::Int(last)] => (text, *first, Some(*last)),
        _ => return Err(mismatch(Function::Substring, values)),
    };
    meter.allocate(text.len())?;
    let length = text.chars().count();
    let last = last.unwrap_or(length as i64);
    let within = |index: i64| {
        let position = usize::try_from(index).ok().filter(|position| *position <= length);
        position.ok_or(EvalError::OutOfRange { index, length })
    };
    let (from, to) = (within(first)?, within(last)?);
    if from > to {
        return Err(EvalError::OutOfRange {
            index: first,
            length: to,
        });
    }
    Ok(Value::text(
        text.chars().skip(from).take(to - from).collect::<String>(),
    ))
}

fn join<'r>(values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let (elements, separator) = match values {
        [Value::List(elements)] => (elements, ""),
        [Value::List(elements), Value::String(separator)] => (elements, &**separator),
        _ => return Err(mismatch(Function::Join, values)),
    };
    meter.steps(elements.len())?;
    let mut joined = String::new();
    for (position, element) in elements.iter().enumerate() {
        let Value::String(text) = element else {
            return Err(EvalError::argument(
                "join",
                format_args!("an element is {}", element.kind()),
            ));
        };
        meter.allocate(text.len() + separator.len())?;
        if position > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
    }
    Ok(Value::text(joined))
}

// === conversions ===

/// 2⁶³ and 2⁶⁴: the first doubles that no longer fit.
const INT_LIMIT: f64 = 9_223_372_036_854_775_808.0;
const UINT_LIMIT: f64 = 18_446_744_073_709_551_616.0;

fn to_number<'r>(function: Function, values: &[&Value<'r>]) -> Result<Value<'r>, EvalError> {
    let overflow = || EvalError::Overflow {
        operation: function.name(),
    };
    let parsed =
        |text: &str| EvalError::argument(function.name(), format_args!("{:?} is none", shortened(text)));
    let [value] = values else {
        return Err(mismatch(function, values));
    };
    Ok(match (function, value) {
        (Function::Bool, Value::Bool(value)) => Value::Bool(*value),
        (Function::Bool, Value::String(text)) => match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => Value::Bool(true),
            "false" | "False" | "FALSE" | "f" | "0" => Value::Bool(false),
            other => return Err(parsed(other)),
        },
        (Function::Int, Value::Int(value)) => Value::Int(*value),
        (Function::Int, Value::UInt(value)) => Value::Int(i64::try_from(*value).map_err(|_| overflow())?),
        (Function::Int, Value::Double(value)) if *value >= -INT_LIMIT && *value < INT_LIMIT => {
            Value::Int(*value as i64)
        }
        (Function::Int, Value::String(text)) => Value::Int(text.parse().map_err(|_| parsed(text))?),
        (Function::Int, Value::Timestamp(value)) => Value::Int(value.as_second()),
        (Function::UInt, Value::UInt(value)) => Value::UInt(*value),
        (Function::UInt, Value::Int(value)) => Value::UInt(u64::try_from(*value).map_err(|_| overflow())?),
        (Function::UInt, Value::Double(value)) if *value >= 0.0 && *value < UINT_LIMIT => {
            Value::UInt(*value as u64)
        }
        (Function::UInt, Value::String(text)) => Value::UInt(text.parse().map_err(|_| parsed(text))?),
        (Function::Int | Function::UInt, Value::Double(_)) => return Err(overflow()),
        (Function::Double, Value::Double(value)) => Value::Double(*value),
        (Function::Double, Value::Int(value)) => Value::Double(*value as f64),
        (Function::Double, Value::UInt(value)) => Value::Double(*value as f64),
        (Function::Double, Value::String(text)) => Value::Double(text.parse().map_err(|_| parsed(text))?),
        _ => return Err(mismatch(function, values)),
    })
}

fn to_text<'r>(function: Function, values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let [value] = values else {
        return Err(mismatch(function, values));
    };
    let text = match (function, value) {
        (Function::String, Value::String(text)) => return Ok(Value::String(text.clone())),
        (Function::String, Value::Bytes(octets)) => {
            meter.allocate(octets.len())?;
            match (std::str::from_utf8(octets), octets) {
                (Ok(_), Octets::Borrowed(octets)) => {
                    return Ok(Value::borrowed(std::str::from_utf8(octets).unwrap_or_default()));
                }
                (Ok(text), Octets::Shared(_)) => return Ok(Value::text(text)),
                (Err(error), _) => return Err(EvalError::argument("string", error)),
            }
        }
        (Function::String, Value::Bool(value)) => value.to_string(),
        (Function::String, Value::Int(value)) => value.to_string(),
        (Function::String, Value::UInt(value)) => value.to_string(),
        (Function::String, Value::Double(value)) => value.to_string(),
        (Function::String, Value::Timestamp(value)) => value.to_string(),
        (Function::String, Value::Duration(value)) => json::seconds(*value),
        (Function::Bytes, Value::Bytes(octets)) => return Ok(Value::Bytes(octets.clone())),
        (Function::Bytes, Value::String(text)) => {
            meter.allocate(text.len())?;
            return Ok(match text {
                Text::Borrowed(text) => Value::Bytes(Octets::Borrowed(text.as_bytes())),
                Text::Shared(text) => Value::octets(text.as_bytes()),
            });
        }
        _ => return Err(mismatch(function, values)),
    };
    meter.allocate(text.len())?;
    Ok(Value::text(text))
}

fn to_time<'r>(function: Function, values: &[&Value<'r>]) -> Result<Value<'r>, EvalError> {
    Ok(match (function, values) {
        (Function::Timestamp, [Value::Timestamp(value)]) => Value::Timestamp(*value),
        (Function::Timestamp, [Value::Int(seconds)]) => Value::Timestamp(timestamp_from_seconds(*seconds)?),
        (Function::Timestamp, [Value::String(text)]) => {
            let parsed = text.parse::<Timestamp>();
            Value::Timestamp(parsed.map_err(|_| {
                let message = format!(
                    "{:?} is no RFC 3339 time such as 2026-01-31T12:00:00Z",
                    shortened(text)
                );
                EvalError::argument("timestamp", message)
            })?)
        }
        (Function::Duration, [Value::Duration(value)]) => Value::Duration(*value),
        (Function::Duration, [Value::String(text)]) => {
            Value::Duration(parse_duration(text).ok_or_else(|| {
                let message = format!(
                    "{:?} is no duration such as 1h30m, 1.5s or 250ms",
                    shortened(text)
                );
                EvalError::argument("duration", message)
            })?)
        }
        _ => return Err(mismatch(function, values)),
    })
}

/// At most 64 characters of a text, for messages.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

// === of time ===

fn part_of_time<'r>(function: Function, values: &[&Value<'r>]) -> Result<Value<'r>, EvalError> {
    let part = match values {
        [Value::Timestamp(value)] => part_of_timestamp(function, Offset::UTC.to_datetime(*value)),
        [Value::Duration(value)] => part_of_duration(function, *value),
        _ => None,
    };
    part.map(Value::Int).ok_or_else(|| mismatch(function, values))
}

/// Parts of a point in time, in UTC. Months, days of the month (but not dates) and of the year count from 0, as CEL's
/// do; days of the week from Sunday.
fn part_of_timestamp(function: Function, time: DateTime) -> Option<i64> {
    Some(i64::from(match function {
        Function::FullYear => time.year(),
        Function::Month => i16::from(time.month()) - 1,
        Function::DayOfYear => time.day_of_year() - 1,
        Function::DayOfMonth => i16::from(time.day()) - 1,
        Function::Date => i16::from(time.day()),
        Function::DayOfWeek => i16::from(time.weekday().to_sunday_zero_offset()),
        Function::Hours => i16::from(time.hour()),
        Function::Minutes => i16::from(time.minute()),
        Function::Seconds => i16::from(time.second()),
        Function::Milliseconds => time.millisecond(),
        _ => return None,
    }))
}

/// The whole span, in the unit that is asked for.
fn part_of_duration(function: Function, duration: SignedDuration) -> Option<i64> {
    Some(match function {
        Function::Hours => duration.as_hours(),
        Function::Minutes => duration.as_mins(),
        Function::Seconds => duration.as_secs(),
        Function::Milliseconds => i64::try_from(duration.as_millis()).ok()?,
        _ => return None,
    })
}

// === of numbers ===

fn math<'r>(function: Function, values: &[&Value<'r>]) -> Result<Value<'r>, EvalError> {
    let double = match values {
        [Value::Double(value)] => *value,
        [Value::Int(value)] if function == Function::Abs => {
            let overflow = EvalError::Overflow {
                operation: "math.abs",
            };
            return value.checked_abs().map(Value::Int).ok_or(overflow);
        }
        [Value::UInt(value)] if function == Function::Abs => return Ok(Value::UInt(*value)),
        [Value::Int(value)] => *value as f64,
        [Value::UInt(value)] => *value as f64,
        _ => return Err(mismatch(function, values)),
    };
    Ok(Value::Double(match function {
        Function::Abs => double.abs(),
        Function::Ceil => double.ceil(),
        Function::Floor => double.floor(),
        // Halves go away from zero, as CEL has it.
        Function::Round => double.round(),
        Function::Sqrt => double.sqrt(),
        _ => double.trunc(),
    }))
}

/// The least or the greatest; the first of equal ones.
fn extreme<'v, 'r: 'v>(
    function: Function,
    values: impl Iterator<Item = &'v Value<'r>>,
    meter: &mut Meter,
) -> Result<Value<'r>, EvalError> {
    let least = matches!(function, Function::Least | Function::ListMin);
    let mut found: Option<&Value<'r>> = None;
    for value in values {
        meter.steps(1)?;
        let Some(best) = found else {
            found = Some(value);
            continue;
        };
        let ordering = order(function.name(), value, best, meter)?;
        if ordering.is_some_and(|ordering| if least { ordering.is_lt() } else { ordering.is_gt() }) {
            found = Some(value);
        }
    }
    found
        .cloned()
        .ok_or_else(|| EvalError::argument(function.name(), "list is empty"))
}

fn of_list<'r>(function: Function, values: &[&Value<'r>], meter: &mut Meter) -> Result<Value<'r>, EvalError> {
    let [Value::List(elements)] = values else {
        return Err(mismatch(function, values));
    };
    if function != Function::Sum {
        return extreme(function, elements.iter(), meter);
    }
    meter.steps(elements.len())?;
    let mut elements = elements.iter();
    let Some(first) = elements.next() else {
        return Ok(Value::Int(0));
    };
    if !first.kind().is_number() && first.kind() != Kind::Duration {
        return Err(EvalError::argument(
            "sum",
            format_args!("an element is {}", first.kind()),
        ));
    }
    elements.try_fold(first.clone(), |sum, element| {
        arithmetic(Arithmetic::Add, &sum, element, meter)
    })
}
