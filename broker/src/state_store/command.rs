//! What a client can ask of the state store, and what it is answered, in the words that are published.

use std::time::Duration;

use bytes::Bytes;

use super::resp3;

/// Longest key, in bytes: a notification's topic holds it twice over in hexadecimal, and so does a row of the session.
pub(crate) const MAX_KEY: usize = 4096;

/// What a client asks for.
///
/// Keys and values are copies: a part of the packet would keep all of the packet in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `SET key value [NX | NEX] [PX milliseconds]`
    Set {
        key: Bytes,
        value: Bytes,
        condition: Condition,
        expires_after: Option<Duration>,
    },
    /// `GET key`
    Get { key: Bytes },
    /// `DEL key`
    Delete { key: Bytes },
    /// `VDEL key value`: only if the key has this value.
    DeleteIfEqual { key: Bytes, value: Bytes },
    /// `KEYNOTIFY key`
    Watch { key: Bytes },
    /// `KEYNOTIFY key STOP`
    Unwatch { key: Bytes },
}

/// Under which condition a key is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Always.
    None,
    /// `NX`: only if the key does not exist.
    NotExists,
    /// `NEX`: only if the key does not exist, or has this value already.
    NotExistsOrEqual,
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It was done.
    Ok,
    /// The condition of a `SET` or the value of a `VDEL` was not met.
    NotApplied,
    /// The value of a key.
    Value(Bytes),
    /// There is no such key.
    Missing,
    /// So many keys, or registrations, were removed.
    Removed(u8),
    /// It was refused.
    Error(CommandError),
}

/// Why a request is refused, in the published words: clients compare them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    /// `__ts` is more than a minute ahead.
    #[error(
        "the request timestamp is too far in the future; ensure that the client and broker system clocks are synchronized"
    )]
    TimestampSkew,
    /// The key is protected and the request has no `__ft`.
    #[error("a fencing token is required for this request")]
    MissingFencingToken,
    /// `__ft` is more than a minute ahead.
    #[error(
        "the request fencing token timestamp is too far in the future; ensure that the client and broker system clocks are synchronized"
    )]
    FencingTokenSkew,
    /// `__ft` is older than what protects the key.
    #[error("the request fencing token is a lower version than the fencing token protecting the resource")]
    FencingTokenLowerVersion,
    /// No room for a key or a registration.
    #[error("the quota has been exceeded")]
    QuotaExceeded,
    /// The payload is no request.
    #[error("syntax error")]
    Syntax,
    /// There is no such command.
    #[error("unknown command")]
    UnknownCommand,
    /// The command has another number of arguments.
    #[error("wrong number of arguments")]
    WrongNumberOfArguments,
    /// A `SET` has no `__ts`.
    #[error("missing timestamp")]
    TimestampMissing,
    /// `__ts` or `__ft` can't be read.
    #[error("malformed timestamp")]
    TimestampMalformed,
    /// The key is empty.
    #[error("the key length is zero")]
    KeyLengthZero,
}

impl Command {
    /// Reads a request.
    ///
    /// # Errors
    /// What the client is answered.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, CommandError> {
        let arguments = resp3::arguments(payload)?;
        let Some((name, arguments)) = arguments.split_first() else {
            return Err(CommandError::WrongNumberOfArguments);
        };
        match (*name, arguments) {
            (b"SET", [key, value, options @ ..]) => Self::parse_set(key, value, options),
            (b"GET", [key]) => Ok(Self::Get { key: owned_key(key)? }),
            (b"DEL", [key]) => Ok(Self::Delete { key: owned_key(key)? }),
            (b"VDEL", [key, value]) => Ok(Self::DeleteIfEqual {
                key: owned_key(key)?,
                value: Bytes::copy_from_slice(value),
            }),
            (b"KEYNOTIFY", [key]) => Ok(Self::Watch { key: owned_key(key)? }),
            (b"KEYNOTIFY", [key, b"STOP"]) => Ok(Self::Unwatch { key: owned_key(key)? }),
            (b"KEYNOTIFY", [_, _]) => Err(CommandError::Syntax),
            (b"SET" | b"GET" | b"DEL" | b"VDEL" | b"KEYNOTIFY", _) => {
                Err(CommandError::WrongNumberOfArguments)
            }
            _ => Err(CommandError::UnknownCommand),
        }
    }

    fn parse_set(key: &[u8], value: &[u8], mut options: &[&[u8]]) -> Result<Self, CommandError> {
        let mut condition = Condition::None;
        let mut expires_after = None;
        while let Some((option, rest)) = options.split_first() {
            options = rest;
            match *option {
                b"NX" if condition == Condition::None => condition = Condition::NotExists,
                b"NEX" if condition == Condition::None => condition = Condition::NotExistsOrEqual,
                b"PX" if expires_after.is_none() => {
                    let (milliseconds, rest) = options
                        .split_first()
                        .ok_or(CommandError::WrongNumberOfArguments)?;
                    options = rest;
                    expires_after = Some(duration(milliseconds).ok_or(CommandError::Syntax)?);
                }
                _ => return Err(CommandError::Syntax),
            }
        }
        Ok(Self::Set {
            key: owned_key(key)?,
            value: Bytes::copy_from_slice(value),
            condition,
            expires_after,
        })
    }

    /// Bytes of key and value.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Set { key, value, .. } | Self::DeleteIfEqual { key, value } => key.len() + value.len(),
            Self::Get { key } | Self::Delete { key } | Self::Watch { key } | Self::Unwatch { key } => {
                key.len()
            }
        }
    }
}

