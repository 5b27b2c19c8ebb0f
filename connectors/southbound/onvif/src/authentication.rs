//! How a camera is shown who asks: HTTP Digest (RFC 7616) first, WS-UsernameToken where the user allows it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use digest_auth::{AuthContext, HttpMethod, WwwAuthenticateHeader};
use jiff::{SignedDuration, Timestamp, Unit};
use parking_lot::Mutex;
use quick_xml::escape::escape;
use rand::RngCore;
use sha1::{Digest as _, Sha1};
use tracing::warn;

const WSSE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss";

/// A clock that is further off than this is worth a warning: events carry its time.
const NOTABLE_SKEW: SignedDuration = SignedDuration::from_secs(30);
/// How far a `Date` header may be from what is known of the clock before it is believed: it has whole seconds, and was on
/// its way.
const DATE_TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

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
    /// The last challenge of the services, and that of the pictures: many cameras serve them from two programs with
    /// two realms. Used again, with a rising count, until another comes.
    services: Option<WwwAuthenticateHeader>,
    pictures: Option<WwwAuthenticateHeader>,
    /// The camera's services accept only WS-UsernameToken.
    token: bool,
    /// The camera's pictures accept only HTTP Basic.
    basic: bool,
    /// How far the camera's clock is ahead of ours, once it is known.
    skew: Option<SignedDuration>,
}

impl Learned {
    fn challenge(&mut self, target: Target) -> &mut Option<WwwAuthenticateHeader> {
        match target {
            Target::Service => &mut self.services,
            Target::Picture => &mut self.pictures,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An operation of a service: a POST.
    Service,
    /// A picture: a GET.
    Picture,
}

/// What was tried for one request, so that nothing is tried twice: cameras lock users out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    target: Target,
    /// A challenge that came as answer to this very request was answered.
    digest: bool,
    token: bool,
    basic: bool,
    /// The clock was learned from the answer to this request.
    clock: bool,
    /// What was known of the clock before that.
    skew_before: Option<SignedDuration>,
}

/// What a camera said when it refused a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    /// Its `WWW-Authenticate` headers.
    pub(crate) challenges: Vec<String>,
    /// Its `Date` header.
    pub(crate) date: Option<Timestamp>,
}

/// What to do about an answer of 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Ask once more; the credentials will look otherwise.
    Again,
    /// The credentials are wrong, or of no kind that we send.
    GiveUp,
}

impl Attempt {
    /// Nothing was tried yet.
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            digest: false,
            token: false,
            basic: false,
            clock: false,
            skew_before: None,
        }
    }
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
    pub(crate) fn learn_clock(&self, camera: Timestamp, ours: Timestamp) {
        let skew = camera.duration_since(ours);
        let before = self.learned.lock().skew.replace(skew);
        if skew.abs() > NOTABLE_SKEW && before.is_none_or(|before| (before - skew).abs() > NOTABLE_SKEW) {
            warn!(seconds = skew.as_secs(), "the camera's clock is off");
        }
    }

    /// Value of the `Authorization` header for a request.
    pub(crate) fn authorization(&self, attempt: &mut Attempt, uri: &str) -> Option<String> {
        let user = self.user.as_ref()?;
        let mut learned = self.learned.lock();
        let method = match attempt.target {
            Target::Picture if learned.basic => {
                attempt.basic = true;
                let credentials = STANDARD.encode(format!("{}:{}", user.name, user.password));
                return Some(format!("Basic {credentials}"));
            }
            Target::Picture => HttpMethod::GET,
            Target::Service => HttpMethod::POST,
        };
        let context = AuthContext::new_with_method(&user.name, &user.password, uri, None::<&[u8]>, method);
        let challenge = learned.challenge(attempt.target).as_mut()?;
        let header = challenge.respond(&context).ok()?;
        Some(header.to_header_string())
    }

    /// The `Security` element for a SOAP request, if the camera wants one.
    pub(crate) fn security_element(&self, attempt: &mut Attempt, now: Timestamp) -> String {
        let learned = self.learned.lock();
        match &self.user {
            Some(user) if learned.token => {
                attempt.token = true;
                let skew = learned.skew.unwrap_or_default();
                security(user, now.saturating_add(skew).unwrap_or(now))
            }
            _ => String::new(),
        }
    }

    /// Learns from an answer that refused a request.
    pub(crate) fn refused(&self, attempt: &mut Attempt, refused: &Refused, now: Timestamp) -> Reaction {
        if self.user.is_none() {
            return Reaction::GiveUp;
        }
        // A camera that tells its clock only to those whom it knows tells it in the refusal too; and a clock that was
        // set since we asked for it looks like a wrong password.
        let moved = refused.date.filter(|_| !attempt.clock).filter(|date| {
            let known = self.learned.lock().skew;
            known.is_none_or(|known| (date.duration_since(now) - known).abs() > DATE_TOLERANCE)
        });
        if let Some(date) = moved {
            attempt.clock = true;
            attempt.skew_before = self.learned.lock().skew;
            self.learn_clock(date, now);
        }
        let mut learned = self.learned.lock();
        if let Some(offered) = strongest(&refused.challenges)
            // A challenge of this very request that was answered in vain means a wrong password, unless only its nonce
            // grew old meanwhile.
            && (offered.stale || !attempt.digest)
        {
            attempt.digest = true;
            learned.basic = false;
            *learned.challenge(attempt.target) = Some(offered);
            return Reaction::Again;
        }
        match attempt.target {
            Target::Picture if self.fallback && !attempt.basic && only_basic(&refused.challenges) => {
                learned.basic = true;
                Reaction::Again
            }
            Target::Service if self.fallback && (!attempt.token || moved.is_some()) => {
                learned.token = true;
                Reaction::Again
            }
            Target::Picture | Target::Service => {
                // The clock was not the reason, and the header perhaps that of a proxy.
                learned.skew = attempt.skew_before.or(learned.skew);
                Reaction::GiveUp
            }
        }
    }
}

