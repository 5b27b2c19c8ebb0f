//! Commands and their outcomes as messages.

use std::time::Duration;

use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome, CommandRequest};
use jiff::{SignedDuration, Timestamp};

use crate::{limits::MAX_COMMAND_BYTES, limits::MAX_NAME_LEN, proto};

/// A command as it travels: the request, and the name by which its result is recognised.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Names the command.
    pub id: String,
    /// The command.
    pub request: CommandRequest,
}

/// A message that is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    /// A name is empty or too long.
    #[error("{field} has {found} bytes, 1 to {MAX_NAME_LEN} are allowed")]
    Name {
        /// Which name.
        field: &'static str,
        /// Bytes found.
        found: usize,
    },
    /// Input or output is not JSON, or too large.
    #[error("{field} is not JSON of at most {MAX_COMMAND_BYTES} bytes: {cause}")]
    Json {
        /// Which of them.
        field: &'static str,
        /// What is wrong.
        cause: String,
    },
}

impl Command {
    /// The command as a message, sent at `now`.
    #[must_use]
    pub fn to_proto(&self, now: Timestamp) -> proto::Command {
        let request = &self.request;
        let remaining = Duration::try_from(request.deadline.duration_since(now)).unwrap_or_default();
        proto::Command {
            id: self.id.clone(),
            namespace: request.namespace.clone(),
            asset: request.asset.clone(),
            group: request.group.clone(),
            action: request.action.clone(),
            input: request.input.to_string().into(),
            remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
            idempotency_key: request.idempotency_key.clone(),
            actor: request.actor.clone(),
        }
    }

    /// The command of a message that arrived at `now`.
    ///
    /// # Errors
    /// [`InvalidCommand`], naming the field.
    pub fn from_proto(message: proto::Command, now: Timestamp) -> Result<Self, InvalidCommand> {
        for (field, name) in [
            ("id", &message.id),
            ("namespace", &message.namespace),
            ("asset", &message.asset),
            ("group", &message.group),
            ("action", &message.action),
            ("idempotency key", &message.idempotency_key),
            ("actor", &message.actor),
        ] {
            if name.is_empty() || name.len() > MAX_NAME_LEN {
                return Err(InvalidCommand::Name {
                    field,
                    found: name.len(),
                });
            }
        }
        let input = json("input", &message.input)?;
        let remaining = i64::try_from(message.remaining_ms).unwrap_or(i64::MAX);
        let deadline = now
            .checked_add(SignedDuration::from_millis(remaining))
            .unwrap_or(Timestamp::MAX);
        let request = CommandRequest {
            namespace: message.namespace,
            asset: message.asset,
            group: message.group,
            action: message.action,
            input,
            deadline,
            idempotency_key: message.idempotency_key,
            actor: message.actor,
        };
        Ok(Self {
            id: message.id,
            request,
        })
    }
}

/// An outcome as a message.
#[must_use]
pub fn result_to_proto(id: String, outcome: &CommandOutcome) -> proto::CommandResult {
    use proto::command_result::Outcome;
    let outcome = match outcome {
        Ok(output) => Outcome::Output(output.to_string().into()),
        Err(error) => Outcome::Error(proto::CommandError {
            code: error.code.as_str().to_owned(),
            message: error.message.clone(),
            device_status: error.device_status.clone(),
        }),
    };
    proto::CommandResult {
        id,
        outcome: Some(outcome),
    }
}

/// The outcome of a message. What can't be read is an [`CommandErrorCode::Unknown`] outcome: the command may have
/// taken effect.
pub fn result_from_proto(message: proto::CommandResult) -> (String, CommandOutcome) {
    use proto::command_result::Outcome;
    let unreadable = |cause: String| Err(CommandError::new(CommandErrorCode::Unknown, cause));
    let outcome = match message.outcome {
        Some(Outcome::Output(output)) => {
            json("output", &output).or_else(|error| unreadable(error.to_string()))
        }
        Some(Outcome::Error(error)) => match code(&error.code) {
            Some(code) => Err(CommandError {
                code,
                message: error.message,
                device_status: error.device_status,
            }),
            None => unreadable(format!(
                "the edge answered with the unknown code {:?}",
                error.code
            )),
        },
        None => unreadable("the edge answered without an outcome".to_owned()),
    };
    (message.id, outcome)
}

