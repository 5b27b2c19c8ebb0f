//! SOAP over HTTP with one camera: requests, faults, pictures.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use foreshore_connector_sdk::{LinkError, LinkErrorClass};
use jiff::Timestamp;
use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
};

use crate::{
    authentication::{Authentication, Reaction},
    xml::Element,
};

/// Longest answer to a SOAP request, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Most tries of one request: without credentials, with Digest, with a new nonce, with a token.
const MAX_TRIES: usize = 4;

/// Talks to one camera.
pub(crate) struct Client {
    http: reqwest::Client,
    pub(crate) authentication: Authentication,
}

/// Why a request has no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// No answer.
    #[error("the camera does not answer: {0}")]
    Unreachable(String),
    /// The credentials were refused.
    #[error("the camera refused the credentials")]
    Refused,
    /// A SOAP fault.
    #[error("the camera answered with the fault {code}: {reason}")]
    Fault {
        /// Most specific code, such as `ter:NoToken`.
        code: String,
        /// What the camera says about it.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("the camera answered something else than asked: {0}")]
    Protocol(String),
    /// An answer that is larger than allowed.
    #[error("the camera's answer is larger than {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
}

impl Error {
    /// What this means for the link.
    pub(crate) fn to_link_error(&self) -> LinkError {
        let class = match self {
            Self::Unreachable(_) => LinkErrorClass::Unreachable,
            Self::Refused => LinkErrorClass::AuthenticationRefused,
            Self::Fault { .. } | Self::Protocol(_) | Self::TooLarge { .. } => LinkErrorClass::Protocol,
        };
        LinkError::new(class, self.to_string())
    }
}

impl Client {
    /// Makes a client.
    pub(crate) fn new(
        authentication: Authentication,
        timeout: Duration,
        accept_untrusted: bool,
        accept_other_host_names: bool,
        roots: &[impl AsRef<[u8]>],
    ) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_danger_accept_invalid_certs(accept_untrusted)
            .tls_danger_accept_invalid_hostnames(accept_other_host_names)
            .user_agent("foreshore");
        for root in roots {
            builder = builder.add_root_certificate(reqwest::Certificate::from_der(root.as_ref())?);
        }
        Ok(Self {
            http: builder.build()?,
            authentication,
        })
    }

    /// Carries out an operation and returns the element within the answer's body.
    ///
    /// The action stands in the content type as well, since some cameras look only there.
    pub(crate) async fn call(
        &self,
        service: &Url,
        namespace: &str,
        operation: &str,
        body: &str,
    ) -> Result<Element, Error> {
        let action = format!("{namespace}/{operation}");
        self.call_action(service, &action, "", body, None).await
    }

    /// Carries out an operation with its own action, header elements and time limit.
    pub(crate) async fn call_action(
        &self,
        service: &Url,
        action: &str,
        header: &str,
        body: &str,
        timeout: Option<Duration>,
    ) -> Result<Element, Error> {
        for _ in 0..MAX_TRIES {
            let security = self.authentication.security_element(Timestamp::now());
            let envelope = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\">\
                 <s:Header>{header}{security}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
            );
            let content_type = format!("application/soap+xml; charset=utf-8; action=\"{action}\"");
            let mut request = self
                .http
                .post(service.clone())
                .header(CONTENT_TYPE, content_type)
                .body(envelope);
            if let Some(timeout) = timeout {
                request = request.timeout(timeout);
            }
            if let Some(authorization) = self.authentication.header(true, &path_of(service)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(unreachable)?;
            let (status, challenges) = (response.status(), challenges_of(&response));
            let body = read(response, MAX_ANSWER).await?;
            match answer(status, &body) {
                Err(Error::Refused) => {
                    if self.authentication.refused(&challenges) == Reaction::GiveUp {
                        return Err(Error::Refused);
                    }
                }
                settled => return settled,
            }
        }
        Err(Error::Refused)
    }

    /// Fetches a picture and its media type.
    pub(crate) async fn picture(
        &self,
        address: &Url,
        timeout: Duration,
        limit: usize,
    ) -> Result<(Bytes, String), Error> {
        let mut basic = None;
        for _ in 0..MAX_TRIES {
            let mut request = self.http.get(address.clone()).timeout(timeout);
            let digest = || self.authentication.header(false, &path_of(address));
            if let Some(authorization) = basic.take().or_else(digest) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(unreachable)?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED {
                let challenges = challenges_of(&response);
                basic = self.authentication.basic(&challenges);
                if basic.is_none() && self.authentication.refused(&challenges) == Reaction::GiveUp {
                    return Err(Error::Refused);
                }
                continue;
            }
            if !status.is_success() {
                return Err(Error::Protocol(format!(
                    "HTTP status {status} instead of a picture"
                )));
            }
            let declared = response
                .headers()
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok());
            let declared = declared.unwrap_or_default().to_owned();
            let body = read(response, limit).await?;
            let media_type = media_type(&body).ok_or_else(|| {
                Error::Protocol(format!("content of the type {declared:?} instead of a picture"))
            })?;
            return Ok((body, media_type.to_owned()));
        }
        Err(Error::Refused)
    }
}

