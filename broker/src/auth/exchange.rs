//! Enhanced authentication (MQTT 5.0 section 4.12): what is said with AUTH, without the packets.
//!
//! | method | what the client says | where it counts |
//! |---|---|---|
//! | `SCRAM-SHA-256` | two messages of RFC 5802 | listeners with user names and passwords |
//! | `JWT` | a token | listeners with an issuer of tokens |
//! | `K8S-SAT` | a token of a service account | listeners with those of the cluster |
//!
//! Each method has as many steps as it needs and no more, so that an exchange always ends.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Checks, Method, PasswordTable, Principal, Proof, Rejected, WRONG_LOGIN,
    scram::{self, Challenge, ClientFirst, Failure, Salting},
    token::{self, TokenIssuer},
};
use crate::wire::ReasonCode;

/// Bytes of a nonce: as many as of the shortest key that counts as safe.
const NONCE: usize = 18;

/// An exchange that waits for the client.
#[derive(Debug)]
pub(crate) struct Exchange(State);

#[derive(Debug)]
enum State {
    /// For its first message.
    Scram {
        tables: Vec<Arc<PasswordTable>>,
        asked: bool,
    },
    /// For its proof.
    ScramProof(Box<ScramProof>),
    /// For its token.
    Token {
        issuers: Vec<Arc<TokenIssuer>>,
        asked: bool,
    },
}

#[derive(Debug)]
struct ScramProof {
    challenge: Challenge,
    username: String,
    salting: Salting,
    table: Arc<PasswordTable>,
}

/// What a message of the client comes to.
#[derive(Debug)]
pub(crate) enum Step {
    /// It is told this, and has to say more.
    Continue(Exchange, Option<Bytes>),
    /// It is who it says, and is told this.
    Done(Box<Principal>, Option<Bytes>),
}

impl Exchange {
    /// Begins an exchange.
    ///
    /// # Errors
    /// With [`ReasonCode::BadAuthenticationMethod`] when none of the listener's ways to prove who a client is has that
    /// method.
    pub(crate) fn begin(method: &str, ways: &[Method]) -> Result<Self, Rejected> {
        let passwords = |way: &Method| match way {
            Method::Passwords(table) => Some(Arc::clone(table)),
            _ => None,
        };
        let issuer = |way: &Method| match way {
            Method::Jwt(issuer) => Some(Arc::clone(issuer)),
            _ => None,
        };
        let asked = false;
        let tables: Vec<_> = ways.iter().filter_map(passwords).collect();
        let mut issuers: Vec<_> = ways.iter().filter_map(issuer).collect();
        let issuers = match method {
            token::NAME => issuers,
            token::SERVICE_ACCOUNT_NAME => {
                issuers.retain(|issuer| issuer.is_of_service_accounts());
                issuers
            }
            _ => Vec::new(),
        };
        match method {
            _ if !issuers.is_empty() => Ok(Self(State::Token { issuers, asked })),
            scram::NAME if !tables.is_empty() => Ok(Self(State::Scram { tables, asked })),
            _ => {
                let detail = "the authentication method is not offered here";
                Err(Rejected::new(ReasonCode::BadAuthenticationMethod, detail))
            }
        }
    }

    /// Takes what the client says.
    ///
    /// # Errors
    /// When it can't prove who it is.
    pub(crate) async fn step(self, data: Option<Bytes>, checks: &Checks) -> Result<Step, Rejected> {
        let data = data.unwrap_or_default();
        match self.0 {
            // A client may begin without a message (section 4.12): it is asked for one, once.
            State::Scram { tables, asked: false } if data.is_empty() => {
                let asked = true;
                Ok(Step::Continue(Self(State::Scram { tables, asked }), None))
            }
            State::Token {
                issuers,
                asked: false,
            } if data.is_empty() => {
                let asked = true;
                Ok(Step::Continue(Self(State::Token { issuers, asked }), None))
            }
            State::Scram { tables, .. } => challenge(&tables, &data),
            State::ScramProof(proof) => proof.judge(&data, checks).await,
            State::Token { issuers, .. } => {
                let issuer = issuers.iter().find(|issuer| issuer.is_named_by(&data));
                let Some(issuer) = issuer else {
                    let detail = "it is not a token of an issuer that is believed here";
                    return Err(Rejected::new(ReasonCode::NotAuthorized, detail));
                };
                let principal = issuer.verify(&data, checks).await?;
                Ok(Step::Done(Box::new(principal), None))
            }
        }
    }
}

