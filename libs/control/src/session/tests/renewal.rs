use std::{sync::Arc, time::Duration};

use foreshore_tls::AuthorityOptions;
use jiff::Timestamp;

use super::harness::*;
use crate::{Observation, enroll::LocalTokens, session::agent::LinkState};

#[tokio::test]
async fn a_certificate_is_renewed_while_the_session_runs() {
    let ca = authority(Duration::from_secs(6));
    let mut operator = Operator::with(ca, LocalTokens::new(), None, Some(1)).await;
    let site = Site::of(&operator, "1");
    let mut running = site.start();
    operator.connected().await;
    let first = running.identity.chain().unwrap();
    // Well beyond the end of the first certificate.
    for _ in 0..2 {
        operator
            .until("renewal", |seen| match seen {
                Observation::Renewed { .. } => Some(()),
                Observation::Disconnected { reason, .. } => panic!("{reason}"),
                _ => None,
            })
            .await;
    }
    let is_later =
        |chain: &foreshore_tls::CertificateChain| chain.validity().not_after > first.validity().not_after;
    within("the new certificate", async {
        while !running.identity.chain().as_ref().is_some_and(is_later) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let second = running.identity.chain().unwrap();
    assert_eq!(second.role(), first.role());
    assert_ne!(key_of(&first), key_of(&second), "the key was not renewed");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1")])
        .unwrap();
    assert_eq!(running.did_until_complete().await, ["set a=1"]);
    running.end().await;
}

fn key_of(chain: &foreshore_tls::CertificateChain) -> Vec<u8> {
    // The subject's key stands in the certificate as an uncompressed point after this identifier of P-256.
    const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let der: &[u8] = &chain.certificates()[0];
    let at = der.windows(P256.len()).position(|window| window == P256).unwrap();
    der[at + P256.len()..][..68].to_vec()
}

#[tokio::test]
async fn the_authority_rotates_under_running_sessions() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let mut running = site.start();
    operator.connected().await;
    let ca = Arc::clone(&operator.authority);
    let trusts = async |operator: &mut Operator, bundle| {
        operator
            .until("trust", |seen| match seen {
                Observation::Trusts { bundle: seen } => (*seen == bundle).then_some(()),
                Observation::Disconnected { reason, .. } => panic!("{reason}"),
                _ => None,
            })
            .await;
    };
    let before = ca.bundle().fingerprint();
    trusts(&mut operator, before).await;
    assert_eq!(
        operator.handle.roles()[0].session.as_ref().unwrap().trusts,
        Some(before)
    );

    ca.begin_rotation(Timestamp::now()).unwrap();
    trusts(&mut operator, ca.bundle().fingerprint()).await;
    let old = running.identity.chain().unwrap();
    ca.complete_rotation(Timestamp::now()).unwrap();
    operator
        .until("renewal", |seen| {
            matches!(seen, Observation::Renewed { .. }).then_some(())
        })
        .await;
    within("the new leaf", async {
        while running.identity.chain().unwrap() == old {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(ca.issued_by_current(&running.identity.chain().unwrap().certificates()[0]));

    let later = Timestamp::now() + AuthorityOptions::default().overlap + Duration::from_secs(60);
    assert_eq!(ca.prune(later).unwrap(), 1);
    trusts(&mut operator, ca.bundle().fingerprint()).await;
    assert_eq!(running.identity.bundle().roots().len(), 1);
    assert!(matches!(
        running.status.borrow_and_update().link,
        LinkState::Connected { .. }
    ));
    running.end().await;
}

/// The machine slept through the lifetime of the certificate: the role enrolls again.
#[tokio::test]
async fn an_expired_certificate_leads_to_a_new_enrolment() {
    let ca = authority(Duration::from_secs(2));
    let mut operator = Operator::with(ca, LocalTokens::new(), None, Some(1)).await;
    let site = Site::of(&operator, "1");
    let running = site.start();
    operator.connected().await;
    running.end().await;
    operator.disconnected().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let running = site.start();
    operator.connected().await;
    assert!(
        running
            .identity
            .chain()
            .unwrap()
            .validity()
            .contains(Timestamp::now())
    );
    running.end().await;
}
