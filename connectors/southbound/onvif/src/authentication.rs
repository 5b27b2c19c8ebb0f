//! How a camera is shown who asks: HTTP Digest (RFC 7616) first, WS-UsernameToken where the user allows it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use digest_auth::{AuthContext, HttpMethod, WwwAuthenticateHeader};
use jiff::{SignedDuration, Timestamp, Unit};
use parking_lot::Mutex;
use rand::RngCore;
use sha1::{Digest as _, Sha1};

use crate::xml::escape;

const WSSE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss";

/// A user of a camera.
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password: String,
}

/// Credentials and what was learned about how a camera wants them.
pub(crate) struct Authentication {
    user: Option<User>,
    fallback: bool,
    learned: Mutex<Learned>,
}

#[derive(Default)]
struct Learned {
    /// The camera's last challenge; used again, with a rising count, until the camera sends another.
    challenge: Option<WwwAuthenticateHeader>,
    /// The camera accepts only WS-UsernameToken.
    token: bool,
    /// How far the camera's clock is ahead of ours.
    skew: SignedDuration,
}

/// What to do about an answer of 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Ask once more; the credentials will look otherwise.
    Again,
    /// The credentials are wrong, or of no kind that we send.
    GiveUp,
}

impl Authentication {
    pub(crate) fn new(user: Option<User>, fallback: bool) -> Self {
        Self {
            user,
            fallback,
            learned: Mutex::default(),
        }
    }

    /// Remembers how far the camera's clock is from ours.
    pub(crate) fn learn_skew(&self, skew: SignedDuration) {
        self.learned.lock().skew = skew;
    }

    /// Value of the `Authorization` header for a request.
    pub(crate) fn header(&self, post: bool, uri: &str) -> Option<String> {
        let user = self.user.as_ref()?;
        let mut learned = self.learned.lock();
        let method = if post { HttpMethod::POST } else { HttpMethod::GET };
        let context = AuthContext::new_with_method(&user.name, &user.password, uri, None::<&[u8]>, method);
        learned
            .challenge
            .as_mut()?
            .respond(&context)
            .ok()
            .map(|header| header.to_header_string())
    }

    /// Value of the `Authorization` header for HTTP Basic; only where the camera asks for it and the user allows the
    /// fallback.
    pub(crate) fn basic(&self, challenges: &[String]) -> Option<String> {
        let asked = challenges
            .iter()
            .any(|challenge| challenge.to_ascii_lowercase().starts_with("basic"));
        let user = self.user.as_ref().filter(|_| asked && self.fallback)?;
        Some(format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", user.name, user.password))
        ))
    }

    /// The `Security` element for a SOAP request, if the camera wants one.
    pub(crate) fn security_element(&self, now: Timestamp) -> String {
        let learned = self.learned.lock();
        match &self.user {
            Some(user) if learned.token => security(user, now.saturating_add(learned.skew).unwrap_or(now)),
            _ => String::new(),
        }
    }

    /// Learns from an answer that refused a request.
    pub(crate) fn refused(&self, challenges: &[String]) -> Reaction {
        let mut learned = self.learned.lock();
        if self.user.is_none() {
            return Reaction::GiveUp;
        }
        let offered = strongest(challenges);
        match (offered, &learned.challenge) {
            // A challenge that we have answered means a wrong password, unless only the nonce grew old.
            (Some(offered), Some(answered)) if !offered.stale && answered.nonce == offered.nonce => {
                self.try_token(&mut learned)
            }
            // Some cameras challenge anew with every refusal and never say stale: a nonce that was accepted before may
            // be old, one that was not means a wrong password.
            (Some(offered), Some(answered)) if !offered.stale && answered.nc <= 1 => {
                learned.challenge = Some(offered);
                self.try_token(&mut learned)
            }
            (Some(offered), _) => {
                learned.challenge = Some(offered);
                Reaction::Again
            }
            (None, _) => self.try_token(&mut learned),
        }
    }

    fn try_token(&self, learned: &mut Learned) -> Reaction {
        if self.fallback && !learned.token {
            learned.token = true;
            return Reaction::Again;
        }
        Reaction::GiveUp
    }
}

