//! A role whose directory is not to give anything away: its key is wrapped with one that is kept somewhere else.

use std::{fs, sync::Arc};

use super::harness::*;
use crate::{
    Agent,
    session::agent::{Error, KeyWrap, seal::tests::Keys},
};

fn site(operator: &Operator, keys: &Arc<Keys>) -> Site {
    Site {
        key_wrap: Some(Arc::clone(keys) as Arc<dyn KeyWrap>),
        ..Site::of(operator, "1")
    }
}

/// The file of a role.
fn file(site: &Site, name: &str) -> Vec<u8> {
    fs::read(site.path().join(name)).unwrap()
}

#[tokio::test]
async fn a_role_whose_key_is_wrapped_restarts_without_the_operator_and_shows_nothing_on_its_disk() {
    let mut operator = Operator::start().await;
    let keys = Keys::of(&[5]);
    let site = site(&operator, &keys);
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=1"]);
    operator.acknowledged("a").await;
    let chain = running.identity.chain().unwrap();
    running.end().await;
    for name in ["identity.pem", "trust.pem"] {
        let text = String::from_utf8_lossy(&file(&site, name)).into_owned();
        assert!(!text.contains("-----BEGIN"), "{name}: {text}");
    }
    operator.kill().await;

    // Another key is active, which wraps the key of all that is there.
    let before = file(&site, "plan.key");
    keys.set(&[5, 6]);
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=1"]);
    assert_eq!(running.identity.chain().unwrap(), chain);
    let wrapped_anew = async {
        while file(&site, "plan.key") == before {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within("another key", wrapped_anew).await;
    running.end().await;
    keys.set(&[6]);
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=1"]);
    running.end().await;

    // Without it nothing starts, and nothing is lost.
    keys.set(&[7]);
    let Err(Error::Tls(error)) = Agent::new(site.options()) else {
        panic!("it starts without its key")
    };
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(cause.is_some_and(|cause| cause.contains("key spring")), "{error}");
    keys.set(&[6]);
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=1"]);
    running.end().await;
}

#[tokio::test]
async fn what_is_in_the_clear_is_not_believed_where_keys_are_wrapped() {
    let mut operator = Operator::start().await;
    let clear = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1")])
        .unwrap();
    let mut running = clear.start();
    running.did_until_complete().await;
    operator.acknowledged("a").await;
    let known = running.identity.chain().unwrap();
    running.end().await;
    // As whoever has the disk could have written all of it: the role enrolls anew, and gets its plan from the operator.
    let site = Site {
        key_wrap: Some(Keys::of(&[5])),
        ..clear
    };
    assert!(Agent::new(site.options()).unwrap().identity().chain().is_none());
    operator
        .handle
        .set_plan(&role("1"), vec![resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set b=1"]);
    assert_ne!(running.identity.chain().unwrap(), known);
    running.end().await;
}
