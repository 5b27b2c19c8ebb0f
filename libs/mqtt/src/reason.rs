//! Reason codes by name (MQTT 5.0, section 2.4).

use std::fmt;

/// A reason code of MQTT 5; shown as its name and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Success, normal disconnection or granted QoS 0.
    pub const SUCCESS: Self = Self(0x00);
    /// The message was accepted, but there are no subscribers.
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    /// The server does not say why.
    pub const UNSPECIFIED_ERROR: Self = Self(0x80);
    /// A packet could not be parsed.
    pub const MALFORMED_PACKET: Self = Self(0x81);
    /// A packet broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// The server does not speak this version of MQTT.
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    /// User name or password are not accepted.
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    /// A policy forbids it.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// The server is busy: later.
    pub const SERVER_BUSY: Self = Self(0x89);
    /// The server ends.
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8B);
    /// Another connection took the same client identifier.
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    /// The topic name is not accepted.
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    /// More messages than the receive maximum were on their way.
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    /// The packet is larger than allowed.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// A limit is reached: queue, storage, receivers.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);

    /// Whether the code tells a failure.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// The name that the specification gives the code, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            0x00 => "success",
            0x01 => "granted qos 1",
            0x02 => "granted qos 2",
            0x04 => "disconnect with will message",
            0x10 => "no matching subscribers",
            0x11 => "no subscription existed",
            0x18 => "continue authentication",
            0x19 => "re-authenticate",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x83 => "implementation specific error",
            0x84 => "unsupported protocol version",
            0x85 => "client identifier not valid",
            0x86 => "bad user name or password",
            0x87 => "not authorized",
            0x88 => "server unavailable",
            0x89 => "server busy",
            0x8A => "banned",
            0x8B => "server shutting down",
            0x8C => "bad authentication method",
            0x8D => "keep alive timeout",
            0x8E => "session taken over",
            0x8F => "topic filter invalid",
            0x90 => "topic name invalid",
            0x91 => "packet identifier in use",
            0x92 => "packet identifier not found",
            0x93 => "receive maximum exceeded",
            0x94 => "topic alias invalid",
            0x95 => "packet too large",
            0x96 => "message rate too high",
            0x97 => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format invalid",
            0x9A => "retain not supported",
            0x9B => "qos not supported",
            0x9C => "use another server",
            0x9D => "server moved",
            0x9E => "shared subscriptions not supported",
            0x9F => "connection rate exceeded",
            0xA0 => "maximum connect time",
            0xA1 => "subscription identifiers not supported",
            0xA2 => "wildcard subscriptions not supported",
            _ => "unknown reason code",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_name_and_number() {
        assert_eq!(ReasonCode::QUOTA_EXCEEDED.to_string(), "quota exceeded (0x97)");
        assert_eq!(ReasonCode(0xFE).to_string(), "unknown reason code (0xFE)");
        assert!(ReasonCode::NOT_AUTHORIZED.is_error() && !ReasonCode::NO_MATCHING_SUBSCRIBERS.is_error());
    }
}
