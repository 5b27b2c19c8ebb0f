//! Who a client is.
//!
//! | module | what |
//! |---|---|
//! | [`password`] | user names with passwords, hashes or SCRAM records |
//! | [`certificate`] | what a verified certificate says |
//! | [`token`] | JSON Web Tokens |
//! | [`exchange`], [`scram`] | enhanced authentication, in several steps |
//! | [`webhook`] | asking a service of the user |
//! | [`https`] | asking services of others |

mod certificate;
mod exchange;
mod https;
mod password;
mod scram;
mod token;
mod webhook;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::SystemTime};

use foreshore_crds::v1alpha1::broker::CertificateUserName;
use foreshore_tls::{CertificateDer, Role, RoleIdentity};

pub(crate) use self::{
    certificate::facts as certificate_facts,
    exchange::{Exchange, Step},
    password::Checks,
    token::Issuers,
};
use self::{password::User, webhook::Verdict};
pub use self::{
    password::{PasswordTable, WrongHash},
    token::{InvalidIssuer, ServiceAccountIssuer, TokenIssuer, TokenOptions},
    webhook::{InvalidWebhook, Webhook, WebhookOptions},
};
use crate::wire::ReasonCode;

/// What everybody is told who knows no password of a user: whether there is such a user is not told.
const WRONG_LOGIN: &str = "the client could not prove who it is";

/// A way to prove who a client is.
#[derive(Clone, Debug)]
pub enum Method {
    /// Lets in whoever comes, without a name.
    Anonymous,
    /// User names and passwords.
    Passwords(Arc<PasswordTable>),
    /// A certificate, which the listener's TLS configuration has verified.
    Certificate(CertificateUserName),
    /// A certificate of our own authority, which names a role; for our own listener only.
    Role,
    /// JSON Web Tokens, those of service accounts too, as the password or by enhanced authentication.
    Jwt(Arc<TokenIssuer>),
    /// A service of the user, which is asked.
    Webhook(Arc<Webhook>),
}

/// What let a client in. It stays only as long as that would let it in again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Nothing was asked for.
    #[default]
    Nothing,
    /// The password of a user.
    Password(User),
    /// A certificate.
    Certificate,
    /// A certificate of a role of ours.
    Role,
    /// A token of an issuer.
    Token(Arc<TokenIssuer>),
    /// The word of a service.
    Webhook(Arc<Webhook>),
    /// A ticket of the broker's own probe.
    Probe,
}

/// When a client has to prove anew who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// When.
    pub(crate) at: SystemTime,
    /// What it is told then.
    pub(crate) detail: &'static str,
}

/// Why a client is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// What the client is told.
    pub(crate) reason: ReasonCode,
    /// Why, for the log and the reason string.
    pub(crate) detail: Cow<'static, str>,
}

impl Rejected {
    fn new(reason: ReasonCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// Who a client is, as its listener found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Principal {
    /// User name; nobody who is anonymous has one.
    pub(crate) username: Option<String>,
    /// Groups of the user.
    pub(crate) groups: Vec<String>,
    /// Facts of its certificate: `CN`, `O`, `dns`, …; each may have several values.
    pub(crate) certificate: BTreeMap<String, Vec<String>>,
    /// What is known of the user beside, by name.
    pub(crate) attributes: BTreeMap<String, String>,
    /// The role of ours that its certificate names, on our own listener only.
    pub(crate) role: Option<RoleIdentity>,
    /// What let it in.
    pub(crate) proof: Proof,
    /// When it has to prove anew who it is; never where there is none.
    pub(crate) expiry: Option<Expiry>,
}

/// Kinds of clients, as metrics tell them apart: our own roles, others by how they prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientClass {
    /// A connector of ours.
    Connector,
    /// A runner of dataflows of ours.
    Dataflow,
    /// The operator, or another role of ours.
    Operator,
    /// Nothing was asked for.
    Anonymous,
    /// The password of a user, SCRAM included.
    Password,
    /// A certificate.
    Certificate,
    /// A JSON Web Token.
    Token,
    /// The word of a service of the user.
    Webhook,
    /// The broker itself, which looks at its listener.
    Probe,
}

