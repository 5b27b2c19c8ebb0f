//! AUTH, and what CONNECT and CONNACK say of enhanced authentication (MQTT 5.0 sections 3.15 and 4.12).

use bytes::{Bytes, BytesMut};
use rmqtt_codec::v5;

use super::{ReasonCode, WireError, encode};

/// The method by which a client proves who it is, and what it says by it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Authentication {
    /// Name of the method.
    pub(crate) method: String,
    /// What the method says; its form is the method's.
    pub(crate) data: Option<Bytes>,
}

impl std::fmt::Debug for Authentication {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The data may be a secret.
        formatter
            .debug_struct("Authentication")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// An AUTH packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Auth {
    /// What it is for.
    pub(crate) reason: AuthReason,
    /// What it says.
    pub(crate) authentication: Authentication,
}

/// What an AUTH packet is for (section 3.15.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthReason {
    /// The client has proved who it is; only a server says so.
    Success,
    /// One more step.
    Continue,
    /// The client proves anew who it is.
    Reauthenticate,
}

impl Auth {
    /// Writes an AUTH packet.
    pub(crate) fn encode(self, out: &mut BytesMut) {
        let reason_code = match self.reason {
            AuthReason::Success => v5::AuthReasonCode::Success,
            AuthReason::Continue => v5::AuthReasonCode::ContinueAuth,
            AuthReason::Reauthenticate => v5::AuthReasonCode::ReAuth,
        };
        let Authentication { method, data } = self.authentication;
        let packet = v5::Auth {
            reason_code,
            auth_method: Some(method.into()),
            auth_data: data,
            ..v5::Auth::default()
        };
        encode::put(v5::Packet::Auth(packet), out);
    }
}

impl TryFrom<v5::Auth> for Auth {
    type Error = WireError;

    /// Takes what the codec read; an AUTH that names no method is a protocol error.
    fn try_from(auth: v5::Auth) -> Result<Self, WireError> {
        let no_method = || WireError::new(ReasonCode::ProtocolError, "AUTH names no authentication method");
        Ok(Self {
            reason: match auth.reason_code {
                v5::AuthReasonCode::Success => AuthReason::Success,
                v5::AuthReasonCode::ContinueAuth => AuthReason::Continue,
                v5::AuthReasonCode::ReAuth => AuthReason::Reauthenticate,
            },
            authentication: Authentication {
                method: auth.auth_method.ok_or_else(no_method)?.to_string(),
                data: auth.auth_data,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Version, frame::cut, packet::Packet};

    fn decode(packet: &[u8]) -> Result<Auth, WireError> {
        match Packet::decode(&cut(packet, 1000).unwrap().unwrap(), Version::V5)? {
            Packet::Auth(auth) => Ok(auth),
            other => panic!("AUTH expected, {other:?} was read"),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (reason, data) in [
            (AuthReason::Success, None),
            (AuthReason::Continue, Some(Bytes::from_static(b"x"))),
            (AuthReason::Reauthenticate, Some(Bytes::from(vec![7; 300]))),
        ] {
            let auth = Auth {
                reason,
                authentication: Authentication {
                    method: "SCRAM-SHA-256".to_owned(),
                    data,
                },
            };
            let mut out = BytesMut::new();
            auth.clone().encode(&mut out);
            assert_eq!(decode(&out), Ok(auth));
        }
        // As the specification writes it.
        let known = b"\xf0\x0a\x18\x08\x15\x00\x01M\x16\x00\x01d";
        let auth = decode(known).unwrap();
        let mut out = BytesMut::new();
        auth.encode(&mut out);
        assert_eq!(&out[..], known);
    }

    #[test]
    fn explanations_are_read_over() {
        let packet = b"\xf0\x14\x19\x12\x15\x00\x01M\x1f\x00\x01r\x26\x00\x01k\x00\x00\x26\x00\x00\x00\x00";
        assert_eq!(decode(packet).unwrap_err().reason, ReasonCode::MalformedPacket);
        let packet = b"\xf0\x15\x19\x13\x15\x00\x01M\x1f\x00\x01r\x26\x00\x01k\x00\x00\x26\x00\x00\x00\x00";
        let auth = decode(packet).unwrap();
        assert_eq!(
            (auth.reason, auth.authentication.data),
            (AuthReason::Reauthenticate, None)
        );
    }

    #[test]
    fn faults_are_told_apart() {
        let reason = |packet: &[u8]| decode(packet).unwrap_err().reason;
        // No method, in each of the short forms.
        assert_eq!(reason(b"\xf0\x00"), ReasonCode::ProtocolError);
        assert_eq!(reason(b"\xf0\x01\x18"), ReasonCode::ProtocolError);
        assert_eq!(reason(b"\xf0\x02\x18\x00"), ReasonCode::ProtocolError);
        assert_eq!(
            reason(b"\xf0\x06\x01\x04\x15\x00\x01M"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\xf0\x0a\x18\x08\x15\x00\x01M\x15\x00\x01M"),
            ReasonCode::ProtocolError
        );
        assert_eq!(
            reason(b"\xf0\x0c\x18\x0a\x15\x00\x01M\x16\x00\x00\x16\x00\x00"),
            ReasonCode::ProtocolError
        );
        assert_eq!(
            reason(b"\xf0\x08\x18\x06\x15\x00\x01M\x01\x01"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\xf0\x06\x18\x04\x15\x00\x01\x00"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\xf0\x07\x18\x04\x15\x00\x01M\x00"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(reason(b"\xf0\x03\x18\x80\x80"), ReasonCode::MalformedPacket);
    }
}
