//! Commands to assets (`foreshore/commands/…`): who asks for one is known, and no rule denies it to whoever asks.
//!
//! Of a client the broker knows who it is, and states it in the command; what a client says of itself is not believed. A
//! role of ours, such as the relay of a cloud endpoint, may say on whose behalf it publishes, and is judged as that
//! somebody. A command happens once, when it is asked for: it is neither retained nor a will.

use std::sync::Arc;

use foreshore_record::{TopicName, property};

use super::{Connection, publish::Refused};
use crate::{
    audit::Action,
    message::Message,
    wire::{ReasonCode, properties},
};

/// Topics of commands.
const COMMANDS: &str = "foreshore/commands/";

/// Longest name of who asks, in characters.
const MAX_ACTOR: usize = 256;

/// Whether a message of this topic is a command to an asset.
pub(super) fn is_command(topic: &TopicName) -> bool {
    topic.as_str().starts_with(COMMANDS)
}

impl Connection {
    /// Judges a command beyond what the client's own permissions say, and makes it tell who asks.
    pub(super) fn judge_command(&self, message: &mut Message) -> Result<(), Refused> {
        let principal = &self.client.principal;
        let stated = properties::decode(&message.properties, None);
        let stated = stated.user_property(property::ACTOR);
        if message.retain {
            return Err(self.refuse_command(message, stated, "a command is not retained"));
        }
        if principal.is_own_role() {
            let policies = self.engine.policies.load();
            let judged = policies.relayed(&self.client.id, stated).may_publish(
                &message.topic,
                message.qos,
                message.retain,
            );
            return judged.map_err(|denied| self.refuse_command(message, stated, denied.rule()));
        }
        if stated.is_some() {
            let words = "the broker states who asks, not the client";
            return Err(self.refuse_command(message, stated, words));
        }
        let actor = match &principal.username {
            Some(name) => name.clone(),
            None => format!("anonymous:{}", self.client.id),
        };
        let actor: String = actor.chars().take(MAX_ACTOR).collect();
        message.properties = properties::with_user(&message.properties, property::ACTOR, &actor);
        Ok(())
    }

    /// The audit line of a command that is refused.
    fn refuse_command(&self, message: &Message, stated: Option<&str>, rule: &str) -> Refused {
        tracing::info!(
            client = %self.client.id,
            user = self.client.principal.username,
            actor = stated,
            topic = %message.topic,
            rule,
            "command refused"
        );
        self.audit_denied(Action::Command, message.topic.as_str(), rule, stated);
        Refused {
            reason: ReasonCode::NotAuthorized,
            // Other clients may forbid reason strings.
            detail: self.client.principal.is_own_role().then(|| Arc::from(rule)),
        }
    }
}