/// Whether nothing better than HTTP Basic is offered: it shows the password to whoever listens.
fn only_basic(challenges: &[String]) -> bool {
    let is_basic = |challenge: &String| {
        let scheme = challenge.trim_start().get(..5);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"))
    };
    !challenges.is_empty() && challenges.iter().all(is_basic)
}

/// Chooses the strongest of several challenges: SHA-512, then SHA-256, then MD5.
fn strongest(challenges: &[String]) -> Option<WwwAuthenticateHeader> {
    use digest_auth::AlgorithmType;
    let digests = challenges
        .iter()
        // Its parser panics at others.
        .filter(|challenge| challenge.is_ascii())
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
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn authentication(fallback: bool) -> Authentication {
        let user = User {
            name: "admin".to_owned(),
            password: "secret".to_owned(),
        };
        Authentication::new(Some(user), fallback)
    }

    fn challenge(nonce: &str, extra: &str) -> Refused {
        Refused {
            challenges: vec![format!(
                "Digest realm=\"cam\", nonce=\"{nonce}\", qop=\"auth\"{extra}"
            )],
            date: None,
        }
    }

    fn basic() -> Refused {
        Refused {
            challenges: vec!["Basic realm=\"cam\"".to_owned()],
            date: None,
        }
    }

    #[test]
    fn a_challenge_is_answered_once_and_a_wrong_password_is_not_tried_again() {
        let authentication = authentication(false);
        let mut attempt = Attempt::new(Target::Service);
        assert_eq!(authentication.authorization(&mut attempt, "/onvif"), None);
        assert_eq!(
            authentication.refused(&mut attempt, &challenge("1", ""), NOW),
            Reaction::Again
        );
        let header = authentication.authorization(&mut attempt, "/onvif").unwrap();
        assert!(header.contains("nc=00000001"), "{header}");
        // Some cameras challenge anew with every refusal.
        for nonce in ["1", "2"] {
            assert_eq!(
                authentication.refused(&mut attempt, &challenge(nonce, ""), NOW),
                Reaction::GiveUp
            );
        }
    }

    #[test]
    fn an_old_nonce_is_renewed_whether_the_camera_says_stale_or_not() {
        let authentication = authentication(false);
        let mut attempt = Attempt::new(Target::Service);
        authentication.refused(&mut attempt, &challenge("1", ""), NOW);
        assert_eq!(
            authentication.refused(&mut attempt, &challenge("2", ", stale=true"), NOW),
            Reaction::Again
        );
        let mut later = Attempt::new(Target::Service);
        assert!(authentication.authorization(&mut later, "/onvif").is_some());
        assert_eq!(
            authentication.refused(&mut later, &challenge("3", ""), NOW),
            Reaction::Again
        );
    }

    #[test]
    fn pictures_and_services_have_challenges_of_their_own() {
        let authentication = authentication(false);
        let (mut service, mut picture) = (Attempt::new(Target::Service), Attempt::new(Target::Picture));
        authentication.refused(&mut service, &challenge("s", ""), NOW);
        authentication.refused(&mut picture, &challenge("p", ""), NOW);
        let header = authentication.authorization(&mut service, "/").unwrap();
        assert!(header.contains("nonce=\"s\""), "{header}");
    }

    #[test]
    fn the_token_is_sent_only_where_the_user_allows_it() {
        let mut attempt = Attempt::new(Target::Service);
        let refused = Refused::default();
        assert_eq!(
            authentication(false).refused(&mut attempt, &refused, NOW),
            Reaction::GiveUp
        );
        let allowed = authentication(true);
        assert_eq!(allowed.refused(&mut attempt, &refused, NOW), Reaction::Again);
        assert!(
            allowed
                .security_element(&mut attempt, NOW)
                .contains("PasswordDigest")
        );
        assert_eq!(allowed.refused(&mut attempt, &refused, NOW), Reaction::GiveUp);
    }

    #[test]
    fn basic_is_sent_only_where_nothing_better_is_offered_and_the_user_allows_it() {
        let mut attempt = Attempt::new(Target::Picture);
        assert_eq!(
            authentication(false).refused(&mut attempt, &basic(), NOW),
            Reaction::GiveUp
        );
        let allowed = authentication(true);
        assert_eq!(allowed.refused(&mut attempt, &basic(), NOW), Reaction::Again);
        let header = allowed.authorization(&mut attempt, "/").unwrap();
        assert!(header.starts_with("Basic "), "{header}");
        assert_eq!(allowed.refused(&mut attempt, &basic(), NOW), Reaction::GiveUp);

        let both = Refused {
            challenges: [basic().challenges, challenge("1", "").challenges].concat(),
            date: None,
        };
        let (allowed, mut attempt) = (authentication(true), Attempt::new(Target::Picture));
        allowed.refused(&mut attempt, &both, NOW);
        let header = allowed.authorization(&mut attempt, "/").unwrap();
        assert!(header.starts_with("Digest "), "{header}");
        assert_eq!(allowed.refused(&mut attempt, &both, NOW), Reaction::GiveUp);
    }

    #[test]
    fn the_clock_is_learned_from_a_refusal_and_again_when_it_was_set() {
        let at = |hours: i64| Refused {
            challenges: Vec::new(),
            date: NOW.checked_add(SignedDuration::from_hours(hours)).ok(),
        };
        let authentication = authentication(true);
        let mut attempt = Attempt::new(Target::Service);
        assert_eq!(authentication.refused(&mut attempt, &at(1), NOW), Reaction::Again);
        let element = authentication.security_element(&mut attempt, NOW);
        assert!(element.contains("1970-01-01T01:00:00Z"), "{element}");
        assert_eq!(
            authentication.refused(&mut attempt, &at(1), NOW),
            Reaction::GiveUp
        );

        let mut later = Attempt::new(Target::Service);
        authentication.security_element(&mut later, NOW);
        assert_eq!(authentication.refused(&mut later, &at(3), NOW), Reaction::Again);
        let element = authentication.security_element(&mut later, NOW);
        assert!(element.contains("1970-01-01T03:00:00Z"), "{element}");
        assert_eq!(authentication.refused(&mut later, &at(9), NOW), Reaction::GiveUp);
        let element = authentication.security_element(&mut Attempt::new(Target::Service), NOW);
        assert!(
            element.contains("1970-01-01T01:00:00Z"),
            "a date that did not help is forgotten: {element}"
        );
    }

    #[test]
    fn the_strongest_algorithm_is_chosen() {
        let weak = challenge("1", ", algorithm=MD5");
        let strong = challenge("1", ", algorithm=SHA-256");
        let authentication = authentication(false);
        let refused = Refused {
            challenges: [weak.challenges, strong.challenges].concat(),
            date: None,
        };
        let mut attempt = Attempt::new(Target::Picture);
        authentication.refused(&mut attempt, &refused, NOW);
        let header = authentication.authorization(&mut attempt, "/").unwrap();
        assert!(header.contains("SHA-256"), "{header}");
    }

    proptest! {
        #[test]
        fn no_challenge_panics(
            challenge in "(Digest |Basic |digest|Digest)?((realm|nonce|qop|algorithm|stale|opaque|domain|charset|userhash)\
                =?(\"|)[a-zA-Z0-9,\"\\\\= é-]{0,12}(\"|),? ?){0,6}",
            target in prop_oneof![Just(Target::Service), Just(Target::Picture)],
        ) {
            let authentication = authentication(true);
            let mut attempt = Attempt::new(target);
            let refused = Refused { challenges: vec![challenge.clone(), challenge], date: None };
            let stale = strongest(&refused.challenges).is_some_and(|challenge| challenge.stale);
            // However often it refuses, asking ends.
            let again = |_: &usize| {
                let _header = authentication.authorization(&mut attempt, "/onvif?a=b");
                let _element = authentication.security_element(&mut attempt, NOW);
                authentication.refused(&mut attempt, &refused, NOW) == Reaction::Again
            };
            prop_assert!((0..9).take_while(again).count() < 4 || stale);
        }
    }
}
