//! References to Secrets, and whether they hold what is needed.

use foreshore_control::plan::SecretValue;
use foreshore_crds::{
    conditions::reasons,
    refs::{
        CA_CERTIFICATE_KEY, CA_REVOCATION_KEY, CredentialsSecretRef, ENCRYPTION_ACTIVE_KEY,
        ENCRYPTION_KEY_LEN, SecretKeyRef, SecretRef, TLS_CERTIFICATE_KEY, TLS_PRIVATE_KEY_KEY,
    },
    v1alpha1::common::{Authentication, Trust, UsernamePassword, X509},
};
use foreshore_tls::{Credentials, RevocationLists, TrustBundle};

use crate::{judged::Secret, object::Kind, problem::Problem};

use super::{Faults, Name, Scope, enumerate};

/// The Secrets that an object needs, looked up one by one.
pub(crate) struct Secrets<'s, 'a> {
    scope: &'s Scope<'a>,
    namespace: &'s str,
    pub(crate) names: Vec<Name>,
    pub(crate) faults: Faults,
}

impl<'a> Scope<'a> {
    /// Begins to look up the Secrets of an object.
    pub(crate) fn secrets<'s>(&'s self, namespace: &'s str) -> Secrets<'s, 'a> {
        Secrets {
            scope: self,
            namespace,
            names: Vec::new(),
            faults: Faults::default(),
        }
    }
}

