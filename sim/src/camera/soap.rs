//! SOAP 1.2 envelopes, as far as a camera needs them.

use std::collections::BTreeMap;

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use quick_xml::{
    XmlVersion,
    escape::{escape, resolve_predefined_entity},
    events::{BytesStart, Event},
    name::ResolveResult,
    reader::NsReader,
};

/// Namespace of the device service.
pub(super) const DEVICE: &str = "http://www.onvif.org/ver10/device/wsdl";
/// Namespace of the media service.
pub(super) const MEDIA: &str = "http://www.onvif.org/ver10/media/wsdl";
/// Namespace of the PTZ service.
pub(super) const PTZ: &str = "http://www.onvif.org/ver20/ptz/wsdl";
/// Namespace of the event service.
pub(super) const EVENTS: &str = "http://www.onvif.org/ver10/events/wsdl";
/// Namespace of WS-BaseNotification, for `Renew` and `Unsubscribe`.
pub(super) const NOTIFICATION: &str = "http://docs.oasis-open.org/wsn/b-2";

/// Elements deeper than this are refused.
const MAX_DEPTH: usize = 64;
/// Attributes of an element beyond these are not looked at.
const MAX_ATTRIBUTES: usize = 64;

/// What a client asked.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// Namespace of the operation.
    pub(super) namespace: String,
    /// Local name of the operation.
    pub(super) operation: String,
    /// Text of the elements within the operation, by local names joined with `/`.
    pub(super) values: BTreeMap<String, String>,
    /// Attributes of the elements within the operation, by path and `@name`.
    pub(super) username_token: Option<UsernameToken>,
}

/// WS-UsernameToken of a request (OASIS Web Services Security UsernameToken Profile 1.1).
#[derive(Debug, Default)]
pub(super) struct UsernameToken {
    pub(super) username: String,
    pub(super) password: String,
    pub(super) nonce: String,
    pub(super) created: String,
}

impl Request {
    /// Reads an envelope.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let body = std::str::from_utf8(body).map_err(|error| format!("request is not UTF-8: {error}"))?;
        let mut reader = NsReader::from_str(body);
        let mut request = Self::default();
        let mut path: Vec<String> = Vec::new();
        // Comes in pieces, around references.
        let mut text = String::new();
        loop {
            match reader.read_resolved_event() {
                Err(error) => return Err(format!("request is not well-formed XML: {error}")),
                Ok((namespace, Event::Start(element))) => {
                    request.enter(&mut path, &namespace, &element)?;
                    text.clear();
                }
                Ok((namespace, Event::Empty(element))) => {
                    request.enter(&mut path, &namespace, &element)?;
                    path.pop();
                }
                Ok((_, Event::End(_))) => {
                    if !text.trim().is_empty() {
                        request.text(&path, text.trim());
                    }
                    text.clear();
                    path.pop();
                }
                Ok((_, Event::Text(part))) => text.push_str(&part.xml_content(XmlVersion::Implicit1_0)),
                Ok((_, Event::CData(part))) => text.push_str(&part),
                Ok((_, Event::GeneralRef(reference))) => match reference.resolve_char_ref() {
                    Ok(Some(character)) => text.push(character),
                    _ => text.push_str(resolve_predefined_entity(&reference).unwrap_or_default()),
                },
                Ok((_, Event::Eof)) => break,
                Ok(_) => {}
            }
        }
        if request.operation.is_empty() {
            Err("request has no operation in its body".to_owned())
        } else {
            Ok(request)
        }
    }

    fn enter(
        &mut self,
        path: &mut Vec<String>,
        namespace: &ResolveResult<'_>,
        element: &BytesStart<'_>,
    ) -> Result<(), String> {
        if path.len() >= MAX_DEPTH {
            return Err(format!("request is nested deeper than {MAX_DEPTH} elements"));
        }
        let name = element.local_name().as_ref().to_owned();
        path.push(name.clone());
        match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["Envelope", "Body", _] => {
                if let ResolveResult::Bound(bound) = namespace {
                    self.namespace = bound.as_ref().to_owned();
                }
                self.operation = name;
            }
            ["Envelope", "Header", "Security", "UsernameToken"] => {
                self.username_token = Some(UsernameToken::default());
            }
            ["Envelope", "Body", _, inner @ ..] => {
                let key = inner.join("/");
                let mut attributes = element.attributes();
                for attribute in attributes.with_checks(false).flatten().take(MAX_ATTRIBUTES) {
                    let name = attribute.key.local_name().as_ref().to_owned();
                    let value = attribute.normalized_value(XmlVersion::Implicit1_0);
                    let value =
                        value.map_err(|error| format!("request has a malformed attribute: {error}"))?;
                    self.values.insert(format!("{key}@{name}"), value.into_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, path: &[String], text: &str) {
        match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["Envelope", "Body", _, inner @ ..] if !inner.is_empty() => {
                self.values.insert(inner.join("/"), text.to_owned());
            }
            ["Envelope", "Header", "Security", "UsernameToken", field] => {
                let Some(token) = &mut self.username_token else {
                    return;
                };
                match *field {
                    "Username" => text.clone_into(&mut token.username),
                    "Password" => text.clone_into(&mut token.password),
                    "Nonce" => text.clone_into(&mut token.nonce),
                    "Created" => text.clone_into(&mut token.created),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Text of an element within the operation.
    pub(super) fn value(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(String::as_str)
    }

    /// Number in an attribute or element within the operation.
    pub(super) fn number(&self, path: &str) -> Option<f64> {
        self.value(path)?
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
    }
}

/// A SOAP fault.
#[derive(Debug)]
pub(super) struct Fault {
    status: StatusCode,
    code: &'static str,
    subcode: &'static str,
    reason: String,
}

impl Fault {
    /// The client asked wrongly.
    pub(super) fn sender(subcode: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "s:Sender",
            subcode,
            reason: reason.into(),
        }
    }

    /// The client is not who it must be.
    pub(super) fn not_authorized() -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: "s:Sender",
            subcode: "ter:NotAuthorized",
            reason: "sender is not authorized".to_owned(),
        }
    }

    /// The camera has no such operation.
    pub(super) fn not_supported(operation: &str) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "s:Receiver",
            subcode: "ter:ActionNotSupported",
            reason: format!("{operation} is not supported"),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let body = format!(
            "<s:Fault><s:Code><s:Value>{}</s:Value><s:Subcode><s:Value>{}</s:Value></s:Subcode></s:Code>\
             <s:Reason><s:Text xml:lang=\"en\">{}</s:Text></s:Reason></s:Fault>",
            self.code,
            self.subcode,
            escape(self.reason.as_str())
        );
        (self.status, envelope(&body)).into_response()
    }
}

/// Wraps a body.
pub(super) fn envelope(body: &str) -> impl IntoResponse + use<> {
    let envelope = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:wsa=\"http://www.w3.org/2005/08/addressing\" xmlns:ter=\"http://www.onvif.org/ver10/error\" \
         xmlns:xs=\"http://www.w3.org/2001/XMLSchema\" xmlns:tt=\"http://www.onvif.org/ver10/schema\" xmlns:tds=\"{DEVICE}\" xmlns:trt=\"{MEDIA}\" \
         xmlns:tptz=\"{PTZ}\" xmlns:tev=\"{EVENTS}\" xmlns:wsnt=\"{NOTIFICATION}\" \
         xmlns:tns1=\"http://www.onvif.org/ver10/topics\"><s:Body>{body}</s:Body></s:Envelope>"
    );
    (
        [(header::CONTENT_TYPE, "application/soap+xml; charset=utf-8")],
        envelope,
    )
}
