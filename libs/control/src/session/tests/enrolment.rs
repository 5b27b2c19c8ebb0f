use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use super::harness::*;
use crate::{
    Agent,
    enroll::StaticCredential,
    session::agent::{Error, LinkState},
};

#[tokio::test]
async fn a_role_enrolls_once_and_keeps_its_certificate() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=1"]);
    operator.acknowledged("a").await;
    assert_eq!(running.identity.role(), Some(role("1")));
    let first = running.identity.chain().unwrap();
    running.end().await;
    assert_eq!(operator.disconnected().await, ("the role ended".to_owned(), true));

    for private in ["identity.pem", "plan.key"] {
        let mode = fs::metadata(site.path().join(private))
            .unwrap()
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(mode, 0o600, "{private}");
    }
    assert!(
        !site.path().join("enroll.pem").exists(),
        "the key of a finished enrolment was kept"
    );

    // No credential any more, and it is not needed.
    let site = Site {
        credential: Arc::new(StaticCredential(String::new())),
        ..site
    };
    let running = site.start();
    operator.connected().await;
    assert_eq!(running.identity.chain().unwrap(), first);
    running.end().await;
}

#[tokio::test]
async fn a_used_token_is_refused_and_the_role_says_so() {
    let mut operator = Operator::start().await;
    let token = operator
        .tokens
        .issue(role("1"), Duration::from_secs(600))
        .unwrap();
    let credential = Arc::new(StaticCredential(token));
    let rightful = Site {
        credential: credential.clone(),
        ..Site::of(&operator, "1")
    };
    let running = rightful.start();
    operator.connected().await;
    running.end().await;

    let thief = Site {
        credential,
        ..Site::of(&operator, "1")
    };
    let mut running = thief.start();
    let message = running.disconnected("CredentialRefused").await;
    assert!(message.contains("another key"), "{message}");
    assert!(running.identity.chain().is_none());
    running.end().await;
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_again() {
    let mut operator = Operator::start().await;
    let token = operator
        .tokens
        .issue(role("1"), Duration::from_secs(600))
        .unwrap();
    let site = Site {
        credential: Arc::new(StaticCredential(token)),
        ..Site::of(&operator, "1")
    };
    let running = site.start();
    operator.connected().await;
    running.end().await;
    // As if the process had died between sending the request and storing the answer.
    let identity = fs::read_to_string(site.path().join("identity.pem")).unwrap();
    let end = "-----END PRIVATE KEY-----\n";
    let (key, _) = identity.split_once(end).unwrap();
    foreshore_tls::write_private(&site.path().join("enroll.pem"), format!("{key}{end}").as_bytes()).unwrap();
    fs::remove_file(site.path().join("identity.pem")).unwrap();
    let running = site.start();
    operator.connected().await;
    running.end().await;
}

#[tokio::test]
async fn an_operator_of_another_authority_gets_nothing() {
    let mut operator = Operator::start().await;
    let other = authority(Duration::from_secs(3600));
    let site = Site {
        trust: Some(other.bundle()),
        ..Site::of(&operator, "1")
    };
    let mut running = site.start();
    let message = running.disconnected("CertificateUntrusted").await;
    assert!(message.contains("not issued by an authority"), "{message}");
    running.end().await;
    assert!(operator.events.try_recv().is_err());
}

/// The operator's data was lost and with it its authority: roles come back with a new credential.
#[tokio::test]
async fn a_certificate_that_the_operator_refuses_leads_to_a_new_enrolment() {
    let operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let mut running = site.start();
    running
        .wait("a session", |status| {
            matches!(status.link, LinkState::Connected { .. })
        })
        .await;
    running.end().await;
    drop(operator.kill().await);

    let mut operator = Operator::start().await;
    let again = Site::of(&operator, "1");
    let site = Site {
        directory: site.directory,
        addresses: again.addresses,
        trust: again.trust,
        credential: again.credential,
        capabilities: Vec::new(),
        tolerant: false,
        key_wrap: None,
    };
    let running = site.start();
    operator.connected().await;
    running.end().await;
}

#[tokio::test]
async fn a_stored_certificate_for_someone_else_is_not_used() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let running = site.start();
    operator.connected().await;
    running.end().await;
    operator.disconnected().await;

    let mut options = site.options();
    options.expected = Some(role("2"));
    options.credential = operator.tokens.source(role("2"), Duration::from_secs(600));
    let agent = Agent::new(options).unwrap();
    assert!(agent.identity().chain().is_none());
}

#[tokio::test]
async fn what_makes_an_agent_impossible_is_told_at_once() {
    let operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let error = |change: &dyn Fn(&mut crate::AgentOptions)| {
        let mut options = site.options();
        change(&mut options);
        Agent::new(options).err().unwrap()
    };
    assert!(matches!(
        error(&|options| options.addresses.clear()),
        Error::NoAddress
    ));
    assert!(matches!(error(&|options| options.trust = None), Error::NoTrust));
    let file = site.path().join("a-file");
    fs::write(&file, "").unwrap();
    assert!(matches!(
        error(&|options| options.directory = file.clone()),
        Error::Tls(_)
    ));
}