impl<'s> Secrets<'s, '_> {
    /// Names without repetition, and what was wrong.
    pub(crate) fn finish(mut self) -> (Vec<Name>, Faults) {
        self.names.sort();
        self.names.dedup();
        (self.names, self.faults)
    }

    /// How we prove who we are.
    pub(crate) fn authentication(&mut self, authentication: Option<&Authentication>, field: &str) {
        let Some(Authentication {
            anonymous: _,
            username_password,
            x509,
        }) = authentication
        else {
            return;
        };
        self.username_password(username_password.as_ref(), &format!("{field}.usernamePassword"));
        self.x509(x509.as_ref(), &format!("{field}.x509"));
    }

    /// A user name and a password.
    pub(crate) fn username_password(&mut self, login: Option<&UsernamePassword>, field: &str) {
        if let Some(UsernamePassword { secret_ref }) = login {
            self.credentials(secret_ref, &format!("{field}.secretRef"));
        }
    }

    /// A certificate and its key.
    pub(crate) fn x509(&mut self, certificate: Option<&X509>, field: &str) {
        if let Some(X509 { secret_ref }) = certificate {
            self.certificate(secret_ref, &format!("{field}.secretRef"));
        }
    }

    /// A user name and a password, by their Secret.
    pub(crate) fn credentials(&mut self, reference: &CredentialsSecretRef, field: &str) {
        if let Some(secret) = self.secret(&reference.name, field) {
            self.text(secret, &reference.name, reference.effective_username_key(), field);
            self.text(secret, &reference.name, reference.effective_password_key(), field);
        }
    }

    /// One text.
    pub(crate) fn value(&mut self, reference: &SecretKeyRef, default: &str, field: &str) {
        if let Some(secret) = self.secret(&reference.name, field) {
            self.text(secret, &reference.name, reference.effective_key(default), field);
        }
    }

    /// A text under the key that is named, or under every key where none is.
    pub(crate) fn one_or_all(&mut self, reference: &SecretKeyRef, field: &str) {
        match &reference.key {
            Some(key) => self.value(reference, key, field),
            None => self.all_of(
                &SecretRef {
                    name: reference.name.clone(),
                },
                field,
            ),
        }
    }

    /// A certificate with its key, in a Secret of type `kubernetes.io/tls`.
    pub(crate) fn certificate(&mut self, reference: &SecretRef, field: &str) {
        let Some(secret) = self.secret(&reference.name, field) else {
            return;
        };
        let chain = self.bytes(secret, &reference.name, TLS_CERTIFICATE_KEY, field);
        let key = self.bytes(secret, &reference.name, TLS_PRIVATE_KEY_KEY, field);
        if let (Some(chain), Some(key)) = (chain, key)
            && let Err(error) = Credentials::from_pem(chain, key)
        {
            self.invalid(
                &reference.name,
                "no certificate with its key",
                error.to_string(),
                field,
            );
        }
    }

    /// Authorities to trust, under the key `ca.crt`.
    pub(crate) fn authorities(&mut self, reference: Option<&SecretRef>, field: &str) {
        let Some(reference) = reference else { return };
        if let Some(secret) = self.secret(&reference.name, field)
            && let Some(authorities) = self.bytes(secret, &reference.name, CA_CERTIFICATE_KEY, field)
        {
            self.check_certificates(authorities, &reference.name, CA_CERTIFICATE_KEY, field);
        }
    }

    /// Authorities of clients, under the key `ca.crt`, and the certificates that they have revoked, under `ca.crl`.
    pub(crate) fn client_authorities(&mut self, reference: &SecretRef, field: &str) {
        self.authorities(Some(reference), field);
        let data = self
            .scope
            .valid
            .secrets
            .get(&Name::new(self.namespace, reference.name.as_str()));
        let Some((authorities, revoked)) = data.map(|secret| &secret.data).and_then(|data| {
            let authorities = data.get(CA_CERTIFICATE_KEY)?;
            Some((authorities, data.get(CA_REVOCATION_KEY)?))
        }) else {
            return;
        };
        // Authorities that are none were told of above.
        let Ok(authorities) = TrustBundle::from_pem(&authorities.0) else {
            return;
        };
        let lists = RevocationLists::from_pem(&revoked.0);
        if let Err(error) = lists.and_then(|lists| authorities.revoking(lists)) {
            let what =
                format!("key {CA_REVOCATION_KEY} holds no list of revoked certificates that can be used");
            self.invalid(&reference.name, &what, error.to_string(), field);
        }
    }

    /// Certificates of the other side to trust.
    pub(crate) fn trust(&mut self, trust: Option<&Trust>, field: &str) {
        let Some(Trust {
            certificates_secret_ref: Some(reference),
            ..
        }) = trust
        else {
            return;
        };
        let field = format!("{field}.certificatesSecretRef");
        let Some(secret) = self.secret(&reference.name, &field) else {
            return;
        };
        let mut any = false;
        for (key, value) in &secret.data {
            if key.ends_with(".crt") || key.ends_with(".pem") {
                any = true;
                self.check_certificates(&value.0, &reference.name, key, &field);
            }
        }
        if !any {
            let message = format!("Secret {} has no certificate to trust", reference.name);
            let found = enumerate(secret.data.keys());
            let problem = Problem::new(reasons::SECRET_KEY_MISSING, message).field(field);
            self.faults
                .add(problem.found(found).allowed("keys that end in .crt or .pem"));
        }
    }

    /// Keys of a store. Its Secret is mounted into the pod and not among those of its plan, which is kept beside the store.
    pub(crate) fn encryption_keys(&mut self, reference: &SecretRef, field: &str) {
        let known = self.names.len();
        let secret = self.secret(&reference.name, field);
        self.names.truncate(known);
        let Some(secret) = secret else { return };
        let is_key = |name: &&String| name.as_str() != ENCRYPTION_ACTIVE_KEY;
        let keys: Vec<_> = secret.data.keys().filter(is_key).collect();
        let active = secret.data.get(ENCRYPTION_ACTIVE_KEY);
        let active = active.map(|SecretValue(value)| String::from_utf8_lossy(value).trim().to_owned());
        for (name, SecretValue(value)) in secret.data.iter().filter(|(name, _)| is_key(name)) {
            if value.len() != ENCRYPTION_KEY_LEN {
                let what = format!("key {name} has not the {ENCRYPTION_KEY_LEN} bytes of an encryption key");
                self.invalid(&reference.name, &what, format!("{} bytes", value.len()), field);
            }
        }
        let what = match active {
            Some(active) if keys.iter().any(|key| **key == active) => return,
            Some(active) => format!("key {ENCRYPTION_ACTIVE_KEY} names {active:?}, which is not there"),
            None if keys.len() == 1 => return,
            None if keys.is_empty() => "it has no encryption key".to_owned(),
            None => format!("key {ENCRYPTION_ACTIVE_KEY} does not say which of several keys is in use"),
        };
        self.invalid(&reference.name, &what, enumerate(keys.iter()), field);
    }

    /// A Secret of which each value counts.
    pub(crate) fn all_of(&mut self, reference: &SecretRef, field: &str) {
        if let Some(secret) = self.secret(&reference.name, field)
            && secret.data.is_empty()
        {
            let message = format!("Secret {} is empty", reference.name);
            self.faults.add(
                Problem::new(reasons::SECRET_KEY_MISSING, message)
                    .field(field)
                    .allowed("at least one key"),
            );
        }
    }

    /// The Secret itself.
    pub(crate) fn secret(&mut self, name: &str, field: &str) -> Option<&'s Secret> {
        let wanted = Name::new(self.namespace, name);
        if let Some(secret) = self.scope.valid.secrets.get(&wanted) {
            self.names.push(wanted);
            return Some(secret);
        }
        let field = format!("{field}.name");
        if self.scope.declared.contains(&wanted.key(Kind::Secret)) {
            let message = format!("Secret {wanted} is not accepted itself");
            self.faults.add(
                Problem::new(reasons::REF_NOT_ACCEPTED, message)
                    .field(field)
                    .found(name),
            );
            return None;
        }
        let others: Vec<_> = self
            .scope
            .valid
            .secrets
            .keys()
            .filter(|known| known.namespace == self.namespace)
            .collect();
        let message = format!("no Secret of that name in namespace {}", self.namespace);
        let problem = Problem::new(reasons::SECRET_NOT_FOUND, message)
            .field(field)
            .found(name);
        let problem = problem.allowed(enumerate(others.iter().map(|known| &known.name)));
        self.faults.add(problem.nearest(foreshore_record::nearest(
            name,
            others.iter().map(|known| known.name.as_str()),
        )));
        None
    }

    fn bytes(&mut self, secret: &'s Secret, name: &str, key: &str, field: &str) -> Option<&'s [u8]> {
        let value = secret.data.get(key).map(|SecretValue(value)| value.as_slice());
        if value.is_none() {
            let message = format!("Secret {name} lacks the key {key}");
            let keys = secret.data.keys();
            self.faults.add(
                Problem::new(reasons::SECRET_KEY_MISSING, message)
                    .field(field)
                    .found(enumerate(keys.clone()))
                    .allowed(key)
                    .nearest(foreshore_record::nearest(key, keys.map(String::as_str))),
            );
        }
        value
    }

    fn text(&mut self, secret: &'s Secret, name: &str, key: &str, field: &str) {
        let Some(value) = self.bytes(secret, name, key, field) else {
            return;
        };
        let wrong = match std::str::from_utf8(value) {
            Err(_) => "bytes that are no UTF-8",
            Ok(text) if text.trim().is_empty() => "nothing",
            Ok(_) => return,
        };
        self.invalid(name, &format!("key {key} is no text"), wrong.to_owned(), field);
    }

    fn check_certificates(&mut self, value: &[u8], name: &str, key: &str, field: &str) {
        // Certificates without PEM's frame are left to the protocol that wants them.
        let framed = value.trim_ascii_start().starts_with(b"-----BEGIN");
        if (framed || key == CA_CERTIFICATE_KEY)
            && let Err(error) = TrustBundle::from_pem(value)
        {
            self.invalid(
                name,
                &format!("key {key} holds no certificate"),
                error.to_string(),
                field,
            );
        }
    }

    fn invalid(&mut self, name: &str, what: &str, found: String, field: &str) {
        let problem = Problem::new(reasons::SECRET_INVALID, format!("Secret {name}: {what}"));
        self.faults.add(problem.field(field).found(found));
    }
}