fn json(field: &'static str, bytes: &[u8]) -> Result<serde_json::Value, InvalidCommand> {
    if bytes.len() > MAX_COMMAND_BYTES {
        return Err(InvalidCommand::Json {
            field,
            cause: format!("{} bytes", bytes.len()),
        });
    }
    serde_json::from_slice(bytes).map_err(|error| InvalidCommand::Json {
        field,
        cause: error.to_string(),
    })
}

fn code(text: &str) -> Option<CommandErrorCode> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn command() -> Command {
        let request = CommandRequest {
            namespace: "bottling".to_owned(),
            asset: "filler".to_owned(),
            group: "setpoints".to_owned(),
            action: "write".to_owned(),
            input: json!({ "Speed": 12.5 }),
            deadline: "2026-03-01T12:00:30Z".parse().unwrap(),
            idempotency_key: "k".to_owned(),
            actor: "ops".to_owned(),
        };
        Command {
            id: "c-1".to_owned(),
            request,
        }
    }

    #[test]
    fn a_deadline_is_carried_as_time_that_is_left() {
        let command = command();
        let message = command.to_proto("2026-03-01T12:00:00Z".parse().unwrap());
        assert_eq!(message.remaining_ms, 30_000);
        // The edge's clock is an hour behind, which changes nothing.
        let received = Command::from_proto(message, "2026-03-01T11:00:01Z".parse().unwrap()).unwrap();
        assert_eq!(received.request.deadline, "2026-03-01T11:00:31Z".parse().unwrap());
        assert_eq!(received.request.input, command.request.input);

        let late = command.to_proto("2026-03-01T12:01:00Z".parse().unwrap());
        assert_eq!(late.remaining_ms, 0);
        let endless = proto::Command {
            remaining_ms: u64::MAX,
            ..late
        };
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        assert_eq!(
            Command::from_proto(endless, now).unwrap().request.deadline,
            Timestamp::MAX
        );
    }

    #[test]
    fn malformed_commands_are_refused_by_field() {
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        let message = command().to_proto(now);
        let no_name = proto::Command {
            group: String::new(),
            ..message.clone()
        };
        assert_eq!(
            Command::from_proto(no_name, now),
            Err(InvalidCommand::Name {
                field: "group",
                found: 0
            })
        );
        let no_json = proto::Command {
            input: "{".into(),
            ..message
        };
        assert!(matches!(
            Command::from_proto(no_json, now),
            Err(InvalidCommand::Json { field: "input", .. })
        ));
    }

    #[test]
    fn outcomes_survive_the_wire_and_unreadable_ones_are_unknown() {
        let failed = CommandError {
            code: CommandErrorCode::DeviceFailed,
            message: "refused".to_owned(),
            device_status: Some("BadNotWritable".to_owned()),
        };
        for outcome in [Ok(json!(null)), Ok(json!({ "a": [1] })), Err(failed)] {
            let message = result_to_proto("c-1".to_owned(), &outcome);
            assert_eq!(result_from_proto(message), ("c-1".to_owned(), outcome));
        }
        let error = proto::CommandError {
            code: "Haunted".to_owned(),
            message: String::new(),
            device_status: None,
        };
        for outcome in [
            None,
            Some(proto::command_result::Outcome::Output("{".into())),
            Some(proto::command_result::Outcome::Error(error)),
        ] {
            let (_, outcome) = result_from_proto(proto::CommandResult {
                id: "c".to_owned(),
                outcome,
            });
            assert_eq!(outcome.unwrap_err().code, CommandErrorCode::Unknown);
        }
    }
}
