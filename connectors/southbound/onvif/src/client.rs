//! SOAP over HTTP with one camera: requests, faults, pictures.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use foreshore_connector_sdk::{LinkError, LinkErrorClass, health::reason};
use foreshore_crds::conditions::reasons;
use jiff::Timestamp;
use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, LOCATION, WWW_AUTHENTICATE},
};
use rustls::ClientConfig;

use crate::{
    authentication::{Attempt, Authentication, Reaction, Refused, Target},
    xml::Element,
};

/// Longest answer to a SOAP request, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Most tries of one request: without credentials, with Digest, with a new nonce, with a token, with another clock.
const MAX_TRIES: usize = 5;

/// Longest text of a camera that is repeated in an error, in characters.
const MAX_QUOTED: usize = 200;

/// First wait after a refusal; doubled each time.
const FIRST_LOCKOUT: Duration = Duration::from_secs(60);
/// Longest wait after a refusal.
const LONGEST_LOCKOUT: Duration = Duration::from_secs(600);

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
    /// No connection: the request certainly did not arrive.
    #[error("the camera can't be reached: {0}")]
    NoConnection(String),
    /// A certificate that is not trusted.
    #[error("the camera's certificate is not trusted: {0}")]
    Untrusted(String),
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
            Self::Unreachable(_) | Self::NoConnection(_) => LinkErrorClass::Unreachable,
            Self::Untrusted(_) => LinkErrorClass::Untrusted,
            Self::Refused => LinkErrorClass::AuthenticationRefused,
            Self::Fault { .. } | Self::Protocol(_) | Self::TooLarge { .. } => LinkErrorClass::Protocol,
        };
        LinkError::new(class, self.to_string())
    }

    /// What this means for one stream or event.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::NoConnection(_) => reasons::UNREACHABLE,
            Self::Untrusted(_) => reasons::CERTIFICATE_UNTRUSTED,
            Self::Refused => reasons::AUTHENTICATION_FAILED,
            Self::Fault { .. } | Self::Protocol(_) | Self::TooLarge { .. } => reason::PROTOCOL_ERROR,
        }
    }
}

/// Asks rarely after a refusal, so that the camera locks nobody out. A password that is corrected in the Secret makes a new
/// link; one that is corrected in the camera is found out after some minutes.
#[derive(Debug, Default)]
pub(crate) struct Lockout {
    refusals: u32,
}

impl Lockout {
    /// Waits if an error was a refusal.
    pub(crate) async fn wait_after(&mut self, error: &Error) {
        if *error == Error::Refused {
            let doubled = FIRST_LOCKOUT * 2_u32.saturating_pow(self.refusals);
            self.refusals = (self.refusals + 1).min(8);
            tokio::time::sleep(doubled.min(LONGEST_LOCKOUT)).await;
        }
    }
}

