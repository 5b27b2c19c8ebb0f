//! Texts with wildcards and facts of the client in them.
//!
//! What a client says of itself must never be read as a pattern: in names its value stands for itself, and in topics a
//! value that holds `/`, `+` or `#` makes the topic match nothing.

use std::{collections::BTreeMap, fmt};

use foreshore_crds::v1alpha1::broker_policy::CERTIFICATE_FACTS;
use foreshore_record::TopicFilter;

/// What stands for the client identifier.
const CLIENT_ID: &str = "${clientid}";

/// What stands for the user name.
const USERNAME: &str = "${username}";

/// What stands for an attribute begins with this, and a closing brace ends it.
const ATTRIBUTE: &str = "attributes.";

/// What stands for a fact of the certificate begins with this.
const CERTIFICATE: &str = "certificate.";

/// The names of a client that are filled in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    pub(super) client_id: &'a str,
    pub(super) username: Option<&'a str>,
    pub(super) attributes: &'a BTreeMap<String, String>,
    pub(super) certificate: &'a BTreeMap<String, Vec<String>>,
}

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
    Attribute(String),
    Certificate(String),
}

/// A pattern that can't be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPattern {
    #[error(
        "{pattern:?} names ${{{found}}}: ${{clientid}}, ${{username}}, ${{attributes.NAME}} and ${{certificate.FACT}} are allowed"
    )]
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
    #[error("the client has no attribute {0:?}")]
    NoAttribute(String),
    #[error("the client's certificate has no {0:?}")]
    NoFact(String),
    #[error("the client's certificate has {count} of {fact:?}, one is allowed")]
    SeveralFacts { fact: String, count: usize },
    #[error("for {fact}, found {value:?}: a name without '/', '+' and '#' is allowed")]
    Unsafe { fact: String, value: String },
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
                _ => named(fact).ok_or_else(|| InvalidPattern::Fact {
                    pattern: pattern.to_owned(),
                    found: fact.to_owned(),
                })?,
            });
            rest = tail;
        }
        push_text(&mut pieces, rest, stars);
        Ok(Self(pieces))
    }

    /// Whether a name matches.
    pub(super) fn matches(&self, name: &str, names: Names<'_>) -> bool {
        let mut parts: Vec<Option<&str>> = Vec::with_capacity(self.0.len());
        for piece in &self.0 {
            parts.push(match piece {
                Piece::Any => None,
                piece => match piece.value(names) {
                    Some(value) => Some(value),
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
    pub(super) fn filter(&self, names: Names<'_>) -> Result<TopicFilter, Unfilled> {
        for piece in &self.0 {
            if matches!(piece, Piece::Text(_) | Piece::Any) {
                continue;
            }
            let value = piece.value(names).ok_or_else(|| piece.missing(names))?;
            if value.is_empty() || value.contains(['/', '+', '#', '\0']) {
                return Err(Unfilled::Unsafe {
                    fact: piece.written(),
                    value: value.to_owned(),
                });
            }
        }
        TopicFilter::new(self.filled(names)).map_err(|_| Unfilled::NoFilter)
    }

    /// The topic filter for somebody whose names are as simple as can be.
    ///
    /// # Errors
    /// When it is one for nobody.
    pub(super) fn filter_of_anybody(&self) -> Result<TopicFilter, Unfilled> {
        let simple = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            _ => "x".to_owned(),
        };
        TopicFilter::new(self.0.iter().map(simple).collect::<String>()).map_err(|_| Unfilled::NoFilter)
    }

    /// The pattern with the names of one client in it, for people: a name that is missing stays as it is written.
    pub(super) fn filled(&self, names: Names<'_>) -> String {
        let pieces = self.0.iter();
        pieces
            .map(|piece| piece.value(names).map_or_else(|| piece.written(), str::to_owned))
            .collect()
    }
}

impl Piece {
    /// What it is for one client; `None` for any characters, and where the client has no such name.
    fn value<'a>(&'a self, names: Names<'a>) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Any => None,
            Self::ClientId => Some(names.client_id),
            Self::Username => names.username,
            Self::Attribute(name) => names.attributes.get(name).map(String::as_str),
            // Which one of several is meant, nobody knows.
            Self::Certificate(fact) => match names.certificate.get(fact)?.as_slice() {
                [value] => Some(value),
                _ => None,
            },
        }
    }

    /// Why one client has no value for it.
    fn missing(&self, names: Names<'_>) -> Unfilled {
        match self {
            Self::Attribute(name) => Unfilled::NoAttribute(name.clone()),
            Self::Certificate(fact) => match names.certificate.get(fact).map_or(0, Vec::len) {
                0 => Unfilled::NoFact(fact.clone()),
                count => Unfilled::SeveralFacts {
                    fact: fact.clone(),
                    count,
                },
            },
            Self::Text(_) | Self::Any | Self::ClientId | Self::Username => Unfilled::NoUser,
        }
    }

    /// As a policy has it.
    fn written(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Any => "*".to_owned(),
            Self::ClientId => CLIENT_ID.to_owned(),
            Self::Username => USERNAME.to_owned(),
            Self::Attribute(name) => format!("${{{ATTRIBUTE}{name}}}"),
            Self::Certificate(fact) => format!("${{{CERTIFICATE}{fact}}}"),
        }
    }
}

