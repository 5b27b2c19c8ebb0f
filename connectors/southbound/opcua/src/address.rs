//! Addresses as a manifest writes them: node ids and browse paths.
//!
//! A namespace is best named by its URI, since a server may number its namespaces anew at each start
//! (OPC 10000-3, 8.2.2). Addresses are therefore resolved again after every connection.

use std::fmt;

use opcua::types::{Identifier, NodeId, QualifiedName};

/// Deepest browse path.
const MAX_PATH: usize = 64;

/// Where something is in a server's address space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// A node id.
    Node {
        /// Its namespace.
        namespace: Namespace,
        /// Its identifier within the namespace.
        identifier: Identifier,
    },
    /// Browse names from a starting node.
    Path(Vec<(Namespace, String)>),
}

/// A namespace, by index or by URI.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Namespace {
    /// Index in the server's `NamespaceArray`.
    Index(u16),
    /// URI in the server's `NamespaceArray`.
    Uri(String),
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {found:?}; a node id (nsu=URI;s=NAME, ns=2;s=NAME, i=2258) or a browse path (/2:Line/nsu=URI;Name) is allowed"
)]
pub(crate) struct InvalidAddress {
    found: String,
}

/// The server has no namespace of that URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server has no namespace {uri:?}")]
pub(crate) struct UnknownNamespace {
    uri: String,
}

impl Namespace {
    fn index(&self, namespaces: &[String]) -> Result<u16, UnknownNamespace> {
        match self {
            Self::Index(index) => Ok(*index),
            Self::Uri(uri) => namespaces
                .iter()
                .position(|known| known == uri)
                .and_then(|index| u16::try_from(index).ok())
                .ok_or_else(|| UnknownNamespace { uri: uri.clone() }),
        }
    }
}

impl Address {
    /// Reads an address.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress {
            found: text.to_owned(),
        };
        if text.starts_with('/') {
            return path(text).ok_or_else(invalid);
        }
        let (namespace, identifier) = prefix(text).ok_or_else(invalid)?;
        let identifier = parse_identifier(identifier).ok_or_else(invalid)?;
        Ok(Self::Node {
            namespace,
            identifier,
        })
    }

    /// The node id by the server's namespaces; `None` for a browse path.
    pub(crate) fn node_id(&self, namespaces: &[String]) -> Option<Result<NodeId, UnknownNamespace>> {
        match self {
            Self::Node {
                namespace,
                identifier,
            } => Some(
                namespace
                    .index(namespaces)
                    .map(|index| NodeId::new(index, identifier.clone())),
            ),
            Self::Path(_) => None,
        }
    }

    /// The browse names by the server's namespaces; `None` for a node id.
    pub(crate) fn browse_names(
        &self,
        namespaces: &[String],
    ) -> Option<Result<Vec<QualifiedName>, UnknownNamespace>> {
        let Self::Path(elements) = self else { return None };
        let names = elements.iter().map(|(namespace, name)| {
            namespace
                .index(namespaces)
                .map(|index| QualifiedName::new(index, name.as_str()))
        });
        Some(names.collect())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node {
                namespace: Namespace::Index(0),
                identifier,
            } => write!(formatter, "{identifier}"),
            Self::Node {
                namespace: Namespace::Index(index),
                identifier,
            } => {
                write!(formatter, "ns={index};{identifier}")
            }
            Self::Node {
                namespace: Namespace::Uri(uri),
                identifier,
            } => write!(formatter, "nsu={uri};{identifier}"),
            Self::Path(elements) => elements.iter().try_for_each(|(namespace, name)| match namespace {
                Namespace::Index(index) => write!(formatter, "/{index}:{name}"),
                Namespace::Uri(uri) => write!(formatter, "/nsu={uri};{name}"),
            }),
        }
    }
}

/// Splits a namespace off the front.
fn prefix(text: &str) -> Option<(Namespace, &str)> {
    if let Some(rest) = text.strip_prefix("nsu=") {
        let (uri, rest) = rest.split_once(';')?;
        return (!uri.is_empty()).then(|| (Namespace::Uri(uri.to_owned()), rest));
    }
    if let Some(rest) = text.strip_prefix("ns=") {
        let (index, rest) = rest.split_once(';')?;
        return Some((Namespace::Index(index.parse().ok()?), rest));
    }
    Some((Namespace::Index(0), text))
}

fn parse_identifier(text: &str) -> Option<Identifier> {
    // The library's own parser cuts after two bytes, whatever they are.
    let (kind, value) = text.split_once('=')?;
    if !matches!(kind, "i" | "s" | "g" | "b") || value.is_empty() {
        return None;
    }
    text.parse().ok()
}

/// Reads `/2:Line/nsu=urn:plant/x;State`. A URI may hold slashes, so an element with one ends at the slash after `;`.
fn path(text: &str) -> Option<Address> {
    let mut rest = text;
    let mut elements = Vec::new();
    while let Some(element) = rest.strip_prefix('/') {
        let (namespace, name) = if element.starts_with("nsu=") {
            prefix(element)?
        } else {
            match element.split_once(':') {
                Some((index, name))
                    if !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    (Namespace::Index(index.parse().ok()?), name)
                }
                _ => (Namespace::Index(0), element),
            }
        };
        let (name, tail) = name.find('/').map_or((name, ""), |slash| name.split_at(slash));
        if name.is_empty() || elements.len() == MAX_PATH {
            return None;
        }
        elements.push((namespace, name.to_owned()));
        rest = tail;
    }
    (rest.is_empty() && !elements.is_empty()).then_some(Address::Path(elements))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_as_they_were_written() {
        for text in [
            "i=2258",
            "ns=2;s=Filler.State",
            "nsu=urn:plant;s=a;b=c",
            "nsu=http://plant/ua;i=7",
            "/0:Objects/2:Line",
            "/nsu=http://plant/ua;Line/3:State",
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Address::parse("/Objects/a:b").unwrap().to_string(),
            "/0:Objects/0:a:b"
        );
    }

    #[test]
    fn senseless_addresses_are_refused() {
        for text in [
            "",
            "Filler",
            "ns=x;s=a",
            "ns=2;é",
            "ns=99999;i=1",
            "nsu=;s=a",
            "/",
            "//",
            "s=",
            "i=x",
            "x=1",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_namespace_is_found_by_its_uri_wherever_it_stands() {
        let address = Address::parse("nsu=urn:plant;s=x").unwrap();
        let namespaces = ["http://opcfoundation.org/UA/", "urn:server", "urn:plant"].map(str::to_owned);
        assert_eq!(
            address.node_id(&namespaces).unwrap().unwrap(),
            NodeId::new(2, "x")
        );
        let missing = address.node_id(&[]).unwrap().unwrap_err();
        assert_eq!(missing.to_string(), "the server has no namespace \"urn:plant\"");
    }
}
