//! Scalars of the API: bounded strings, durations and sizes.

use std::{borrow::Cow, fmt, str::FromStr};

use compact_str::CompactString;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod duration;
mod size;

pub use duration::{Duration, ParseDurationError};
pub use size::{ByteSize, ParseByteSizeError};

/// What a string type of the API accepts, for schemas and for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringRule {
    /// Regular expression of the schema, in the subset that RE2 and Rust share; empty when any text will do.
    pub pattern: &'static str,
    /// The same in words, as the reader of an error needs it.
    pub allowed: &'static str,
}

/// Declares a string with bounds. The bounds live in the schema, which judges every manifest before it is
/// read into these types; the types themselves hold whatever they were given.
macro_rules! bounded_string {
    ($(#[$doc:meta])* $name:ident, $min:literal..=$max:literal, $pattern:expr, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(CompactString);

        impl $name {
            /// What this type accepts.
            pub const RULE: StringRule = StringRule { pattern: $pattern, allowed: $allowed };
            /// Longest text, in characters.
            pub const MAX_LENGTH: usize = $max;

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Gives up the text.
            #[must_use]
            pub fn into_string(self) -> String {
                self.0.into_string()
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = json_schema!({ "type": "string", "maxLength": $max });
                if $min > 0 {
                    schema.insert("minLength".to_owned(), $min.into());
                }
                if !Self::RULE.pattern.is_empty() {
                    schema.insert("pattern".to_owned(), Self::RULE.pattern.into());
                }
                schema
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.into_string()
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }
    };
}

bounded_string!(
    /// Name of one of our objects in the same namespace: a DNS label, because names become labels, topic
    /// levels and host names.
    ObjectName, 1..=63, r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "lower-case letters, digits and '-', beginning and ending with a letter or digit, at most 63"
);
bounded_string!(
    /// Name of a `Secret` or `ConfigMap` in the same namespace: a DNS subdomain.
    SecretName, 1..=253, r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    "lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, at most 253"
);
bounded_string!(
    /// Key inside a `Secret`.
    SecretKey, 1..=253, r"^[-._a-zA-Z0-9]+$",
    "letters, digits, '-', '_' and '.', at most 253"
);
bounded_string!(
    /// Name of an element of a list (a dataset, a group, a stage, a listener, …). It becomes a topic level
    /// and part of a path's name, so it holds none of their separators.
    ItemName, 1..=63, r"^[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?$",
    "letters, digits, '_' and '-', not beginning or ending with '-', at most 63"
);
bounded_string!(
    /// Name of a data point or of a field of a payload: a JSON member.
    PointName, 1..=128, r"^[A-Za-z0-9_]([-A-Za-z0-9_.]*[A-Za-z0-9_])?$",
    "letters, digits, '_', '-' and '.', beginning and ending with a letter, digit or '_', at most 128"
);
bounded_string!(
    /// A word of a person's making that is not a name: display names, manufacturers, units, attribute values.
    Text, 0..=256, "", "text of at most 256 characters"
);
bounded_string!(
    /// Where something lies inside its protocol: a node id, a browse path, a topic expression.
    Address, 1..=512,
    // Whatever does not begin as a node id with a namespace, or a whole one: other protocols have other addresses.
    r"^([^n].*|n([^s].*)?|ns([^=u].*)?|nsu([^=].*)?|(ns=[0-9]{1,5}|nsu=[^;]+);[isgb]=.+)$",
    "an address; one that begins with ns= or nsu= goes on with ; and i=, s=, g= or b=, as in ns=2;s=Filler.State"
);
bounded_string!(
    /// An OPC UA node id (OPC 10000-6, 5.3.1.10), its namespace by URI (`nsu=`) or index (`ns=`).
    NodeId, 3..=512,
    r"^(ns=[0-9]{1,5};|nsu=[^;]+;)?(i=[0-9]{1,10}|s=.+|g=[0-9A-Fa-f-]{36}|b=[A-Za-z0-9+/=]+)$",
    "a node id such as nsu=urn:plant;s=Filler.State, ns=2;s=Filler.State or i=2258"
);
bounded_string!(
    /// An OPC UA browse path: `/` before each name, a namespace index or URI where it is not 0.
    BrowsePath, 2..=512, r"^(/[^/].*)$", "a browse path such as /Objects/2:Filler/nsu=urn:plant;State"
);
bounded_string!(
    /// An OPC UA node id or browse path.
    OpcuaAddress, 2..=512,
    r"^(/[^/].*|(ns=[0-9]{1,5};|nsu=[^;]+;)?(i=[0-9]{1,10}|s=.+|g=[0-9A-Fa-f-]{36}|b=[A-Za-z0-9+/=]+))$",
    "a node id such as nsu=urn:plant;s=Filler.State or a browse path such as /Objects/2:Filler"
);
bounded_string!(
    /// An address on the network, as a URL.
    Url, 1..=1024, r"^[a-z][a-z0-9+.-]*://[^\s]+$", "a URL such as opc.tcp://host:4840, at most 1024 characters"
);
bounded_string!(
    /// Host and port: `cloud.example.com:7443`, `192.0.2.7:7443`, `[2001:db8::7]:7443`.
    HostPort, 3..=261, r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$", "host:port, an IPv6 address in brackets"
);
bounded_string!(
    /// Host name or IP address without port.
    Host, 1..=253, r"^[A-Za-z0-9._:-]+$", "a host name or an IP address"
);
bounded_string!(
    /// An MQTT topic with placeholders in braces; see [`crate::v1alpha1::Destination::topic`].
    TopicTemplate, 1..=512,
    r"^([^+#{}$\x00-\x1f]|\{(namespace|asset|device|dataset|group|event|stream|attributes\.[A-Za-z0-9_.-]+|topic(\.[0-9]{1,2})?)\})+$",
    "an MQTT topic without '+', '#' and '$', placeholders in braces such as {namespace}, {asset} or {attributes.NAME}"
);
bounded_string!(
    /// An MQTT topic filter, `+` and `#` allowed.
    TopicFilter, 1..=512, r"^(#|(\+|[^+#/\x00]*)(/(\+|[^+#/\x00]*))*(/#)?)$",
    "an MQTT topic filter: '+' fills a whole level, '#' the last one"
);
bounded_string!(
    /// An MQTT topic filter of a policy, with `${clientid}`, `${username}`, `${attributes.NAME}` and
    /// `${certificate.FACT}`.
    PolicyTopic, 1..=512,
    r"^(#|(\+|([^+#/{}\x00]|\$\{(clientid|username|attributes\.[A-Za-z0-9_.-]+|certificate\.(CN|O|OU|C|L|ST|dns|uri|email|serial|issuer))\})*)(/(\+|([^+#/{}\x00]|\$\{(clientid|username|attributes\.[A-Za-z0-9_.-]+|certificate\.(CN|O|OU|C|L|ST|dns|uri|email|serial|issuer))\})*))*(/#)?)$",
    "an MQTT topic filter: '+' fills a whole level, '#' the last one; ${clientid}, ${username}, ${attributes.NAME} and ${certificate.FACT} stand for the client's own"
);
bounded_string!(
    /// An expression in CEL.
    Expression, 1..=4096, "", "an expression in CEL of at most 4096 characters"
);
bounded_string!(
    /// A path below the data directory or volume of a role: relative, never leaving it.
    RelativePath, 1..=512, r"^[A-Za-z0-9_{}-][A-Za-z0-9_.{}-]*(/[A-Za-z0-9_{}-][A-Za-z0-9_.{}-]*)*$",
    "a relative path of letters, digits, '_', '-', '.' and placeholders in braces; no level begins with '.'"
);
bounded_string!(
    /// A container image reference.
    Image, 1..=512, r"^[^\s]+$", "an image reference, at most 512 characters"
);
bounded_string!(
    /// A Kubernetes quantity of a computing resource: `250m`, `1`, `512Mi`.
    ResourceQuantity, 1..=20, r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", "a quantity such as 250m, 1 or 512Mi"
);
bounded_string!(
    /// A name with wildcards: `*` stands for any characters, `${…}` for a fact of the connection.
    NamePattern, 1..=256, "", "text of at most 256 characters"
);
bounded_string!(
    /// What a stage or sink of a dataflow takes messages from: `STAGE`, `STAGE.ROUTE` or `source`.
    InputName, 1..=127, r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?$", "STAGE, STAGE.ROUTE or source"
);

/// The words for every pattern that a schema of ours can hold, so that an error tells a reader what is
/// allowed and not a regular expression.
#[must_use]
pub fn allowed_by_pattern(pattern: &str) -> Option<&'static str> {
    [
        ObjectName::RULE,
        SecretName::RULE,
        SecretKey::RULE,
        ItemName::RULE,
        InputName::RULE,
        PointName::RULE,
        Address::RULE,
        NodeId::RULE,
        BrowsePath::RULE,
        OpcuaAddress::RULE,
        Url::RULE,
        HostPort::RULE,
        Host::RULE,
        TopicTemplate::RULE,
        TopicFilter::RULE,
        PolicyTopic::RULE,
        RelativePath::RULE,
        Image::RULE,
        ResourceQuantity::RULE,
        Duration::RULE,
        ByteSize::RULE,
    ]
    .into_iter()
    .find(|rule| rule.pattern == pattern)
    .map(|rule| rule.allowed)
}

/// Declares the `effective_*` methods of a type: what holds when a field was left out.
macro_rules! effective {
    ($ty:ty { $( $(#[$doc:meta])* $name:ident: $field:ident -> $out:ty = $default:expr; )+ }) => {
        impl $ty {
            $(
                $(#[$doc])*
                #[doc = concat!("`", stringify!($field), "`, or `", stringify!($default), "` where it was left out.")]
                #[must_use]
                pub fn $name(&self) -> $out {
                    self.$field.map_or($default, Into::into)
                }
            )+
        }
    };
}
pub(crate) use effective;

/// Serializes through `Display` and reads through `FromStr`.
macro_rules! text_form {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                Self::from_str(&text).map_err(de::Error::custom)
            }
        }
    };
}
text_form!(Duration);
text_form!(ByteSize);
