//! Topic names, topic filters, matching and templates (MQTT 5.0 section 4.7).

use std::{borrow::Borrow, fmt, sync::Arc};

/// Longest topic name or filter, in bytes (MQTT 5.0 section 4.7.3).
pub const MAX_LEN: usize = 65_535;

/// Most levels of a topic name or filter that we accept; bounds the work of matching.
pub const MAX_LEVELS: usize = 128;

/// Prefix of all topics that Foreshore itself names.
pub const ROOT: &str = "foreshore";

/// A topic that a message is published to: not empty, without wildcards and without U+0000.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// A filter that a subscription asks for; may hold the wildcards `+` and `#`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter(Arc<str>);

/// A text that is not a topic name or not a topic filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopic {
    /// It has no characters.
    #[error("topic is empty")]
    Empty,
    /// It is longer than [`MAX_LEN`].
    #[error("topic has {found} bytes, {MAX_LEN} are allowed")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// It has more than [`MAX_LEVELS`] levels.
    #[error("topic has {found} levels, {MAX_LEVELS} are allowed")]
    TooManyLevels {
        /// Levels found.
        found: usize,
    },
    /// It holds a character that is not allowed there.
    #[error("topic holds {found:?}, which is not allowed there: {topic:?}")]
    Character {
        /// The character.
        found: char,
        /// The whole text.
        topic: String,
    },
    /// A shared subscription without group or filter (MQTT 5.0 section 4.8.2).
    #[error("shared subscription {filter:?} lacks a group or a filter: $share/group/filter is allowed")]
    Share {
        /// The whole text.
        filter: String,
    },
}

fn check_shape(topic: &str) -> Result<(), InvalidTopic> {
    if topic.is_empty() {
        return Err(InvalidTopic::Empty);
    }
    if topic.len() > MAX_LEN {
        return Err(InvalidTopic::TooLong { found: topic.len() });
    }
    let levels = topic.split('/').count();
    if levels > MAX_LEVELS {
        return Err(InvalidTopic::TooManyLevels { found: levels });
    }
    if topic.contains('\0') {
        return Err(InvalidTopic::Character {
            found: '\0',
            topic: topic.to_owned(),
        });
    }
    Ok(())
}

// === impl TopicName ===

impl TopicName {
    /// Checks and wraps a topic name.
    ///
    /// # Errors
    /// When the text is empty, too long, too deep, or holds a wildcard or U+0000.
    pub fn new(topic: impl AsRef<str>) -> Result<Self, InvalidTopic> {
        let topic = topic.as_ref();
        check_shape(topic)?;
        if let Some(found) = topic.chars().find(|c| matches!(c, '+' | '#')) {
            return Err(InvalidTopic::Character {
                found,
                topic: topic.to_owned(),
            });
        }
        Ok(Self(topic.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels from the left.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

// === impl TopicFilter ===

impl TopicFilter {
    /// Checks and wraps a topic filter; a shared subscription's filter is given without `$share/group/`.
    ///
    /// # Errors
    /// When the text is empty, too long, too deep, holds U+0000, or a wildcard that does not fill its level or is not
    /// the last (`#`).
    pub fn new(filter: impl AsRef<str>) -> Result<Self, InvalidTopic> {
        let filter = filter.as_ref();
        check_shape(filter)?;
        let mut levels = filter.split('/').peekable();
        while let Some(level) = levels.next() {
            let misplaced = match level {
                "+" => None,
                "#" => levels.peek().is_some().then_some('#'),
                _ => level.chars().find(|c| matches!(c, '+' | '#')),
            };
            if let Some(found) = misplaced {
                return Err(InvalidTopic::Character {
                    found,
                    topic: filter.to_owned(),
                });
            }
        }
        Ok(Self(filter.into()))
    }

    /// The filter as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels from the left.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether the filter matches the name (MQTT 5.0 section 4.7.1 and 4.7.2: a leading wildcard does not match a
    /// name that begins with `$`).
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.split('/');
        for level in self.0.split('/') {
            if level == "#" {
                return true;
            }
            match names.next() {
                Some(name) if level == "+" || level == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// Whether every topic that `other` matches is matched by this filter.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if other.0.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut theirs = other.0.split('/');
        for level in self.0.split('/') {
            if level == "#" {
                return true;
            }
            match theirs.next() {
                Some("#") | None => return false,
                Some("+") if level != "+" => return false,
                Some(name) if level == "+" || level == name => {}
                Some(_) => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Splits `$share/group/filter` into group and filter; `None` when the text is no shared subscription.
    ///
    /// # Errors
    /// When group or filter is missing or malformed (MQTT 5.0 section 4.8.2).
    pub fn parse_shared(text: &str) -> Result<Option<(String, Self)>, InvalidTopic> {
        let Some(rest) = text.strip_prefix("$share/") else {
            return Ok(None);
        };
        let incomplete = || InvalidTopic::Share {
            filter: text.to_owned(),
        };
        let (group, filter) = rest.split_once('/').ok_or_else(incomplete)?;
        if group.is_empty() || group.contains(['+', '#']) || filter.is_empty() {
            return Err(incomplete());
        }
        Ok(Some((group.to_owned(), Self::new(filter)?)))
    }
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, formatter)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidTopic;

            fn from_str(text: &str) -> Result<Self, InvalidTopic> {
                Self::new(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_newtype!(TopicName);
text_newtype!(TopicFilter);

// === templates ===

/// A template names a variable that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// The variable has no value here.
    #[error("topic template names {{{found}}}: {allowed} are allowed")]
    Variable {
        /// The variable's name.
        found: String,
        /// The names that are allowed, separated by commas.
        allowed: String,
    },
    /// A brace without its partner.
    #[error("topic template has an unmatched brace at byte {position}")]
    Brace {
        /// Where.
        position: usize,
    },
    /// What came out is not a topic name.
    #[error(transparent)]
    Topic(#[from] InvalidTopic),
}

/// Fills `{name}` variables of a topic template.
///
/// Values are used as they are, except that a value which could change the topic's structure (`/`, `+`, `#`, U+0000)
/// has those characters replaced by `_`.
///
/// # Errors
/// When the template names an unknown variable, has an unmatched brace, or does not give a topic name.
pub fn fill_template(template: &str, variables: &[(&str, &str)]) -> Result<TopicName, InvalidTemplate> {
    let mut filled = String::with_capacity(template.len() + 32);
    let mut rest = template;
    let position = |rest: &str| template.len() - rest.len();
    while let Some((before, after)) = rest.split_once('{') {
        if before.contains('}') {
            return Err(InvalidTemplate::Brace {
                position: position(rest),
            });
        }
        filled.push_str(before);
        let (name, tail) = after.split_once('}').ok_or_else(|| InvalidTemplate::Brace {
            position: position(rest),
        })?;
        let Some((_, value)) = variables.iter().find(|(key, _)| *key == name) else {
            let allowed = variables
                .iter()
                .map(|(key, _)| format!("{{{key}}}"))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(InvalidTemplate::Variable {
                found: name.to_owned(),
                allowed,
            });
        };
        filled.extend(value.chars().map(|c| {
            if matches!(c, '/' | '+' | '#' | '\0') {
                '_'
            } else {
                c
            }
        }));
        rest = tail;
    }
    if rest.contains('}') {
        return Err(InvalidTemplate::Brace {
            position: position(rest),
        });
    }
    filled.push_str(rest);
    Ok(TopicName::new(filled)?)
}

#[cfg(test)]
mod tests;
