//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, without channel binding. Everything here is pure.
//!
//! ```text
//! client                                                    server
//! n,,n=NAME,r=NONCE                                     ──►
//!                       ◄── r=NONCE and ours,s=SALT,i=ITERATIONS
//! c=biws,r=both nonces,p=PROOF                          ──►
//!                       ◄── v=SIGNATURE
//! ```
//!
//! Names and passwords are prepared with `SASLprep` (RFC 4013), which changes nothing in printable ASCII.

use std::{borrow::Cow, num::NonZeroU32};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
    hmac::{self, HMAC_SHA256},
    pbkdf2,
};
use subtle::ConstantTimeEq;

/// Name of the mechanism.
pub(super) const NAME: &str = "SCRAM-SHA-256";

/// What a record begins with (RFC 5803, as PostgreSQL writes it).
const RECORD: &str = "SCRAM-SHA-256$";

/// Fewest iterations (RFC 7677 section 4), and what we ask for where a password is known: the client works as hard as we
/// do, and may be small.
pub(super) const MIN_ITERATIONS: NonZeroU32 = match NonZeroU32::new(4096) {
    Some(count) => count,
    None => NonZeroU32::MIN,
};

/// Most iterations of a record; more would let one login keep a processor for long.
pub(super) const MAX_ITERATIONS: u32 = 1_000_000;

/// Longest salt of a record, in bytes.
pub(super) const MAX_SALT: usize = 64;

/// Longest message of a client, in bytes.
const MAX_MESSAGE: usize = 4096;

type Hash = [u8; SHA256_OUTPUT_LEN];

/// What a server knows of a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    /// How the password is salted.
    pub(super) salting: Salting,
    stored: Hash,
    server: Hash,
}

/// How a password is salted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Salting {
    /// The salt.
    pub(super) salt: Vec<u8>,
    /// Rounds of PBKDF2.
    pub(super) iterations: NonZeroU32,
}

/// Why an exchange fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// A message is not as RFC 5802 says.
    Malformed(&'static str),
    /// The client does not know the password.
    WrongProof,
}

/// The client's first message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFirst {
    /// Who it says it is.
    pub(super) username: String,
    /// What stands before the part that is signed.
    header: String,
    /// The part that is signed.
    bare: String,
    nonce: String,
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub(super) struct Challenge {
    header: String,
    nonce: String,
    /// The client's first message and ours, as they are signed.
    signed: String,
    /// Our message.
    pub(super) message: String,
}

impl Keys {
    /// Whether a stored value is meant to be a record.
    pub(super) fn is_record(value: &str) -> bool {
        value.starts_with(RECORD)
    }

    /// Reads a record: `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub(super) fn parse(record: &str) -> Result<Self, String> {
        let form = || "found another form than SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey".to_owned();
        let parts = record.strip_prefix(RECORD).and_then(|rest| rest.split_once('$'));
        let (salting, keys) = parts.ok_or_else(form)?;
        let (iterations, salt) = salting.split_once(':').ok_or_else(form)?;
        let (stored, server) = keys.split_once(':').ok_or_else(form)?;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|count| (MIN_ITERATIONS.get()..=MAX_ITERATIONS).contains(count))
            .and_then(NonZeroU32::new)
            .ok_or_else(|| {
                format!("found {iterations:?} iterations, {MIN_ITERATIONS} to {MAX_ITERATIONS} are allowed")
            })?;
        let salt = STANDARD
            .decode(salt)
            .ok()
            .filter(|salt| (1..=MAX_SALT).contains(&salt.len()))
            .ok_or_else(|| format!("its salt is not base64 of 1 to {MAX_SALT} bytes"))?;
        let key = |name, text| {
            let key = STANDARD
                .decode(text)
                .ok()
                .and_then(|key| Hash::try_from(key).ok());
            key.ok_or_else(|| format!("its {name} is not base64 of {SHA256_OUTPUT_LEN} bytes"))
        };
        Ok(Self {
            salting: Salting { salt, iterations },
            stored: key("StoredKey", stored)?,
            server: key("ServerKey", server)?,
        })
    }

    /// Works out the keys of a password; that takes as long as the iterations make it.
    pub(super) fn derive(password: &[u8], salting: Salting) -> Self {
        let mut salted = Hash::default();
        let Salting { salt, iterations } = &salting;
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            *iterations,
            salt,
            &prepared(password),
            &mut salted,
        );
        let key = hmac::Key::new(HMAC_SHA256, &salted);
        let client: Hash = hashed(hmac::sign(&key, b"Client Key").as_ref());
        Self {
            salting,
            stored: hashed(digest(&SHA256, &client).as_ref()),
            server: hashed(hmac::sign(&key, b"Server Key").as_ref()),
        }
    }

    /// Keys that belong to no password.
    pub(super) fn of_nobody(salting: Salting) -> Self {
        Self {
            salting,
            stored: Hash::default(),
            server: Hash::default(),
        }
    }

    /// Whether they are a password's; that takes as long as the iterations make it.
    pub(super) fn are_of(&self, password: &[u8]) -> bool {
        let other = Self::derive(password, self.salting.clone());
        self.stored.ct_eq(&other.stored).into()
    }
}