/// Chooses the strongest of several challenges: SHA-512, then SHA-256, then MD5.
fn strongest(challenges: &[String]) -> Option<WwwAuthenticateHeader> {
    use digest_auth::AlgorithmType;
    let digests = challenges
        .iter()
        .filter_map(|challenge| WwwAuthenticateHeader::parse(challenge).ok());
    digests.max_by_key(|challenge| match challenge.algorithm.algo {
        AlgorithmType::MD5 => 0,
        AlgorithmType::SHA2_256 => 1,
        AlgorithmType::SHA2_512_256 => 2,
    })
}

/// WS-UsernameToken with a password digest (OASIS UsernameToken Profile 1.1, 3.1).
fn security(user: &User, created: Timestamp) -> String {
    let mut nonce = [0; 16];
    rand::rng().fill_bytes(&mut nonce);
    let created = created.round(Unit::Millisecond).unwrap_or(created).to_string();
    let mut digest = Sha1::new();
    digest.update(nonce);
    digest.update(&created);
    digest.update(&user.password);
    format!(
        "<wsse:Security xmlns:wsse=\"{WSSE}-wssecurity-secext-1.0.xsd\" \
         xmlns:wsu=\"{WSSE}-wssecurity-utility-1.0.xsd\" s:mustUnderstand=\"1\"><wsse:UsernameToken>\
         <wsse:Username>{}</wsse:Username><wsse:Password Type=\"{WSSE}-username-token-profile-1.0#PasswordDigest\">{}\
         </wsse:Password><wsse:Nonce EncodingType=\"{WSSE}-soap-message-security-1.0#Base64Binary\">{}</wsse:Nonce>\
         <wsu:Created>{created}</wsu:Created></wsse:UsernameToken></wsse:Security>",
        escape(&user.name),
        STANDARD.encode(digest.finalize()),
        STANDARD.encode(nonce),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authentication(fallback: bool) -> Authentication {
        let user = User {
            name: "admin".to_owned(),
            password: "secret".to_owned(),
        };
        Authentication::new(Some(user), fallback)
    }

    fn challenge(extra: &str) -> String {
        format!("Digest realm=\"cam\", nonce=\"n{extra}\", qop=\"auth\"{extra}")
    }

    #[test]
    fn a_challenge_is_answered_once_and_a_wrong_password_is_not_tried_again() {
        let authentication = authentication(false);
        assert_eq!(authentication.header(true, "/onvif"), None);
        assert_eq!(authentication.refused(&[challenge("")]), Reaction::Again);
        assert!(
            authentication
                .header(true, "/onvif")
                .unwrap()
                .contains("nc=00000001")
        );
        assert_eq!(authentication.refused(&[challenge("")]), Reaction::GiveUp);
    }

    #[test]
    fn an_old_nonce_is_renewed() {
        let authentication = authentication(false);
        assert_eq!(authentication.refused(&[challenge("")]), Reaction::Again);
        assert_eq!(
            authentication.refused(&[challenge(", stale=true")]),
            Reaction::Again
        );
    }

    #[test]
    fn the_token_is_sent_only_where_the_user_allows_it() {
        assert_eq!(authentication(false).refused(&[]), Reaction::GiveUp);
        let allowed = authentication(true);
        assert_eq!(allowed.refused(&[]), Reaction::Again);
        assert!(
            allowed
                .security_element(Timestamp::UNIX_EPOCH)
                .contains("PasswordDigest")
        );
        assert_eq!(allowed.refused(&[]), Reaction::GiveUp);
    }

    #[test]
    fn the_strongest_algorithm_is_chosen() {
        let weak = challenge(", algorithm=MD5");
        let strong = challenge(", algorithm=SHA-256");
        let authentication = authentication(false);
        assert_eq!(authentication.refused(&[weak, strong]), Reaction::Again);
        assert!(authentication.header(false, "/").unwrap().contains("SHA-256"));
    }
}