fn owned_key(key: &[u8]) -> Result<Bytes, CommandError> {
    match key.len() {
        0 => Err(CommandError::KeyLengthZero),
        1..=MAX_KEY => Ok(Bytes::copy_from_slice(key)),
        _ => Err(CommandError::QuotaExceeded),
    }
}

/// A number of milliseconds, at least one.
fn duration(text: &[u8]) -> Option<Duration> {
    let digits = std::str::from_utf8(text).ok()?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let milliseconds: u64 = digits.parse().ok().filter(|_| plain)?;
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}

impl Reply {
    /// As it is sent.
    pub(super) fn encode(&self) -> Bytes {
        match self {
            Self::Ok => Bytes::from_static(b"+OK\r\n"),
            Self::NotApplied => Bytes::from_static(b":-1\r\n"),
            Self::Value(value) => resp3::blob(value),
            Self::Missing => Bytes::from_static(b"$-1\r\n"),
            Self::Removed(count) => format!(":{count}\r\n").into(),
            Self::Error(error) => format!("-ERR {error}\r\n").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, CommandError> {
        let arguments: Vec<&[u8]> = arguments.iter().map(|text| text.as_bytes()).collect();
        Command::parse(&resp3::array(&arguments))
    }

    fn set(condition: Condition, milliseconds: Option<u64>) -> Result<Command, CommandError> {
        Ok(Command::Set {
            key: "k".into(),
            value: "v".into(),
            condition,
            expires_after: milliseconds.map(Duration::from_millis),
        })
    }

    #[test]
    fn commands_are_read() {
        let (key, value) = (Bytes::from("k"), Bytes::from("v"));
        assert_eq!(parse(&["SET", "k", "v"]), set(Condition::None, None));
        assert_eq!(parse(&["SET", "k", "v", "NX"]), set(Condition::NotExists, None));
        assert_eq!(
            parse(&["SET", "k", "v", "NEX", "PX", "50"]),
            set(Condition::NotExistsOrEqual, Some(50))
        );
        assert_eq!(
            parse(&["SET", "k", "v", "PX", "50", "NX"]),
            set(Condition::NotExists, Some(50))
        );
        assert_eq!(parse(&["GET", "k"]), Ok(Command::Get { key: key.clone() }));
        assert_eq!(parse(&["DEL", "k"]), Ok(Command::Delete { key: key.clone() }));
        let delete_if_equal = Command::DeleteIfEqual {
            key: key.clone(),
            value,
        };
        assert_eq!(parse(&["VDEL", "k", "v"]), Ok(delete_if_equal));
        assert_eq!(
            parse(&["KEYNOTIFY", "k"]),
            Ok(Command::Watch { key: key.clone() })
        );
        assert_eq!(parse(&["KEYNOTIFY", "k", "STOP"]), Ok(Command::Unwatch { key }));
    }

    #[test]
    fn faults_are_told_in_the_published_words() {
        let error = |arguments: &[&str]| parse(arguments).unwrap_err().to_string();
        let long = "x".repeat(MAX_KEY + 1);
        for (arguments, expected) in [
            (&[][..], "wrong number of arguments"),
            (&["GET"], "wrong number of arguments"),
            (&["GET", "k", "v"], "wrong number of arguments"),
            (&["DEL"], "wrong number of arguments"),
            (&["VDEL", "k"], "wrong number of arguments"),
            (&["SET", "k"], "wrong number of arguments"),
            (&["SET", "k", "v", "PX"], "wrong number of arguments"),
            (&["KEYNOTIFY"], "wrong number of arguments"),
            (&["KEYNOTIFY", "k", "STOP", "x"], "wrong number of arguments"),
            (&["SET", "k", "v", "NX", "NEX"], "syntax error"),
            (&["SET", "k", "v", "nx"], "syntax error"),
            (&["SET", "k", "v", "PX", "0"], "syntax error"),
            (&["SET", "k", "v", "PX", "-1"], "syntax error"),
            (&["SET", "k", "v", "PX", "+1"], "syntax error"),
            (&["SET", "k", "v", "PX", "1.5"], "syntax error"),
            (&["SET", "k", "v", "PX", "99999999999999999999"], "syntax error"),
            (&["KEYNOTIFY", "k", "stop"], "syntax error"),
            (&["get", "k"], "unknown command"),
            (&["SCAN", "*"], "unknown command"),
            (&["", "k"], "unknown command"),
            (&["GET", ""], "the key length is zero"),
            (&["SET", "", "v"], "the key length is zero"),
            (&["KEYNOTIFY", ""], "the key length is zero"),
            (&["GET", &long], "the quota has been exceeded"),
        ] {
            assert_eq!(error(arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn replies_are_those_of_the_protocol() {
        for (reply, expected) in [
            (Reply::Ok, "+OK\r\n"),
            (Reply::NotApplied, ":-1\r\n"),
            (Reply::Value("1234".into()), "$4\r\n1234\r\n"),
            (Reply::Value(Bytes::new()), "$0\r\n\r\n"),
            (Reply::Missing, "$-1\r\n"),
            (Reply::Removed(1), ":1\r\n"),
            (Reply::Removed(0), ":0\r\n"),
            (Reply::Error(CommandError::Syntax), "-ERR syntax error\r\n"),
        ] {
            assert_eq!(reply.encode(), expected);
        }
    }
}