impl ClientClass {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Connector,
        Self::Dataflow,
        Self::Operator,
        Self::Anonymous,
        Self::Password,
        Self::Certificate,
        Self::Token,
        Self::Webhook,
        Self::Probe,
    ];

    /// Its name in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Connector => "connector",
            Self::Dataflow => "dataflow",
            Self::Operator => "operator",
            Self::Anonymous => "anonymous",
            Self::Password => "password",
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::Webhook => "webhook",
            Self::Probe => "probe",
        }
    }
}

/// What a client shows.
#[derive(Debug)]
pub(crate) struct Credentials<'a> {
    /// Client identifier.
    pub(crate) client_id: &'a str,
    /// Name of the listener that it shows them to.
    pub(crate) listener: &'a str,
    /// User name.
    pub(crate) username: Option<&'a str>,
    /// Password.
    pub(crate) password: Option<&'a [u8]>,
    /// Its verified certificates, its own first.
    pub(crate) certificates: &'a [CertificateDer<'a>],
}

impl Principal {
    /// Whether it is one of our own roles that speaks MQTT: it may do what its plan makes it do, and its numbers are
    /// believed.
    pub(crate) fn is_own_role(&self) -> bool {
        let own = [Role::Broker, Role::Connector, Role::Dataflow, Role::Operator];
        self.role
            .as_ref()
            .is_some_and(|identity| own.contains(&identity.role()))
    }

    /// The broker itself, which looks at one of its listeners.
    pub(crate) fn probe() -> Self {
        Self {
            proof: Proof::Probe,
            ..Self::default()
        }
    }

    /// Whether it is the broker itself, which looks at one of its listeners.
    pub(crate) fn is_probe(&self) -> bool {
        self.proof == Proof::Probe
    }

