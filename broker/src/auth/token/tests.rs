use std::sync::LazyLock;

use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
    },
};
use serde_json::json;

use super::{keys::KeySet, *};

/// The key pair of RFC 7515 appendix A.2, which signs with RSA.
const RSA: &str = include_str!("rfc7515-a2.json");

/// What appendix A.2 signs with it, and A.3 with the key below.
const CLAIMS: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

const A2: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9\
                  CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_d\
                  O--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_\
                  IoypGlUPQGe77Rw";

const A3: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

fn rsa() -> Value {
    serde_json::from_str(RSA).unwrap()
}

/// The keys of RFC 7515 appendices A.2 and A.3 and RFC 8037 appendix A.2.
static KEYS: LazyLock<KeySet> = LazyLock::new(|| {
    let rsa = rsa();
    let keys = json!({ "keys": [
        { "kty": "RSA", "kid": "rsa", "n": rsa["n"], "e": rsa["e"] },
        { "kty": "EC", "kid": "p256", "crv": "P-256", "use": "sig", "alg": "ES256",
          "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" },
        { "kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" },
        { "kty": "RSA", "kid": "only", "alg": "RS512", "n": rsa["n"], "e": rsa["e"] },
        { "kty": "oct", "kid": "secret", "k": "AAAA" },
        { "kty": "RSA", "kid": "sealing", "use": "enc", "n": rsa["n"], "e": rsa["e"] },
        { "kty": "EC", "kid": "short", "crv": "P-256", "x": "AAAA", "y": "AAAA" },
        "nonsense",
    ]});
    KeySet::parse(keys.to_string().as_bytes()).unwrap()
});

fn verifies(algorithm: Algorithm, id: &str, signed: &str, signature: &str) -> bool {
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let fitting = KEYS.fitting(algorithm, Some(id));
    fitting
        .iter()
        .any(|key| key.verifies(algorithm, signed.as_bytes(), &signature))
}

#[test]
fn what_the_rfcs_sign_is_verified() {
    assert_eq!(KEYS.len(), 4, "keys that are not for signatures are left out");
    let rs256 = format!("eyJhbGciOiJSUzI1NiJ9.{CLAIMS}");
    assert!(verifies(Algorithm::Rs256, "rsa", &rs256, A2));
    assert!(!verifies(Algorithm::Rs256, "rsa", &format!("{rs256}x"), A2));
    assert!(!verifies(Algorithm::Rs384, "rsa", &rs256, A2) && !verifies(Algorithm::Ps256, "rsa", &rs256, A2));
    assert!(
        !verifies(Algorithm::Rs256, "p256", &rs256, A2),
        "the key is not for it"
    );
    let es256 = format!("eyJhbGciOiJFUzI1NiJ9.{CLAIMS}");
    assert!(verifies(Algorithm::Es256, "p256", &es256, A3));
    assert!(!verifies(Algorithm::Es256, "p256", &rs256, A3));
    // RFC 8037 appendix A.4.
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert!(verifies(
        Algorithm::EdDsa,
        "ed",
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
        signature
    ));
    // A key that is for another algorithm is not used for this one.
    assert!(KEYS.fitting(Algorithm::Es384, Some("p256")).is_empty());
    assert_eq!(KEYS.fitting(Algorithm::Ps256, None).len(), 1);
    assert_eq!(KEYS.fitting(Algorithm::Rs512, None).len(), 2);
    assert!(KEYS.fitting(Algorithm::Es256, Some("unknown")).is_empty());
}