/// The type of a picture by its first bytes; what cameras declare is often wrong.
fn media_type(picture: &[u8]) -> Option<&'static str> {
    match picture {
        [0xFF, 0xD8, 0xFF, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [b'B', b'M', ..] => Some("image/bmp"),
        _ => None,
    }
}

fn path_of(address: &Url) -> String {
    address.query().map_or_else(
        || address.path().to_owned(),
        |query| format!("{}?{query}", address.path()),
    )
}

fn challenges_of(response: &Response) -> Vec<String> {
    let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .map(ToOwned::to_owned)
        .collect()
}

fn unreachable(error: reqwest::Error) -> Error {
    // The deepest cause says what happened; the address is known and may hold a password.
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Error::Unreachable(cause.to_string())
}

async fn read(mut response: Response, limit: usize) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > limit {
            return Err(Error::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Reads a SOAP answer.
fn answer(status: StatusCode, body: &[u8]) -> Result<Element, Error> {
    let envelope = std::str::from_utf8(body).ok().map(Element::parse);
    let content = match envelope {
        Some(Ok(envelope)) => envelope
            .child("Body")
            .and_then(|body| body.children.first())
            .cloned(),
        Some(Err(_)) | None => None,
    };
    match content {
        Some(fault) if fault.name == "Fault" => Err(read_fault(status, &fault)),
        Some(_) | None if status == StatusCode::UNAUTHORIZED => Err(Error::Refused),
        Some(content) if status.is_success() => Ok(content),
        _ => Err(Error::Protocol(format!("HTTP status {status}"))),
    }
}

fn read_fault(status: StatusCode, fault: &Element) -> Error {
    let code = fault.child("Code");
    let most_specific = code.and_then(|code| {
        code.descendants("Subcode")
            .last()
            .and_then(|subcode| subcode.text_at(&["Value"]))
            .or_else(|| code.text_at(&["Value"]))
    });
    let code = most_specific
        .or_else(|| fault.text_at(&["faultcode"]))
        .unwrap_or("unknown")
        .to_owned();
    let reason = fault
        .text_at(&["Reason", "Text"])
        .or_else(|| fault.text_at(&["faultstring"]));
    let reason = reason.unwrap_or_default().to_owned();
    let credentials = ["NotAuthorized", "FailedAuthentication", "InvalidSecurity"];
    if status == StatusCode::UNAUTHORIZED || credentials.iter().any(|known| code.contains(known)) {
        return Error::Refused;
    }
    Error::Fault { code, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_their_most_specific_code() {
        let body = br#"<e:Envelope xmlns:e="u"><e:Body><e:Fault><e:Code><e:Value>e:Sender</e:Value><e:Subcode>
            <e:Value>ter:InvalidArgVal</e:Value><e:Subcode><e:Value>ter:NoToken</e:Value></e:Subcode></e:Subcode></e:Code>
            <e:Reason><e:Text>no such preset</e:Text></e:Reason></e:Fault></e:Body></e:Envelope>"#;
        let error = answer(StatusCode::BAD_REQUEST, body).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the camera answered with the fault ter:NoToken: no such preset"
        );
    }

    #[test]
    fn a_refusal_is_one_in_either_form() {
        assert_eq!(answer(StatusCode::UNAUTHORIZED, b""), Err(Error::Refused));
        let fault = b"<E><Body><Fault><Code><Value>s:Sender</Value><Subcode><Value>ter:NotAuthorized</Value></Subcode></Code></Fault></Body></E>";
        assert_eq!(answer(StatusCode::BAD_REQUEST, fault), Err(Error::Refused));
    }
}
