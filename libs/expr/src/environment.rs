//! The names that expressions may use.

use crate::types::{Kind, Type};

/// A variable of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variable {
    /// `payload`
    Payload,
    /// `raw`
    Raw,
    /// `topic`
    Topic,
    /// `properties`
    Properties,
    /// `contentType`
    ContentType,
    /// `namespace`
    Namespace,
    /// `asset`
    Asset,
    /// `member`
    Member,
    /// `time`
    Time,
    /// `ingestTime`
    IngestTime,
    /// `qos`
    Qos,
    /// `retain`
    Retain,
}

/// A variable as it is declared and documented.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// The name in expressions.
    pub name: &'static str,
    /// Which one it is.
    pub variable: Variable,
    /// What is known about its value.
    pub value_type: Type,
    /// What it holds, for the documentation.
    pub description: &'static str,
}

const RECORD: &[Declaration] = &[
    declare(
        "payload",
        Variable::Payload,
        Type::DYN,
        "the payload, decoded from JSON; fails for other payloads",
    ),
    declare(
        "raw",
        Variable::Raw,
        Type::of(Kind::Bytes),
        "the payload as it is",
    ),
    declare(
        "topic",
        Variable::Topic,
        Type::of(Kind::String),
        "topic that the record was published to",
    ),
    declare(
        "properties",
        Variable::Properties,
        Type::map_of(Kind::String),
        "MQTT user properties; of a repeated name the first one",
    ),
    declare(
        "contentType",
        Variable::ContentType,
        Type::of(Kind::String),
        "MIME type of the payload, or ''",
    ),
    declare(
        "namespace",
        Variable::Namespace,
        Type::of(Kind::String),
        "namespace of the asset, or ''",
    ),
    declare(
        "asset",
        Variable::Asset,
        Type::of(Kind::String),
        "name of the asset, or ''",
    ),
    declare(
        "member",
        Variable::Member,
        Type::of(Kind::String),
        "dataset, event (as 'group/event') or stream of the asset, or ''",
    ),
    declare(
        "time",
        Variable::Time,
        Type::of(Kind::Timestamp),
        "when it happened by its CloudEvents time; else when the broker took it in",
    ),
    declare(
        "ingestTime",
        Variable::IngestTime,
        Type::of(Kind::Timestamp),
        "when the broker took the record in",
    ),
    declare(
        "qos",
        Variable::Qos,
        Type::of(Kind::Int),
        "quality of service of the publication: 0, 1 or 2",
    ),
    declare(
        "retain",
        Variable::Retain,
        Type::of(Kind::Bool),
        "whether the broker keeps it as the topic's last message",
    ),
];

const fn declare(
    name: &'static str,
    variable: Variable,
    value_type: Type,
    description: &'static str,
) -> Declaration {
    Declaration {
        name,
        variable,
        value_type,
        description,
    }
}

/// The variables that an expression may use.
#[derive(Clone, Copy, Debug)]
pub struct Environment {
    variables: &'static [Declaration],
}

impl Environment {
    /// The variables of a record: what filters, routes and maps of a dataflow see.
    #[must_use]
    pub const fn record() -> Self {
        Self { variables: RECORD }
    }

    /// No variables: expressions of literals only.
    #[must_use]
    pub const fn empty() -> Self {
        Self { variables: &[] }
    }

    /// All variables, in the order of the documentation.
    #[must_use]
    pub const fn variables(&self) -> &'static [Declaration] {
        self.variables
    }

    pub(crate) fn find(&self, name: &str) -> Option<&'static Declaration> {
        self.variables.iter().find(|declaration| declaration.name == name)
    }
}