/// The attribute or fact of a certificate that stands between the braces.
fn named(fact: &str) -> Option<Piece> {
    let after = |prefix| fact.strip_prefix(prefix).filter(|name: &&str| !name.is_empty());
    let attribute = after(ATTRIBUTE).map(|name| Piece::Attribute(name.to_owned()));
    attribute.or_else(|| {
        let fact = after(CERTIFICATE).filter(|fact| CERTIFICATE_FACTS.contains(fact))?;
        Some(Piece::Certificate(fact.to_owned()))
    })
}

impl fmt::Display for Template {
    /// The pattern as it was written.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|piece| formatter.write_str(&piece.written()))
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

    fn attributes(attributes: &[(&str, &str)]) -> BTreeMap<String, String> {
        let attributes = attributes.iter();
        attributes
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn certificate() -> BTreeMap<String, Vec<String>> {
        let facts: [(&str, &[&str]); 3] = [("OU", &["fill*"]), ("O", &["a", "b"]), ("CN", &["x/#"])];
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        facts
            .map(|(fact, values)| (fact.to_owned(), owned(values)))
            .into()
    }

    fn matches(pattern: &str, name: &str) -> bool {
        Template::parse(pattern, true).unwrap().matches(
            name,
            Names {
                client_id: "client*",
                username: Some("user"),
                attributes: &attributes(&[("site", "nor*")]),
                certificate: &certificate(),
            },
        )
    }

    /// The topic of a client without a user name, of which attributes are known.
    fn filter(pattern: &str, client_id: &str, known: &[(&str, &str)]) -> Result<TopicFilter, Unfilled> {
        Template::parse(pattern, false).unwrap().filter(Names {
            client_id,
            username: None,
            attributes: &attributes(known),
            certificate: &certificate(),
        })
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
        assert!(matches("${attributes.site}-1", "nor*-1") && !matches("${attributes.site}", "north"));
        assert!(matches("${certificate.OU}", "fill*") && !matches("${certificate.OU}", "filler"));
        assert!(!matches("${certificate.O}", "a") && !matches("${certificate.O}", "b"));
        let nobody = Names {
            client_id: "c",
            username: None,
            attributes: &BTreeMap::new(),
            certificate: &BTreeMap::new(),
        };
        for pattern in ["${username}", "${attributes.site}", "${certificate.OU}"] {
            assert!(
                !Template::parse(pattern, true).unwrap().matches("", nobody),
                "{pattern}"
            );
        }
    }

    #[test]
    fn names_can_not_inject_topics() {
        let pattern = "devices/${clientid}/#";
        assert_eq!(filter(pattern, "a", &[]).unwrap().as_str(), "devices/a/#");
        for name in ["+", "#", "a/#", "a/b", "", "a+b", "a\0b"] {
            assert!(filter(pattern, name, &[]).is_err(), "{name:?}");
            let site = filter("sites/${attributes.site}/+", "c", &[("site", name)]);
            assert!(site.is_err(), "{name:?}");
        }
        assert_eq!(filter(pattern, "a*", &[]).unwrap().as_str(), "devices/a*/#");
        assert_eq!(filter("u/${username}", "a", &[]), Err(Unfilled::NoUser));
        // Nor does a value that looks like a pattern name another.
        let known = [("site", "${clientid}"), ("si.te-1_", "north")];
        assert_eq!(
            filter("${attributes.si.te-1_}/${attributes.site}", "c", &known)
                .unwrap()
                .as_str(),
            "north/${clientid}"
        );
        let missing = filter("sites/${attributes.line}", "c", &known).unwrap_err();
        assert_eq!(missing.to_string(), "the client has no attribute \"line\"");
        let of_certificate = |fact: &str| filter(&format!("lines/${{certificate.{fact}}}/#"), "c", &[]);
        assert_eq!(of_certificate("OU").unwrap().as_str(), "lines/fill*/#");
        for (fact, cause) in [
            ("CN", "for ${certificate.CN}, found \"x/#\""),
            ("O", "the client's certificate has 2 of \"O\", one is allowed"),
            ("dns", "the client's certificate has no \"dns\""),
        ] {
            let error = of_certificate(fact).unwrap_err().to_string();
            assert!(error.starts_with(cause), "{error}");
        }
    }

    #[test]
    fn a_pattern_is_told_as_it_was_written() {
        for pattern in [
            "a/${clientid}/+",
            "${username}",
            "s/${attributes.site}/#",
            "l/${certificate.OU}",
        ] {
            assert_eq!(Template::parse(pattern, false).unwrap().to_string(), pattern);
        }
    }

    #[test]
    fn errors_name_what_is_allowed() {
        let error = |pattern| Template::parse(pattern, true).unwrap_err().to_string();
        assert_eq!(
            error("${ip}"),
            "\"${ip}\" names ${ip}: ${clientid}, ${username}, ${attributes.NAME} and ${certificate.FACT} are allowed"
        );
        for pattern in [
            "${attributes.}",
            "${certificate.}",
            "${certificate.subject}",
            "${OU}",
        ] {
            assert!(
                error(pattern).contains("${certificate.FACT} are allowed"),
                "{pattern}"
            );
        }
        assert_eq!(
            error("${clientid"),
            "\"${clientid\" has \"${\" without a closing brace"
        );
    }
}