#[test]
fn every_algorithm_of_rsa_and_es384_is_verified() {
    let number = |name| URL_SAFE_NO_PAD.decode(rsa()[name].as_str().unwrap()).unwrap();
    let components = ring::rsa::KeyPairComponents {
        public_key: ring::rsa::PublicKeyComponents {
            n: number("n"),
            e: number("e"),
        },
        d: number("d"),
        p: number("p"),
        q: number("q"),
        dP: number("dp"),
        dQ: number("dq"),
        qInv: number("qi"),
    };
    let pair = RsaKeyPair::from_components(&components).unwrap();
    let random = SystemRandom::new();
    let ways: [(Algorithm, &'static dyn RsaEncoding); 4] = [
        (Algorithm::Rs256, &RSA_PKCS1_SHA256),
        (Algorithm::Rs384, &RSA_PKCS1_SHA384),
        (Algorithm::Rs512, &RSA_PKCS1_SHA512),
        (Algorithm::Ps256, &RSA_PSS_SHA256),
    ];
    for (algorithm, way) in ways {
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(way, &random, b"signed", &mut signature).unwrap();
        let signature = URL_SAFE_NO_PAD.encode(signature);
        for (other, _) in ways {
            assert_eq!(
                verifies(other, "rsa", "signed", &signature),
                other == algorithm,
                "{algorithm:?} as {other:?}"
            );
        }
    }
    let how = &ECDSA_P384_SHA384_FIXED_SIGNING;
    let pair = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(how, pair.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    let key = json!({ "keys": [{ "kty": "EC", "crv": "P-384", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) }] });
    let keys = KeySet::parse(key.to_string().as_bytes()).unwrap();
    let signature = pair.sign(&random, b"signed").unwrap();
    let key = &keys.fitting(Algorithm::Es384, None)[0];
    assert!(key.verifies(Algorithm::Es384, b"signed", signature.as_ref()));
    assert!(!key.verifies(Algorithm::Es384, b"Signed", signature.as_ref()));
}

fn issuer() -> Arc<TokenIssuer> {
    let options = TokenOptions {
        issuer: "https://issuer.invalid".to_owned(),
        jwks_uri: None,
        audiences: vec!["plant".to_owned(), "line".to_owned()],
        username_claim: "name".to_owned(),
        groups_claim: Some("roles".to_owned()),
        authorities: None,
    };
    let keys = Keys::Published(Published::known(KeySet::default()));
    Arc::new(TokenIssuer { options, keys })
}

#[tokio::test]
async fn claims_are_judged_as_rfc_7519_says() {
    let issuer = issuer();
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let good = json!({
        "iss": "https://issuer.invalid", "aud": ["other", "line"], "exp": 1_000_100.5, "nbf": 999_000,
        "name": "alice", "roles": ["ops", 7, "dev"],
    });
    let judge = |change: Value| {
        let mut claims = good.as_object().unwrap().clone();
        for (name, value) in change.as_object().unwrap() {
            if value.is_null() {
                claims.remove(name);
            } else {
                claims.insert(name.clone(), value.clone());
            }
        }
        issuer.judge(&claims, now)
    };
    let alice = judge(json!({})).unwrap();
    assert_eq!(
        (alice.username.as_deref(), &alice.groups[..]),
        (Some("alice"), &["ops".to_owned(), "dev".to_owned()][..])
    );
    assert_eq!(alice.expiry.unwrap().at, now + Duration::from_millis(160_500));
    assert_eq!(judge(json!({ "roles": "ops" })).unwrap().groups, ["ops"]);
    assert!(
        judge(json!({ "roles": null, "aud": "plant", "nbf": null }))
            .unwrap()
            .groups
            .is_empty()
    );
    // Sixty seconds either way.
    assert!(judge(json!({ "exp": 999_941 })).is_ok() && judge(json!({ "nbf": 1_000_060 })).is_ok());
    for (change, words) in [
        (json!({ "exp": 999_940 }), "the token has expired"),
        (json!({ "exp": null }), "does not say when it expires"),
        (json!({ "exp": "tomorrow" }), "does not say when it expires"),
        (json!({ "nbf": 1_000_061 }), "not valid yet"),
        (json!({ "nbf": "now" }), "nbf is no time"),
        (json!({ "iss": "https://issuer.invalid/" }), "another issuer's"),
        (json!({ "iss": null }), "another issuer's"),
        (json!({ "aud": "lines" }), "another audience"),
        (json!({ "aud": null }), "another audience"),
        (json!({ "aud": [] }), "another audience"),
        (json!({ "name": null }), "no user name in \"name\""),
        (json!({ "name": "" }), "no user name"),
        (json!({ "name": "a\0" }), "no user name"),
        (json!({ "name": ["alice"] }), "no user name"),
    ] {
        let detail = judge(change.clone()).unwrap_err();
        assert!(detail.contains(words), "{change}: {detail}");
    }
    // Years that nobody lives to see are years nevertheless.
    assert!(judge(json!({ "exp": 1e300 })).is_ok() && judge(json!({ "exp": -1e300 })).is_err());
}

#[tokio::test]
async fn only_what_the_issuer_signed_is_believed() {
    let random = SystemRandom::new();
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let ed25519 = Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).unwrap();
    let public = URL_SAFE_NO_PAD.encode(ed25519.public_key());
    let key = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": public }] });
    let known = Published::known(KeySet::parse(key.to_string().as_bytes()).unwrap());
    let mut issuer = self::issuer();
    Arc::get_mut(&mut issuer).unwrap().keys = Keys::Published(known);
    let claims =
        json!({ "iss": "https://issuer.invalid", "aud": "plant", "exp": 9_999_999_999_u64, "name": "alice" });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let token = |header: Value, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    };
    let sign = |signed: &[u8]| ed25519.sign(signed).as_ref().to_owned();
    let good = token(json!({ "alg": "EdDSA", "kid": "k" }), &sign);
    let checks = Checks::default();
    let verify = async |token: &str| {
        let verified = issuer.verify(token.as_bytes(), &checks).await;
        verified
            .map(|principal| principal.username.unwrap())
            .map_err(|rejected| rejected.detail.into_owned())
    };
    assert_eq!(verify(&good).await.as_deref(), Ok("alice"));
    assert_eq!(
        verify(&token(json!({ "alg": "EdDSA" }), &sign)).await.as_deref(),
        Ok("alice")
    );
    assert!(issuer.is_named_by(good.as_bytes()) && !issuer.is_named_by(b"a.b.c"));
    // The public key as the secret of an HMAC: what confuses libraries that let the token choose.
    let confused = |signed: &[u8]| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, ed25519.public_key().as_ref());
        ring::hmac::sign(&key, signed).as_ref().to_owned()
    };
    let (head, signature) = good.rsplit_once('.').unwrap();
    let long = "x".repeat(MAX_TOKEN + 1);
    for (token, words) in [
        (
            token(json!({ "alg": "none" }), &|_| Vec::new()),
            "algorithm is \"none\"",
        ),
        (
            token(json!({ "alg": "HS256", "kid": "k" }), &confused),
            "algorithm is \"HS256\"",
        ),
        (token(json!({ "kid": "k" }), &sign), "algorithm is \"\""),
        (token(json!({ "alg": "RS256", "kid": "k" }), &sign), "no such key"),
        (
            token(json!({ "alg": "EdDSA", "kid": "other" }), &sign),
            "no such key",
        ),
        (
            token(json!({ "alg": "EdDSA", "crit": ["b64"] }), &sign),
            "critical",
        ),
        (
            token(json!({ "alg": "EdDSA" }), &|_| vec![0; 64]),
            "signature is wrong",
        ),
        (
            token(json!({ "alg": "EdDSA" }), &|_| Vec::new()),
            "signature is wrong",
        ),
        (format!("{head}x.{signature}"), "not a JSON Web Token"),
        (head.to_owned(), "not a JSON Web Token"),
        (long, "not a JSON Web Token"),
        (String::new(), "not a JSON Web Token"),
    ] {
        let detail = verify(&token).await.unwrap_err();
        assert!(detail.contains(words), "{token}: {detail}");
    }
    // Without keys it is the broker that can't judge.
    let unknown = self::issuer();
    let error = unknown.verify(good.as_bytes(), &checks).await.unwrap_err();
    assert_eq!(error.reason, ReasonCode::ServerUnavailable);
}
