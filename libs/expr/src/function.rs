//! The functions that expressions may call, with what they take and give.

use crate::types::{Kind, Type};

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Matches,
    LowerAscii,
    UpperAscii,
    Trim,
    Replace,
    Split,
    Substring,
    IndexOf,
    Join,
    Bool,
    Int,
    UInt,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    FullYear,
    Month,
    DayOfYear,
    DayOfMonth,
    Date,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
    Abs,
    Ceil,
    Floor,
    Round,
    Trunc,
    Sqrt,
    Least,
    Greatest,
    ListMin,
    ListMax,
    Sum,
}

/// How a function is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `name(arguments)`; for members of a namespace the name holds the dot.
    Global,
    /// `receiver.name(arguments)`; the receiver is the first argument.
    Method,
}

/// Kinds that an argument may have; none means any.
pub(crate) type Parameter = &'static [Kind];

/// One way to call a function.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) name: &'static str,
    pub(crate) style: Style,
    pub(crate) function: Function,
    /// The receiver included.
    pub(crate) parameters: &'static [Parameter],
    /// Whether the last parameter may repeat.
    pub(crate) variadic: bool,
    pub(crate) result: Type,
}

impl Signature {
    pub(crate) fn takes(&self, arguments: usize) -> bool {
        let least = self.parameters.len();
        if self.variadic {
            arguments >= least
        } else {
            arguments == least
        }
    }

    pub(crate) fn parameter(&self, index: usize) -> Parameter {
        let last = self.parameters.last().copied().unwrap_or_default();
        self.parameters.get(index).copied().unwrap_or(last)
    }

    /// How it is written, for messages: `string.contains(string)`.
    pub(crate) fn usage(&self) -> String {
        let kinds = |parameter: &Parameter| match parameter {
            [] => "any".to_owned(),
            kinds => kinds.iter().map(Kind::as_str).collect::<Vec<_>>().join("|"),
        };
        let (receiver, arguments) = match self.style {
            Style::Global => (String::new(), self.parameters),
            Style::Method => match self.parameters.split_first() {
                Some((receiver, rest)) => (format!("{}.", kinds(receiver)), rest),
                None => (String::new(), self.parameters),
            },
        };
        let arguments = arguments.iter().map(kinds).collect::<Vec<_>>().join(", ");
        let more = if self.variadic { ", …" } else { "" };
        format!("{receiver}{}({arguments}{more})", self.name)
    }
}

const STRING: Parameter = &[Kind::String];
const NUMBER: Parameter = &[Kind::Int, Kind::UInt, Kind::Double];
const INT: Parameter = &[Kind::Int];
const LIST: Parameter = &[Kind::List];
const SIZED: Parameter = &[Kind::String, Kind::Bytes, Kind::List, Kind::Map];
const TIMESTAMP: Parameter = &[Kind::Timestamp];
const TIME: Parameter = &[Kind::Timestamp, Kind::Duration];
const SCALAR: Parameter = &[
    Kind::Bool,
    Kind::Int,
    Kind::UInt,
    Kind::Double,
    Kind::String,
    Kind::Bytes,
    Kind::Timestamp,
    Kind::Duration,
];

const BOOL_RESULT: Type = Type::of(Kind::Bool);
const INT_RESULT: Type = Type::of(Kind::Int);
const STRING_RESULT: Type = Type::of(Kind::String);
const DOUBLE_RESULT: Type = Type::of(Kind::Double);

const fn global(
    name: &'static str,
    function: Function,
    parameters: &'static [Parameter],
    result: Type,
) -> Signature {
    Signature {
        name,
        style: Style::Global,
        function,
        parameters,
        variadic: false,
        result,
    }
}

const fn method(
    name: &'static str,
    function: Function,
    parameters: &'static [Parameter],
    result: Type,
) -> Signature {
    Signature {
        name,
        style: Style::Method,
        function,
        parameters,
        variadic: false,
        result,
    }
}

const fn variadic(name: &'static str, function: Function) -> Signature {
    let parameters = &[NUMBER];
    Signature {
        name,
        style: Style::Global,
        function,
        parameters,
        variadic: true,
        result: Type::DYN,
    }
}