fn failed(failure: Failure) -> Rejected {
    match failure {
        Failure::Malformed(detail) => Rejected::new(ReasonCode::NotAuthorized, detail),
        Failure::WrongProof => Rejected::new(ReasonCode::BadUserNameOrPassword, WRONG_LOGIN),
    }
}

fn challenge(tables: &[Arc<PasswordTable>], message: &[u8]) -> Result<Step, Rejected> {
    let no_random = || {
        Rejected::new(
            ReasonCode::ServerUnavailable,
            "the system gives no random numbers",
        )
    };
    let first = ClientFirst::parse(message).map_err(failed)?;
    let username = first.username.clone();
    // The first table that knows the user decides; whom none knows is challenged like somebody of the first.
    let known = tables.iter().find(|table| table.user(Some(&username)).is_some());
    let table = known.or_else(|| tables.first()).cloned().unwrap_or_default();
    let salting = table.salting(&username).ok_or_else(no_random)?;
    let mut nonce = [0; NONCE];
    SystemRandom::new().fill(&mut nonce).map_err(|_| no_random())?;
    let challenge = first.challenge(&salting, &STANDARD.encode(nonce));
    let message = Bytes::copy_from_slice(challenge.message.as_bytes());
    let proof = ScramProof {
        challenge,
        username,
        salting,
        table,
    };
    Ok(Step::Continue(
        Exchange(State::ScramProof(Box::new(proof))),
        Some(message),
    ))
}

impl ScramProof {
    async fn judge(self, message: &[u8], checks: &Checks) -> Result<Step, Rejected> {
        let Self {
            challenge,
            username,
            salting,
            table,
        } = self;
        let keys = table.keys(&username, salting, checks).await;
        let last = challenge.judge(message, &keys).map_err(failed)?;
        // Nobody has the keys of nobody.
        let user = table
            .user(Some(&username))
            .ok_or_else(|| failed(Failure::WrongProof))?;
        let principal = Principal {
            username: Some(username),
            groups: user.groups.clone(),
            proof: Proof::Password(user.clone()),
            ..Principal::default()
        };
        Ok(Step::Done(Box::new(principal), Some(last.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(users: &[(&str, &str)]) -> Method {
        let users = users
            .iter()
            .map(|(name, password)| ((*name).to_owned(), password.as_bytes().to_vec()));
        Method::Passwords(Arc::new(PasswordTable::new(users, &[]).unwrap()))
    }

    #[tokio::test]
    async fn methods_are_offered_where_they_can_be_used() {
        let reason = |method, ways: &[Method]| Exchange::begin(method, ways).err().map(|error| error.reason);
        let bad = Some(ReasonCode::BadAuthenticationMethod);
        assert_eq!(reason("SCRAM-SHA-256", &[Method::Anonymous]), bad);
        assert_eq!(reason("SCRAM-SHA-256", &[users(&[])]), None);
        for method in ["SCRAM-SHA-1", "scram-sha-256", "JWT", ""] {
            assert_eq!(reason(method, &[users(&[])]), bad, "{method}");
        }
    }

    #[tokio::test]
    async fn an_exchange_ends_after_as_many_steps_as_it_needs() {
        let checks = Checks::default();
        let ways = [users(&[("alice", "secret")]), users(&[("bob", "secret")])];
        let begin = || Exchange::begin("SCRAM-SHA-256", &ways).unwrap();
        // Who says nothing is asked once.
        let Step::Continue(exchange, None) = begin().step(None, &checks).await.unwrap() else {
            panic!()
        };
        assert!(exchange.step(Some(Bytes::new()), &checks).await.is_err());
        for name in ["alice", "bob", "nobody"] {
            let first = Bytes::from(format!("n,,n={name},r=x"));
            let Step::Continue(exchange, Some(challenge)) = begin().step(Some(first), &checks).await.unwrap()
            else {
                panic!()
            };
            let challenge = String::from_utf8(challenge.to_vec()).unwrap();
            let nonce = challenge.split(',').next().unwrap();
            let proof = STANDARD.encode([7; 32]);
            let last = Bytes::from(format!("c=biws,{nonce},p={proof}"));
            let error = exchange.step(Some(last), &checks).await.unwrap_err();
            assert_eq!(
                error,
                Rejected::new(ReasonCode::BadUserNameOrPassword, WRONG_LOGIN),
                "{name}"
            );
        }
    }
}