impl Client {
    /// Makes a client.
    pub(crate) fn new(
        authentication: Authentication,
        timeout: Duration,
        tls: ClientConfig,
    ) -> Result<Self, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .user_agent("foreshore");
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
        let mut attempt = Attempt::new(Target::Service);
        for _ in 0..MAX_TRIES {
            let security = self
                .authentication
                .security_element(&mut attempt, Timestamp::now());
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
            if let Some(authorization) = self.authentication.authorization(&mut attempt, &path_of(service)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(unreachable)?;
            let head = Head::of(&response);
            let body = read(response, MAX_ANSWER).await?;
            match answer(&head, &body) {
                Err(Error::Refused) => self.again(&mut attempt, &head.refused)?,
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
    ) -> Result<(Bytes, &'static str), Error> {
        let mut attempt = Attempt::new(Target::Picture);
        for _ in 0..MAX_TRIES {
            let mut request = self.http.get(address.clone()).timeout(timeout);
            if let Some(authorization) = self.authentication.authorization(&mut attempt, &path_of(address)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(unreachable)?;
            let head = Head::of(&response);
            if head.status == StatusCode::UNAUTHORIZED {
                self.again(&mut attempt, &head.refused)?;
                continue;
            }
            if !head.status.is_success() {
                return Err(head.instead_of("a picture"));
            }
            let body = read(response, limit).await?;
            let media_type = media_type(&body).ok_or_else(|| head.instead_of("a picture"))?;
            return Ok((body, media_type));
        }
        Err(Error::Refused)
    }

    fn again(&self, attempt: &mut Attempt, refused: &Refused) -> Result<(), Error> {
        match self.authentication.refused(attempt, refused, Timestamp::now()) {
            Reaction::Again => Ok(()),
            Reaction::GiveUp => Err(Error::Refused),
        }
    }
}

/// What an answer says besides its body.
struct Head {
    status: StatusCode,
    content_type: String,
    location: Option<String>,
    refused: Refused,
}

impl Head {
    fn of(response: &Response) -> Self {
        let texts = |name: HeaderName| {
            let values = response.headers().get_all(name).into_iter();
            values.filter_map(|value| value.to_str().ok())
        };
        let date = texts(DATE).next();
        Self {
            status: response.status(),
            content_type: quote(texts(CONTENT_TYPE).next().unwrap_or_default()),
            location: texts(LOCATION).next().map(quote),
            refused: Refused {
                challenges: texts(WWW_AUTHENTICATE).map(ToOwned::to_owned).collect(),
                date: date
                    .and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
                    .map(|zoned| zoned.timestamp()),
            },
        }
    }

    /// Says what came where something else was expected.
    fn instead_of(&self, expected: &str) -> Error {
        let Self {
            status,
            content_type,
            location,
            ..
        } = self;
        Error::Protocol(match location {
            // Credentials are shown to the address that the user gave, and to no other.
            Some(location) if status.is_redirection() => {
                format!("a redirection to {location:?} instead of {expected}")
            }
            _ if !status.is_success() => format!("HTTP status {status} instead of {expected}"),
            _ => format!("content of the type {content_type:?} instead of {expected}"),
        })
    }
}

/// A camera's text for an error: one line, and not long.
pub(crate) fn quote(text: &str) -> String {
    let words = text.split_whitespace().flat_map(|word| [" ", word]).skip(1);
    words.flat_map(str::chars).take(MAX_QUOTED).collect()
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

fn unreachable(error: reqwest::Error) -> Error {
    // The address is known and may hold a password.
    let error = error.without_url();
    let connecting = error.is_connect();
    let mut cause: &(dyn std::error::Error + 'static) = &error;
    loop {
        if let Some(rustls::Error::InvalidCertificate(reason)) = tls_error(cause) {
            return Error::Untrusted(reason.to_string());
        }
        // The deepest cause says what happened.
        match cause.source() {
            Some(deeper) => cause = deeper,
            None if connecting => return Error::NoConnection(cause.to_string()),
            None => return Error::Unreachable(cause.to_string()),
        }
    }
}

/// The error of TLS that an error of input or output wraps, and hides from `source`.
fn tls_error<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    }
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
fn answer(head: &Head, body: &[u8]) -> Result<Element, Error> {
    // Names of places and presets come in other encodings from some cameras; what matters to us is ASCII.
    let envelope = Element::parse(&String::from_utf8_lossy(body));
    let content = envelope.as_ref().ok().and_then(|envelope| {
        let body = envelope.child("Body")?;
        body.children.first().cloned()
    });
    match content {
        Some(fault) if fault.name == "Fault" => Err(read_fault(head.status, &fault)),
        _ if head.status == StatusCode::UNAUTHORIZED => Err(Error::Refused),
        Some(content) if head.status.is_success() => Ok(content),
        _ => Err(match envelope {
            Err(malformed) if head.status.is_success() && head.content_type.contains("xml") => {
                Error::Protocol(format!("an envelope that can't be read: {malformed}"))
            }
            _ => head.instead_of("a SOAP envelope"),
        }),
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
    let code = most_specific.or_else(|| fault.text_at(&["faultcode"]));
    let code = quote(code.unwrap_or("unknown"));
    let reason = fault
        .text_at(&["Reason", "Text"])
        .or_else(|| fault.text_at(&["faultstring"]));
    let reason = quote(reason.unwrap_or_default());
    let credentials = ["NotAuthorized", "FailedAuthentication", "InvalidSecurity"];
    if status == StatusCode::UNAUTHORIZED || credentials.iter().any(|known| code.contains(known)) {
        return Error::Refused;
    }
    Error::Fault { code, reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(status: StatusCode) -> Head {
        Head {
            status,
            content_type: "text/html".to_owned(),
            location: None,
            refused: Refused::default(),
        }
    }

    #[test]
    fn faults_name_their_most_specific_code() {
        let body = br#"<e:Envelope xmlns:e="u"><e:Body><e:Fault><e:Code><e:Value>e:Sender</e:Value><e:Subcode>
            <e:Value>ter:InvalidArgVal</e:Value><e:Subcode><e:Value>ter:NoToken</e:Value></e:Subcode></e:Subcode></e:Code>
            <e:Reason><e:Text>no such preset</e:Text></e:Reason></e:Fault></e:Body></e:Envelope>"#;
        let error = answer(&head(StatusCode::BAD_REQUEST), body).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the camera answered with the fault ter:NoToken: no such preset"
        );
    }

    #[test]
    fn a_refusal_is_one_in_either_form() {
        assert_eq!(answer(&head(StatusCode::UNAUTHORIZED), b""), Err(Error::Refused));
        let fault = b"<E><Body><Fault><Code><Value>s:Sender</Value><Subcode><Value>ter:NotAuthorized</Value></Subcode></Code></Fault></Body></E>";
        assert_eq!(answer(&head(StatusCode::BAD_REQUEST), fault), Err(Error::Refused));
    }

    /// Pieces of answers, good ones and others.
    const PIECES: [&[u8]; 24] = [
        b"<s:Envelope xmlns:s='u'>",
        b"<s:Body>",
        b"</s:Body>",
        b"</s:Envelope>",
        b"<Envelope>",
        b"<Body>",
        b"</Body></Envelope>",
        b"<Fault><Code><Value>s:Sender</Value>",
        b"<Subcode><Value>ter:NotAuthorized</Value></Subcode></Code></Fault>",
        b"<faultcode>",
        b"</",
        b">",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"&b;",
        b"&#x110000;",
        b"&#0;",
        b"&amp",
        b"<![CDATA[",
        b"]]>",
        b"<!--",
        b"<?xml version='1.0' encoding='utf-16'?>",
        b"\xEF\xBB\xBF",
        b"\xFF\xFE\x00\x80",
        b" a='1' a='&lt;' b=c",
    ];

    proptest! {
        #[test]
        fn no_answer_panics(
            pieces in proptest::collection::vec(0..PIECES.len(), 0..24),
            noise in proptest::collection::vec(any::<u8>(), 0..8),
            at in any::<proptest::sample::Index>(),
            status in 200_u16..600,
        ) {
            let mut body: Vec<u8> = pieces.iter().flat_map(|&piece| PIECES[piece]).copied().collect();
            let at = at.index(body.len() + 1);
            body.splice(at..at, noise);
            if let Err(error) = answer(&head(StatusCode::from_u16(status).unwrap()), &body) {
                prop_assert!(error.to_string().len() < 4 * MAX_QUOTED * 3);
            }
        }

        #[test]
        fn a_quote_is_one_short_line(text in "\\PC{0,40}[\\s\\x00-\\x1F]{0,9}\\PC{0,400}") {
            let quoted = quote(&text);
            prop_assert!(quoted.chars().count() <= MAX_QUOTED && !quoted.contains(['\n', '\r', '\t']));
        }
    }
}