/// Every way to call every function. The first of a name is the one that messages recommend.
pub(crate) static SIGNATURES: &[Signature] = &[
    // of texts, lists and maps
    global("size", Function::Size, &[SIZED], INT_RESULT),
    method("size", Function::Size, &[SIZED], INT_RESULT),
    method("contains", Function::Contains, &[STRING, STRING], BOOL_RESULT),
    method("startsWith", Function::StartsWith, &[STRING, STRING], BOOL_RESULT),
    method("endsWith", Function::EndsWith, &[STRING, STRING], BOOL_RESULT),
    method("matches", Function::Matches, &[STRING, STRING], BOOL_RESULT),
    global("matches", Function::Matches, &[STRING, STRING], BOOL_RESULT),
    method("lowerAscii", Function::LowerAscii, &[STRING], STRING_RESULT),
    method("upperAscii", Function::UpperAscii, &[STRING], STRING_RESULT),
    method("trim", Function::Trim, &[STRING], STRING_RESULT),
    method(
        "replace",
        Function::Replace,
        &[STRING, STRING, STRING],
        STRING_RESULT,
    ),
    method(
        "split",
        Function::Split,
        &[STRING, STRING],
        Type::list_of(Kind::String),
    ),
    method("substring", Function::Substring, &[STRING, INT], STRING_RESULT),
    method(
        "substring",
        Function::Substring,
        &[STRING, INT, INT],
        STRING_RESULT,
    ),
    method("indexOf", Function::IndexOf, &[STRING, STRING], INT_RESULT),
    method("join", Function::Join, &[LIST], STRING_RESULT),
    method("join", Function::Join, &[LIST, STRING], STRING_RESULT),
    method("min", Function::ListMin, &[LIST], Type::DYN),
    method("max", Function::ListMax, &[LIST], Type::DYN),
    method("sum", Function::Sum, &[LIST], Type::DYN),
    // conversions
    global(
        "bool",
        Function::Bool,
        &[&[Kind::Bool, Kind::String]],
        BOOL_RESULT,
    ),
    global(
        "int",
        Function::Int,
        &[&[Kind::Int, Kind::UInt, Kind::Double, Kind::String, Kind::Timestamp]],
        INT_RESULT,
    ),
    global(
        "uint",
        Function::UInt,
        &[&[Kind::Int, Kind::UInt, Kind::Double, Kind::String]],
        Type::of(Kind::UInt),
    ),
    global(
        "double",
        Function::Double,
        &[&[Kind::Int, Kind::UInt, Kind::Double, Kind::String]],
        DOUBLE_RESULT,
    ),
    global("string", Function::String, &[SCALAR], STRING_RESULT),
    global(
        "bytes",
        Function::Bytes,
        &[&[Kind::String, Kind::Bytes]],
        Type::of(Kind::Bytes),
    ),
    global(
        "timestamp",
        Function::Timestamp,
        &[&[Kind::String, Kind::Int, Kind::Timestamp]],
        Type::of(Kind::Timestamp),
    ),
    global(
        "duration",
        Function::Duration,
        &[&[Kind::String, Kind::Duration]],
        Type::of(Kind::Duration),
    ),
    // of points in time, in UTC, and of spans
    method("getFullYear", Function::FullYear, &[TIMESTAMP], INT_RESULT),
    method("getMonth", Function::Month, &[TIMESTAMP], INT_RESULT),
    method("getDayOfYear", Function::DayOfYear, &[TIMESTAMP], INT_RESULT),
    method("getDayOfMonth", Function::DayOfMonth, &[TIMESTAMP], INT_RESULT),
    method("getDate", Function::Date, &[TIMESTAMP], INT_RESULT),
    method("getDayOfWeek", Function::DayOfWeek, &[TIMESTAMP], INT_RESULT),
    method("getHours", Function::Hours, &[TIME], INT_RESULT),
    method("getMinutes", Function::Minutes, &[TIME], INT_RESULT),
    method("getSeconds", Function::Seconds, &[TIME], INT_RESULT),
    method("getMilliseconds", Function::Milliseconds, &[TIME], INT_RESULT),
    // of numbers
    global("math.abs", Function::Abs, &[NUMBER], Type::DYN),
    global("math.ceil", Function::Ceil, &[NUMBER], DOUBLE_RESULT),
    global("math.floor", Function::Floor, &[NUMBER], DOUBLE_RESULT),
    global("math.round", Function::Round, &[NUMBER], DOUBLE_RESULT),
    global("math.trunc", Function::Trunc, &[NUMBER], DOUBLE_RESULT),
    global("math.sqrt", Function::Sqrt, &[NUMBER], DOUBLE_RESULT),
    variadic("math.least", Function::Least),
    variadic("math.greatest", Function::Greatest),
];

/// Macros of CEL: name, how it is written, and how many arguments it takes.
pub(crate) const MACROS: &[(&str, &str)] = &[
    ("has", "has(value.field)"),
    ("all", "list.all(name, condition)"),
    ("exists", "list.exists(name, condition)"),
    ("exists_one", "list.exists_one(name, condition)"),
    ("existsOne", "list.existsOne(name, condition)"),
    ("filter", "list.filter(name, condition)"),
    ("map", "list.map(name, value) or list.map(name, condition, value)"),
];

/// Whether something of that prefix exists, such as `math`.
pub(crate) fn is_namespace(name: &str) -> bool {
    name == "math"
}

impl Function {
    /// The name in messages.
    pub(crate) fn name(self) -> &'static str {
        let found = SIGNATURES.iter().find(|signature| signature.function == self);
        found.map_or("function", |signature| signature.name)
    }
}