    /// Whether it is one of our own roles or the broker itself, whom no policy concerns.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_own_role() || self.is_probe()
    }

    /// Which kind of client it is.
    pub(crate) fn class(&self) -> ClientClass {
        match &self.proof {
            Proof::Nothing => ClientClass::Anonymous,
            Proof::Password(_) => ClientClass::Password,
            Proof::Certificate => ClientClass::Certificate,
            Proof::Role => match self.role.as_ref().map(RoleIdentity::role) {
                Some(Role::Connector) => ClientClass::Connector,
                Some(Role::Dataflow) => ClientClass::Dataflow,
                _ => ClientClass::Operator,
            },
            Proof::Token(_) => ClientClass::Token,
            Proof::Probe => ClientClass::Probe,
            Proof::Webhook(_) => ClientClass::Webhook,
        }
    }

    /// Judges a client that was let in before by methods that have changed since: whoever has another password now, or
    /// none, has to prove anew who it is; groups count as they are now.
    ///
    /// # Errors
    /// When the client has to leave.
    pub(crate) fn renew(&mut self, methods: &[Method]) -> Result<(), ReasonCode> {
        let has = |wanted: fn(&Method) -> bool| methods.iter().any(wanted);
        let still = match &self.proof {
            Proof::Probe => true,
            Proof::Nothing => has(|method| matches!(method, Method::Anonymous)),
            Proof::Certificate => has(|method| matches!(method, Method::Certificate(_))),
            Proof::Role => has(|method| matches!(method, Method::Role)),
            Proof::Token(issuer) => methods
                .iter()
                .any(|method| matches!(method, Method::Jwt(other) if other == issuer)),
            Proof::Webhook(webhook) => methods
                .iter()
                .any(|method| matches!(method, Method::Webhook(other) if other == webhook)),
            Proof::Password(known) => {
                let name = self.username.as_deref().unwrap_or_default();
                let user = methods.iter().find_map(|method| match method {
                    Method::Passwords(table) => table.unchanged(name, known),
                    _ => None,
                });
                if let Some(user) = user {
                    self.groups.clone_from(&user.groups);
                }
                user.is_some()
            }
        };
        if still {
            Ok(())
        } else {
            Err(ReasonCode::NotAuthorized)
        }
    }

    /// Whether two are the same user or role: who proves anew who it is can't become somebody else.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        (&self.username, &self.role) == (&other.username, &other.role)
    }

    /// Values of a fact of the certificate.
    pub(crate) fn facts(&self, fact: &str) -> impl Iterator<Item = &str> {
        self.certificate
            .get(fact)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// Finds out who a client is: the first method that knows it decides.
///
/// # Errors
/// What the client is told.
pub(crate) async fn authenticate(
    methods: &[Method],
    shown: &Credentials<'_>,
    checks: &password::Checks,
) -> Result<Principal, Rejected> {
    let wrong_login = || Rejected::new(ReasonCode::BadUserNameOrPassword, WRONG_LOGIN);
    let certificate = certificate::facts(shown.certificates);
    for method in methods {
        let known = match method {
            Method::Anonymous => Some(Principal::default()),
            Method::Passwords(table) => match (shown.username, table.user(shown.username)) {
                (Some(username), Some(user)) => {
                    if !checks.verify(user, shown.password.unwrap_or_default()).await {
                        return Err(wrong_login());
                    }
                    Some(Principal {
                        username: Some(username.to_owned()),
                        groups: user.groups.clone(),
                        proof: Proof::Password(user.clone()),
                        ..Principal::default()
                    })
                }
                _ => None,
            },
            Method::Certificate(name) => {
                certificate::username(&certificate, *name).map(|username| Principal {
                    username: Some(username),
                    proof: Proof::Certificate,
                    ..Principal::default()
                })
            }
            Method::Role => foreshore_tls::peer_identity(shown.certificates).map(|role| Principal {
                role: Some(role),
                proof: Proof::Role,
                ..Principal::default()
            }),
            Method::Jwt(issuer) => match shown.password {
                Some(token) if issuer.is_named_by(token) => Some(issuer.verify(token, checks).await?),
                _ => None,
            },
            Method::Webhook(webhook) => match webhook.ask(shown).await {
                Verdict::Known(principal) => Some(*principal),
                Verdict::Refused => return Err(Rejected::new(ReasonCode::NotAuthorized, WRONG_LOGIN)),
                Verdict::Silent => None,
            },
        };
        if let Some(principal) = known {
            return Ok(Principal {
                certificate,
                ..principal
            });
        }
    }
    // An unknown user is told what a wrong password is told, after as much work.
    if let (Some(_), Some(password)) = (shown.username, shown.password) {
        checks.pretend(password).await;
        return Err(wrong_login());
    }
    Err(Rejected::new(ReasonCode::NotAuthorized, WRONG_LOGIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(username: Option<&'a str>, password: Option<&'a str>) -> Credentials<'a> {
        Credentials {
            client_id: "c",
            listener: "l",
            username,
            password: password.map(str::as_bytes),
            certificates: &[],
        }
    }

    #[tokio::test]
    async fn the_first_method_that_knows_the_client_decides() {
        let table = PasswordTable::new([("alice".to_owned(), b"secret".to_vec())], &[]).unwrap();
        let methods = [Method::Passwords(Arc::new(table)), Method::Anonymous];
        let checks = Checks::default();
        let try_with = async |username, password| {
            let tried = authenticate(&methods, &shown(username, password), &checks).await;
            tried.map_err(|rejected| rejected.reason)
        };
        let alice = try_with(Some("alice"), Some("secret")).await.unwrap();
        assert_eq!(alice.username.as_deref(), Some("alice"));
        let refused = Err(ReasonCode::BadUserNameOrPassword);
        assert_eq!(try_with(Some("alice"), Some("wrong")).await, refused);
        assert_eq!(try_with(Some("alice"), None).await, refused);
        assert_eq!(try_with(None, None).await, Ok(Principal::default()));
        assert_eq!(try_with(Some("bob"), Some("x")).await.unwrap().username, None);

        let mut staying = alice.clone();
        let same = PasswordTable::new([("alice".to_owned(), b"secret".to_vec())], &[]).unwrap();
        assert_eq!(staying.renew(&[Method::Passwords(Arc::new(same))]), Ok(()));
        let other = PasswordTable::new([("alice".to_owned(), b"changed".to_vec())], &[]).unwrap();
        assert!(
            staying
                .renew(&[Method::Passwords(Arc::new(other)), Method::Anonymous])
                .is_err()
        );
        assert_eq!(Principal::default().renew(&methods), Ok(()));
        assert!(Principal::default().renew(&methods[..1]).is_err());

        let strict = &methods[..1];
        let bob = shown(Some("bob"), Some("x"));
        let reason = async |shown| authenticate(strict, &shown, &checks).await.unwrap_err().reason;
        assert_eq!(reason(bob).await, ReasonCode::BadUserNameOrPassword);
        assert_eq!(reason(shown(None, None)).await, ReasonCode::NotAuthorized);
    }
}
