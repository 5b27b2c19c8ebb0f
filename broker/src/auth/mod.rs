//! Who a client is.

mod certificate;
mod password;

use std::{collections::BTreeMap, sync::Arc};

use foreshore_crds::v1alpha1::broker::CertificateUserName;
use foreshore_tls::{CertificateDer, Role, RoleIdentity};

use self::password::User;
pub use self::password::{PasswordTable, WrongHash};
use crate::wire::ReasonCode;

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
    /// The role of ours that its certificate names, on our own listener only.
    pub(crate) role: Option<RoleIdentity>,
    /// The entry of the password table that let it in.
    pub(crate) user: Option<User>,
}

/// What a client shows.
#[derive(Debug)]
pub(crate) struct Credentials<'a> {
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

    /// Judges a client that was let in before by methods that have changed since: whoever has another password now, or
    /// none, has to prove anew who it is; groups count as they are now.
    ///
    /// # Errors
    /// When the client has to leave.
    pub(crate) fn renew(&mut self, methods: &[Method]) -> Result<(), ReasonCode> {
        let tables = || {
            methods.iter().filter_map(|method| match method {
                Method::Passwords(table) => Some(table),
                _ => None,
            })
        };
        let has = |wanted: fn(&Method) -> bool| methods.iter().any(wanted);
        let still = match (&self.username, &self.user) {
            (Some(name), Some(known)) => match tables().find_map(|table| table.unchanged(name, known)) {
                Some(user) => {
                    self.groups.clone_from(&user.groups);
                    true
                }
                None => false,
            },
            (Some(_), None) => has(|method| matches!(method, Method::Certificate(_))),
            (None, _) if self.role.is_some() => has(|method| matches!(method, Method::Role)),
            (None, _) => has(|method| matches!(method, Method::Anonymous)),
        };
        if still {
            Ok(())
        } else {
            Err(ReasonCode::NotAuthorized)
        }
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
) -> Result<Principal, ReasonCode> {
    let certificate = certificate::facts(shown.certificates);
    for method in methods {
        let known = match method {
            Method::Anonymous => Some(Principal::default()),
            Method::Passwords(table) => match (shown.username, table.user(shown.username)) {
                (Some(username), Some(user)) => {
                    if !checks.verify(user, shown.password.unwrap_or_default()).await {
                        return Err(ReasonCode::BadUserNameOrPassword);
                    }
                    Some(Principal {
                        username: Some(username.to_owned()),
                        groups: user.groups.clone(),
                        user: Some(user.clone()),
                        ..Principal::default()
                    })
                }
                _ => None,
            },
            Method::Certificate(name) => {
                certificate::username(&certificate, *name).map(|username| Principal {
                    username: Some(username),
                    ..Principal::default()
                })
            }
            Method::Role => foreshore_tls::peer_identity(shown.certificates).map(|role| Principal {
                role: Some(role),
                ..Principal::default()
            }),
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
        return Err(ReasonCode::BadUserNameOrPassword);
    }
    Err(ReasonCode::NotAuthorized)
}

pub(crate) use self::password::Checks;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(username: Option<&'a str>, password: Option<&'a str>) -> Credentials<'a> {
        Credentials {
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
        let try_with =
            async |username, password| authenticate(&methods, &shown(username, password), &checks).await;
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
        assert_eq!(authenticate(strict, &bob, &checks).await, refused);
        let nobody = shown(None, None);
        assert_eq!(
            authenticate(strict, &nobody, &checks).await,
            Err(ReasonCode::NotAuthorized)
        );
    }
}
