//! What the audit log is told of a connection.

use std::net::SocketAddr;

use super::{ClientFacts, Connection, ending::Ending, handshake::Refused};
use crate::{
    audit::{self, Action, Event, Key, What},
    engine::Engine,
    listener::Listener,
};

/// Somebody who was not let in.
pub(super) struct Stranger<'a> {
    pub(super) listener: &'a Listener,
    pub(super) peer: SocketAddr,
    /// Client identifier; empty where it said none.
    pub(super) client: &'a str,
    /// User name that it said it has.
    pub(super) username: Option<&'a str>,
}

impl Stranger<'_> {
    /// It was told why it was not let in, or nothing.
    pub(super) fn refused(&self, engine: &Engine, refused: &Refused) {
        let event = Event {
            reason_code: refused.code().map(|code| code as u8),
            reason: refused.code().map(crate::wire::ReasonCode::text),
            detail: Some(refused.detail()),
            ..self.event()
        };
        engine.audit.tell_of(Key::Address(self.peer.ip()), event);
    }

    /// It said nothing in time.
    pub(super) fn was_silent(&self, engine: &Engine) {
        let event = Event {
            detail: Some("no CONNECT arrived in time"),
            ..self.event()
        };
        engine.audit.tell_of(Key::Address(self.peer.ip()), event);
    }

    fn event(&self) -> Event<'_> {
        Event {
            event: What::Refused,
            client: (!self.client.is_empty()).then_some(self.client),
            claimed_user: self.username,
            listener: Some(&self.listener.name),
            peer: audit::peer(self.peer),
            ..Event::default()
        }
    }
}

impl ClientFacts {
    /// Something that happened to the client.
    fn event(&self, event: What) -> Event<'_> {
        Event {
            event,
            client: Some(&self.id),
            user: self.principal.username.as_deref(),
            role: self.principal.role.as_ref().map(ToString::to_string),
            way: Some(self.principal.class().as_str()),
            method: self.authentication_method.as_deref(),
            listener: Some(&self.listener.name),
            peer: audit::peer(self.peer),
            ..Event::default()
        }
    }
}

impl Connection {
    /// Tells something that happened to the client and is as rare as its connections.
    pub(super) fn audit(&self, event: What) {
        if self.engine.audit.is_on() {
            self.engine.audit.tell(&self.client.event(event));
        }
    }

    /// Tells what the client was refused.
    pub(super) fn audit_denied(&self, action: Action, topic: &str, rule: &str, actor: Option<&str>) {
        if !self.engine.audit.is_on() {
            return;
        }
        let event = Event {
            action: Some(action),
            topic: Some(topic),
            rule: Some(rule),
            actor,
            ..self.client.event(What::Denied)
        };
        let key = Key::Client(self.client.id.clone());
        self.engine.audit.tell_of(key, event);
    }

    /// Tells why the connection ends.
    pub(super) fn audit_end(&self, ending: &Ending) {
        if !self.engine.audit.is_on() {
            return;
        }
        self.engine.audit.tell(&Event {
            reason_code: ending.reason.map(|reason| reason as u8),
            reason: ending.reason.map(crate::wire::ReasonCode::text),
            detail: Some(&ending.detail),
            ..self.client.event(What::Disconnected)
        });
    }
}
