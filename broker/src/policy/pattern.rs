//! Texts with wildcards and facts of the client in them.
//!
//! What a client says of itself must never be read as a pattern: in names its value stands for itself, and in topics a
//! value that holds `/`, `+` or `#` makes the topic match nothing.

use std::fmt;

use foreshore_record::TopicFilter;

/// What stands for the client identifier.
const CLIENT_ID: &str = "${clientid}";

/// What stands for the user name.
const USERNAME: &str = "${username}";

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// `*`: any characters.
    Any,
    ClientId,
    Username,
}

/// A pattern that can't be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPattern {
    #[error("{pattern:?} names ${{{found}}}: ${{clientid}} and ${{username}} are allowed")]
    Fact { pattern: String, found: String },
    #[error("{pattern:?} has \"${{\" without a closing brace")]
    Brace { pattern: String },
    #[error("{pattern:?} is not a topic filter: '+' must fill its level, '#' must be the last")]
    Topic { pattern: String },
}

/// Why a topic matches nothing for a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfilled {
    #[error("the client has no user name")]
    NoUser,
    #[error("for {fact}, found {value:?}: a name without '/', '+' and '#' is allowed")]
    Unsafe { fact: &'static str, value: String },
    #[error("it is no topic filter")]
    NoFilter,
}

impl InvalidPattern {
    pub(super) fn topic(pattern: &str) -> Self {
        Self::Topic {
            pattern: pattern.to_owned(),
        }
    }
}

impl Template {
    /// Parses a pattern; in topics `*` is a character like any other.
    pub(super) fn parse(pattern: &str, stars: bool) -> Result<Self, InvalidPattern> {
        let mut pieces = Vec::new();
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once("${") {
            push_text(&mut pieces, before, stars);
            let (fact, tail) = after.split_once('}').ok_or_else(|| InvalidPattern::Brace {
                pattern: pattern.to_owned(),
            })?;
            pieces.push(match fact {
                "clientid" => Piece::ClientId,
                "username" => Piece::Username,
                _ => {
                    return Err(InvalidPattern::Fact {
                        pattern: pattern.to_owned(),
                        found: fact.to_owned(),
                    });
                }
            });
            rest = tail;
        }
        push_text(&mut pieces, rest, stars);
        Ok(Self(pieces))
    }

    /// Whether a name matches.
    pub(super) fn matches(&self, name: &str, client_id: &str, username: Option<&str>) -> bool {
        let mut parts: Vec<Option<&str>> = Vec::with_capacity(self.0.len());
        for piece in &self.0 {
            parts.push(match piece {
                Piece::Text(text) => Some(text),
                Piece::Any => None,
                Piece::ClientId => Some(client_id),
                Piece::Username => match username {
                    Some(username) => Some(username),
                    None => return false,
                },
            });
        }
        matches_parts(name, &parts)
    }

    /// The topic filter for one client.
    ///
    /// # Errors
    /// When a name can't be filled in safely.
    pub(super) fn filter(&self, client_id: &str, username: Option<&str>) -> Result<TopicFilter, Unfilled> {
        let safe = |fact, value: &str| {
            if value.is_empty() || value.contains(['/', '+', '#', '\0']) {
                let value = value.to_owned();
                Err(Unfilled::Unsafe { fact, value })
            } else {
                Ok(())
            }
        };
        for piece in &self.0 {
            match piece {
                Piece::Text(_) | Piece::Any => {}
                Piece::ClientId => safe(CLIENT_ID, client_id)?,
                Piece::Username => safe(USERNAME, username.ok_or(Unfilled::NoUser)?)?,
            }
        }
        TopicFilter::new(self.filled(client_id, username)).map_err(|_| Unfilled::NoFilter)
    }

    /// The pattern with the names of one client in it, for people: a name that is missing stays as it is written.
    pub(super) fn filled(&self, client_id: &str, username: Option<&str>) -> String {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Any => "*",
            Piece::ClientId => client_id,
            Piece::Username => username.unwrap_or(USERNAME),
        });
        pieces.collect()
    }
}

impl fmt::Display for Template {
    /// The pattern as it was written.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.filled(CLIENT_ID, None))
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, stars: bool) {
    if !stars {
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        return;
    }
    for (index, part) in text.split('*').enumerate() {
        if index > 0 {
            pieces.push(Piece::Any);
        }
        if !part.is_empty() {
            pieces.push(Piece::Text(part.to_owned()));
        }
    }
}

/// Whether a text is made of these parts; `None` stands for any characters. Linear for each gap: no pattern and no name
/// makes it slow.
fn matches_parts(text: &str, parts: &[Option<&str>]) -> bool {
    let Some(first_gap) = parts.iter().position(Option::is_none) else {
        return text == parts.iter().flatten().copied().collect::<String>();
    };
    let last_gap = parts.iter().rposition(Option::is_none).unwrap_or(first_gap);
    let joined = |parts: &[Option<&str>]| parts.iter().flatten().copied().collect::<String>();
    let Some(rest) = text.strip_prefix(joined(&parts[..first_gap]).as_str()) else {
        return false;
    };
    let Some(mut rest) = rest.strip_suffix(joined(&parts[last_gap + 1..]).as_str()) else {
        return false;
    };
    // Between two gaps the first place that fits is as good as any.
    for between in parts[first_gap..=last_gap].split(Option::is_none) {
        let between = joined(between);
        match rest.split_once(between.as_str()) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Template::parse(pattern, true)
            .unwrap()
            .matches(name, "client*", Some("user"))
    }

    #[test]
    fn stars_stand_for_any_characters() {
        assert!(matches("*", "") && matches("*", "anything") && matches("a*", "abc") && matches("*c", "abc"));
        assert!(matches("a*b*c", "a-b-b-c") && matches("**", "x") && matches("", ""));
        assert!(
            !matches("a*", "ba")
                && !matches("a*b*c", "a-c")
                && !matches("a", "ab")
                && !matches("ab*ba", "aba")
        );
    }

    #[test]
    fn facts_stand_for_themselves() {
        assert!(matches("${username}-*", "user-7") && !matches("${username}-*", "other-7"));
        // The client is named `client*`, which is not a pattern.
        assert!(matches("${clientid}", "client*") && !matches("${clientid}", "clients"));
        let template = Template::parse("${username}", true).unwrap();
        assert!(!template.matches("", "c", None));
    }

    #[test]
    fn names_can_not_inject_topics() {
        let template = Template::parse("devices/${clientid}/#", false).unwrap();
        assert_eq!(template.filter("a", None).unwrap().as_str(), "devices/a/#");
        for name in ["+", "#", "a/#", "a/b", "", "a+b", "a\0b"] {
            assert!(template.filter(name, None).is_err(), "{name:?}");
        }
        assert_eq!(template.filter("a*", None).unwrap().as_str(), "devices/a*/#");
        assert_eq!(
            Template::parse("u/${username}", false).unwrap().filter("a", None),
            Err(Unfilled::NoUser)
        );
    }

    #[test]
    fn errors_name_what_is_allowed() {
        let error = |pattern| Template::parse(pattern, true).unwrap_err().to_string();
        assert_eq!(
            error("${ip}"),
            "\"${ip}\" names ${ip}: ${clientid} and ${username} are allowed"
        );
        assert_eq!(
            error("${clientid"),
            "\"${clientid\" has \"${\" without a closing brace"
        );
    }
}
