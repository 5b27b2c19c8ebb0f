//! RESP3, as much of it as the state store speaks: a request is one array of blob strings.
//!
//! Nothing is believed of what a request says about itself: every length is held against the bytes that are there
//! before anything is done with it, and arrays in arrays are none of the protocol.

use bytes::Bytes;

use super::command::CommandError;

/// Most arguments that any command has, its name included.
const MAX_ARGUMENTS: usize = 6;

/// Digits of a length: more than the longest packet needs (MQTT 5.0 section 2.1.4), and less than overflows.
const MAX_DIGITS: usize = 9;

const END: &[u8] = b"\r\n";

/// Cuts a request into its arguments.
///
/// # Errors
/// [`CommandError::Syntax`] when it is not one array of blob strings and nothing else;
/// [`CommandError::WrongNumberOfArguments`] when it has more of them than any command.
pub(super) fn arguments(mut input: &[u8]) -> Result<Vec<&[u8]>, CommandError> {
    let count = take_length(&mut input, b'*').ok_or(CommandError::Syntax)?;
    if count > MAX_ARGUMENTS {
        return Err(CommandError::WrongNumberOfArguments);
    }
    let arguments = (0..count).map(|_| take_blob(&mut input).ok_or(CommandError::Syntax));
    let arguments = arguments.collect::<Result<_, _>>()?;
    if input.is_empty() {
        Ok(arguments)
    } else {
        Err(CommandError::Syntax)
    }
}

fn take_blob<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_length(input, b'$')?;
    let (blob, rest) = input.split_at_checked(length)?;
    *input = rest.strip_prefix(END)?;
    Some(blob)
}

/// Cuts off a type, a length and the end of its line.
fn take_length(input: &mut &[u8], kind: u8) -> Option<usize> {
    let rest = input.strip_prefix(&[kind])?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at(digits);
    if matches!(digits, [] | [b'0', _, ..]) || digits.len() > MAX_DIGITS {
        return None;
    }
    *input = rest.strip_prefix(END)?;
    let value = |digit: &u8| usize::from(digit - b'0');
    Some(digits.iter().fold(0, |length, digit| length * 10 + value(digit)))
}

/// One array of blob strings.
pub(super) fn array(items: &[&[u8]]) -> Bytes {
    let mut out = format!("*{}\r\n", items.len()).into_bytes();
    for item in items {
        put_blob(&mut out, item);
    }
    out.into()
}

/// One blob string.
pub(super) fn blob(value: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + 16);
    put_blob(&mut out, value);
    out.into()
}

fn put_blob(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(END);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(items in prop::collection::vec(any::<Vec<u8>>(), 0..=MAX_ARGUMENTS)) {
            let items: Vec<&[u8]> = items.iter().map(Vec::as_slice).collect();
            let request = array(&items);
            prop_assert_eq!(arguments(&request), Ok(items));
            // Whatever is missing from its end is missed, and whatever follows it is too much.
            for length in 0..request.len() {
                prop_assert_eq!(arguments(&request[..length]), Err(CommandError::Syntax));
            }
            let longer = [&request, &b"\n"[..]].concat();
            prop_assert_eq!(arguments(&longer), Err(CommandError::Syntax));
        }

        #[test]
        fn garbage_does_no_harm(bytes: Vec<u8>) {
            drop(arguments(&bytes));
        }

        #[test]
        fn a_request_with_garbage_in_it_does_no_harm(
            items in prop::collection::vec("[*$:0-9a-z\r\n-]{0,12}", 0..=MAX_ARGUMENTS),
            place: prop::sample::Index,
            garbage in "[*$0-9\r\n-]{1,6}",
        ) {
            let items: Vec<&[u8]> = items.iter().map(String::as_bytes).collect();
            let mut request = array(&items).to_vec();
            let at = place.index(request.len());
            request.splice(at..at, garbage.into_bytes());
            if let Ok(read) = arguments(&request) {
                // If it is a request at all, it is the one that its bytes say.
                prop_assert_eq!(&array(&read)[..], &request[..]);
            }
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        for request in [
            &b"*1\r\n$999999999\r\nGET\r\n"[..],
            b"*1\r\n$18446744073709551615\r\nGET\r\n",
            b"*1\r\n$18446744073709551619\r\nGET\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n$+3\r\nGET\r\n",
            b"*1\r\n$\r\nGET\r\n",
            b"*1\r\n$03\r\nGET\r\n",
            b"*1\r\n$3\nGET\n",
            b"*1\r\n$2\r\nGET\r\n",
            b"*99999999999999999999\r\n",
            b"*-1\r\n",
            b"*\r\n",
            b"",
        ] {
            assert_eq!(arguments(request), Err(CommandError::Syntax), "{request:?}");
        }
        let many = arguments(b"*999999999\r\n$3\r\nGET\r\n");
        assert_eq!(many, Err(CommandError::WrongNumberOfArguments));
    }

    #[test]
    fn only_blob_strings_are_arguments() {
        let nested = [&b"*1\r\n"[..]; 100_000].concat();
        assert_eq!(arguments(&nested), Err(CommandError::Syntax));
        for request in [
            &b"*1\r\n+GET\r\n"[..],
            b"*1\r\n:1\r\n",
            b"*1\r\n_\r\n",
            b"$3\r\nGET\r\n",
            b"GET k",
        ] {
            assert_eq!(arguments(request), Err(CommandError::Syntax), "{request:?}");
        }
    }
}