/// An output of SHA-256, which is always that long.
fn hashed(output: &[u8]) -> Hash {
    Hash::try_from(output).unwrap_or_default()
}

/// A password as it is salted; as it came where `SASLprep` prohibits what it holds, or it is no text. Clients do the same
/// (libpq of PostgreSQL, for one), and nobody else could ever have such a password.
fn prepared(password: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(password).map(stringprep::saslprep) {
        Ok(Ok(Cow::Owned(prepared))) => Cow::Owned(prepared.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

fn text(message: &[u8]) -> Result<&str, Failure> {
    if message.len() > MAX_MESSAGE {
        return Err(Failure::Malformed("SCRAM message is longer than 4096 bytes"));
    }
    std::str::from_utf8(message).map_err(|_| Failure::Malformed("SCRAM message is not UTF-8"))
}

impl ClientFirst {
    /// Reads the client's first message.
    ///
    /// # Errors
    /// When it is malformed, asks for channel binding or for another identity, or needs an extension.
    pub(super) fn parse(message: &[u8]) -> Result<Self, Failure> {
        let malformed = |detail| Err(Failure::Malformed(detail));
        let message = text(message)?;
        let mut parts = message.splitn(3, ',');
        let (Some(binding), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return malformed("SCRAM message has no header");
        };
        // `y`: the client could bind channels and thinks that we can't, in which it is right (RFC 5802 section 6).
        match binding {
            "n" | "y" => {}
            _ if binding.starts_with("p=") => return malformed("SCRAM channel binding is not offered"),
            _ => return malformed("SCRAM channel binding flag is none of n, y and p"),
        }
        if bare.starts_with("m=") {
            return malformed("SCRAM extension is not known");
        }
        let Some((username, rest)) = bare.strip_prefix("n=").and_then(|rest| rest.split_once(',')) else {
            return malformed("SCRAM message has no user name");
        };
        let username = unescape(username)?;
        let nonce = rest.split(',').next().and_then(|nonce| nonce.strip_prefix("r="));
        let Some(nonce) = nonce.filter(|nonce| is_nonce(nonce)) else {
            return malformed("SCRAM message has no nonce");
        };
        match identity.strip_prefix("a=").map(unescape) {
            None if identity.is_empty() => {}
            Some(Ok(identity)) if identity == username => {}
            _ => return malformed("SCRAM authorization identity is another than the user name"),
        }
        let username = match stringprep::saslprep(&username) {
            Ok(prepared) if !prepared.is_empty() => prepared.into_owned(),
            _ => return malformed("SCRAM user name is nothing that SASLprep allows"),
        };
        // The header with its closing comma.
        let header = message.get(..message.len() - bare.len()).unwrap_or_default();
        Ok(Self {
            username,
            header: header.to_owned(),
            bare: bare.to_owned(),
            nonce: nonce.to_owned(),
        })
    }

    /// Makes our first message.
    pub(super) fn challenge(self, salting: &Salting, nonce: &str) -> Challenge {
        let nonce = self.nonce + nonce;
        let salt = STANDARD.encode(&salting.salt);
        let message = format!("r={nonce},s={salt},i={}", salting.iterations);
        Challenge {
            header: self.header,
            nonce,
            signed: format!("{},{message}", self.bare),
            message,
        }
    }
}

impl Challenge {
    /// Judges the client's proof, and makes our last message.
    ///
    /// # Errors
    /// When the message is malformed, belongs to another exchange, or the proof is wrong.
    pub(super) fn judge(&self, message: &[u8], keys: &Keys) -> Result<String, Failure> {
        let malformed = |detail| Err(Failure::Malformed(detail));
        let Some((unproved, proof)) = text(message)?.rsplit_once(",p=") else {
            return malformed("SCRAM message has no proof");
        };
        let mut parts = unproved.split(',');
        let binding = parts.next().and_then(|part| part.strip_prefix("c="));
        let Some(binding) = binding.and_then(|binding| STANDARD.decode(binding).ok()) else {
            return malformed("SCRAM message has no channel binding");
        };
        if binding != self.header.as_bytes() {
            return malformed("SCRAM channel binding is another than at first");
        }
        if parts.next().and_then(|part| part.strip_prefix("r=")) != Some(&self.nonce) {
            return malformed("SCRAM nonce is another than ours");
        }
        if parts.any(|part| part.starts_with("m=")) {
            return malformed("SCRAM extension is not known");
        }
        let Some(mut client) = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| Hash::try_from(proof).ok())
        else {
            return malformed("SCRAM proof is not base64 of 32 bytes");
        };
        let signed = format!("{},{unproved}", self.signed);
        let signature = hmac::sign(&hmac::Key::new(HMAC_SHA256, &keys.stored), signed.as_bytes());
        for (byte, mask) in client.iter_mut().zip(signature.as_ref()) {
            *byte ^= mask;
        }
        if !bool::from(digest(&SHA256, &client).as_ref().ct_eq(&keys.stored)) {
            return Err(Failure::WrongProof);
        }
        let signature = hmac::sign(&hmac::Key::new(HMAC_SHA256, &keys.server), signed.as_bytes());
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

/// Printable ASCII without a comma, at least one.
fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A name of which commas and equals signs are written as `=2C` and `=3D`.
fn unescape(name: &str) -> Result<String, Failure> {
    let malformed = Failure::Malformed("SCRAM user name is empty or wrongly escaped");
    let mut parts = name.split('=');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (sign, rest) = if let Some(rest) = part.strip_prefix("2C") {
            (',', rest)
        } else if let Some(rest) = part.strip_prefix("3D") {
            ('=', rest)
        } else {
            return Err(malformed);
        };
        plain.push(sign);
        plain.push_str(rest);
    }
    if plain.is_empty() || plain.contains('\0') {
        return Err(malformed);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const OUR_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    /// The exchange of RFC 7677 section 3.
    fn keys() -> Keys {
        let salting = Salting {
            salt: STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(),
            iterations: MIN_ITERATIONS,
        };
        Keys::derive(b"pencil", salting)
    }

    /// The same user's record, as Python's hashlib works it out.
    const KNOWN: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                         WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                         wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn the_exchange_of_rfc_7677_is_ours() {
        let keys = keys();
        let first = ClientFirst::parse(FIRST.as_bytes()).unwrap();
        assert_eq!(first.username, "user");
        let challenge = first.challenge(&keys.salting, OUR_NONCE);
        assert_eq!(
            challenge.message,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        assert_eq!(
            challenge.judge(LAST.as_bytes(), &keys).unwrap(),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        let judge = |message: &str| challenge.judge(message.as_bytes(), &keys);
        assert_eq!(judge(&LAST.replace("p=d", "p=e")), Err(Failure::WrongProof));
        let nobody = Keys::of_nobody(keys.salting.clone());
        assert_eq!(
            challenge.judge(LAST.as_bytes(), &nobody),
            Err(Failure::WrongProof)
        );
        for wrong in [
            LAST.replace("k0,p", "k1,p"),
            LAST.replace("biws", "eSws"),
            LAST.replace("k0,p", "k0,m=x,p"),
            LAST.replace("ndVQ=", "ndV"),
            LAST.replace(",p=", ",q="),
            String::new(),
        ] {
            assert!(matches!(judge(&wrong), Err(Failure::Malformed(_))), "{wrong}");
        }
    }

    #[test]
    fn names_and_passwords_are_prepared() {
        // The examples of RFC 4013 section 3.
        let username = |name: &str| {
            let message = format!("n,,n={name},r=x");
            ClientFirst::parse(message.as_bytes()).map(|first| first.username)
        };
        for (name, prepared) in [
            ("I\u{ad}X", "IX"),
            ("user", "user"),
            ("USER", "USER"),
            ("\u{aa}", "a"),
            ("\u{2168}", "IX"),
        ] {
            assert_eq!(username(name).as_deref(), Ok(prepared));
        }
        for name in ["\u{7}", "\u{627}1", "\u{ad}"] {
            assert!(matches!(username(name), Err(Failure::Malformed(_))), "{name:?}");
        }
        let salting = keys().salting;
        let keys = |password: &str| Keys::derive(password.as_bytes(), salting.clone());
        assert!(keys("\u{2168}") == keys("IX") && keys("I\u{ad}X") == keys("IX"));
        assert!(keys("\u{7}") != keys("") && keys("\u{627}1").are_of("\u{627}1".as_bytes()));
        assert!(
            keys("\u{e4}") == keys("a\u{308}"),
            "composed and decomposed are one"
        );
        assert!(Keys::derive(b"\xff", salting.clone()) != Keys::derive(b"\xfe", salting.clone()));
    }

    #[test]
    fn records_know_their_password() {
        let parsed = Keys::parse(KNOWN).unwrap();
        assert!(parsed == keys());
        assert!(parsed.are_of(b"pencil") && !parsed.are_of(b"pencil2"));
        let cause = |record: &str| Keys::parse(record).err().unwrap();
        assert!(cause(&KNOWN.replace("$4096", "$4095")).contains("4096 to 1000000 are allowed"));
        assert!(cause(&KNOWN.replace("$4096", "$1000001")).contains("\"1000001\""));
        assert!(cause(&KNOWN.replace("W22", "!22")).contains("salt"));
        assert!(cause(&KNOWN.replace("==$", "==$AA")).contains("StoredKey"));
        assert!(cause(&format!("{KNOWN}AA")).contains("ServerKey"));
        assert!(cause("SCRAM-SHA-256$4096").contains("form"));
    }

    #[test]
    fn first_messages_are_read_as_rfc_5802_says() {
        let username = |message: &str| ClientFirst::parse(message.as_bytes()).map(|first| first.username);
        assert_eq!(username("y,,n=u,r=x").as_deref(), Ok("u"));
        assert_eq!(username("n,a=u,n=u,r=x").as_deref(), Ok("u"));
        assert_eq!(username("n,,n==3Da=2Cb,r=x,y=ignored").as_deref(), Ok("=a,b"));
        for wrong in [
            "p=tls-exporter,,n=u,r=x",
            "z,,n=u,r=x",
            "n,a=other,n=u,r=x",
            "n,u,n=u,r=x",
            "n,,m=ext,n=u,r=x",
            "n,,n=,r=x",
            "n,,n=a=2cb,r=x",
            "n,,n=u,r=",
            "n,,n=u,r=\u{e4}",
            "n,,n=u",
            "n,",
            "",
        ] {
            assert!(matches!(username(wrong), Err(Failure::Malformed(_))), "{wrong}");
        }
        let long = format!("n,,n={},r=x", "u".repeat(MAX_MESSAGE));
        assert!(username(&long).is_err());
    }
}
