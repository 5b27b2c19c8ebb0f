//! Expressions of filters, routes, maps and rules, in the [Common Expression Language](https://cel.dev) that Kubernetes
//! users know.
//!
//! [`check`] parses an expression and judges every name, function, number of arguments, known kind and literal when a
//! manifest is accepted, not when a record arrives. What it returns is compiled: names are resolved, literals decoded,
//! patterns compiled, constants folded. [`Program::evaluate`] walks the compiled form over a [`RecordView`], which
//! decodes a payload once and only if it is asked for, within a [`Budget`] of steps and bytes.
//!
//! ```
//! use foreshore_expr::{Environment, Expected, Meter, RecordView, check};
//! use foreshore_record::{Record, TopicName};
//!
//! let program = check("payload.temperature.Value > 80 && asset != 'spare'", &Environment::record(), Expected::Bool)?;
//! let record = Record::new(TopicName::new("line/oven")?, r#"{"temperature":{"Value":81.5}}"#);
//! assert!(program.evaluate_bool(&RecordView::new(&record), &mut Meter::default())?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Names
//! [`Environment::variables`] lists the variables with their description: `payload`, `raw`, `topic`, `properties`,
//! `contentType`, `namespace`, `asset`, `member`, `time`, `ingestTime`, `qos`, `retain`.
//!
//! Functions: `size`, `contains`, `startsWith`, `endsWith`, `matches` (pattern: a literal), `lowerAscii`, `upperAscii`,
//! `trim`, `replace`, `split`, `substring`, `indexOf`, `join`; `min`, `max`, `sum` of lists; the conversions `bool`,
//! `int`, `uint`, `double`, `string`, `bytes`, `timestamp`, `duration`; `getFullYear`, `getMonth`, `getDayOfYear`,
//! `getDayOfMonth`, `getDate`, `getDayOfWeek`, `getHours`, `getMinutes`, `getSeconds`, `getMilliseconds` (in UTC);
//! `math.abs`, `math.ceil`, `math.floor`, `math.round`, `math.trunc`, `math.sqrt`, `math.least`, `math.greatest`.
//! Macros: `has`, `all`, `exists`, `exists_one`, `filter`, `map`.
//!
//! # Where this differs from CEL
//! - Numbers of different kinds may be added, subtracted, multiplied and divided (see `operator.rs` for why).
//! - The pattern of `matches` has to be a literal.
//! - There are no protobuf messages, type values and optional values.
//!
//! Syntax is the `cel` crate's; evaluation is our own. That crate's interpreter has no budget, panics on some
//! expressions, finds `1 == 1.0` false and `'text'.field` false, and takes six times as long for a simple filter. Where
//! it follows the language, a test holds our results against its.

mod budget;
mod call;
mod check;
mod environment;
mod error;
mod function;
mod json;
mod node;
mod operator;
mod parse;
mod program;
mod types;
mod value;
mod view;

pub use budget::{Budget, Meter};
pub use check::check;
pub use environment::{Declaration, Environment, Variable};
pub use error::{EvalError, ExprError, Position};
pub use json::{MAX_DECODED_LEN, decode};
pub use parse::{MAX_LEN, MAX_NESTING};
pub use program::Program;
pub use types::{Expected, Kind, Type};
pub use value::{Key, Map, Octets, Text, Value};
pub use view::RecordView;

#[cfg(test)]
mod tests;
