use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::harness::*;
use crate::{
    Observation, ResourceKey,
    enroll::LocalTokens,
    session::{agent::LinkState, server::PlanError},
};

#[tokio::test]
async fn only_what_changed_is_sent() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1"), resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=1", "set b=1"]);
    let wanted = vec![resource("a", "1"), resource("b", "2"), resource("c", "1")];
    operator.handle.set_plan(&role("1"), wanted.clone()).unwrap();
    assert_eq!(running.did_until_complete().await, ["set b=2", "set c=1"]);
    operator.handle.set_plan(&role("1"), wanted).unwrap();
    operator
        .handle
        .set_plan(&role("1"), vec![resource("c", "1")])
        .unwrap();
    assert_eq!(running.did_until_complete().await, ["remove b", "remove a"]);
    operator
        .until("removal", |seen| {
            matches!(seen, Observation::Removed { key } if key.name == "a").then_some(())
        })
        .await;
    let status = &operator.handle.roles()[0];
    assert_eq!(
        (status.desired, status.session.as_ref().unwrap().acknowledged),
        (Some(1), 1)
    );
    running.end().await;
}

#[tokio::test]
async fn a_refused_resource_keeps_its_last_good_version() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "good"), resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    running.did_until_complete().await;
    let bad = vec![resource("a", "bad"), resource("b", "2")];
    operator.handle.set_plan(&role("1"), bad.clone()).unwrap();
    assert_eq!(
        running.did_until_complete().await,
        ["set b=2"],
        "one refusal stopped the others"
    );
    let nack = operator
        .until("refusal", |seen| match seen {
            Observation::Nack { resource, nack } if resource.key == key("a") => Some(nack.clone()),
            _ => None,
        })
        .await;
    assert_eq!((&*nack.reason, &*nack.message), ("BadValue", "a: found bad"));
    running
        .wait("count of refusals", |status| status.refused == 1)
        .await;
    assert_eq!(operator.handle.roles()[0].session.as_ref().unwrap().refused, 1);
    running.end().await;

    // Without the operator it starts from what was good, not from what was last sent.
    let (authority, tokens, address) = operator.kill().await;
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=good", "set b=2"]);

    let mut operator = Operator::with(authority, tokens, Some(address), Some(2)).await;
    operator.handle.set_plan(&role("1"), bad).unwrap();
    let held = operator
        .until("what it holds", |seen| match seen {
            Observation::Holds { resources } => Some(resources.clone()),
            _ => None,
        })
        .await;
    assert_eq!(held[0].hash, resource("a", "good").hash());
    operator
        .until("the same refusal", |seen| {
            matches!(seen, Observation::Nack { .. }).then_some(())
        })
        .await;
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "better"), resource("b", "2")])
        .unwrap();
    operator.acknowledged("a").await;
    running.wait("no refusals", |status| status.refused == 0).await;
    running.end().await;
}

#[tokio::test]
async fn what_the_surroundings_hinder_is_tried_again() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "hindered"), resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set b=1"]);
    operator
        .until("refusal", |seen| {
            matches!(seen, Observation::Nack { nack, .. } if nack.is_passing()).then_some(())
        })
        .await;
    assert_eq!(running.did().await, "set a=hindered");
    operator.acknowledged("a").await;
    running.wait("no refusals", |status| status.refused == 0).await;
    running.end().await;
}

#[tokio::test]
async fn a_role_goes_on_without_the_operator_and_then_gets_what_changed() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1"), resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    running.did_until_complete().await;
    operator.acknowledged("b").await;
    let (authority, tokens, address) = operator.kill().await;
    running
        .wait("disconnection", |status| {
            matches!(status.link, LinkState::Disconnected { .. })
        })
        .await;
    assert_eq!(running.status.borrow().in_force, 2);

    let mut operator = Operator::with(authority, tokens, Some(address), Some(2)).await;
    operator.connected().await;
    // An operator that has just started does not know yet what the role shall have: that removes nothing.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(running.did_meanwhile().is_empty());
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1"), resource("b", "2")])
        .unwrap();
    assert_eq!(running.did_until_complete().await, ["set b=2"]);
    running.end().await;
}

#[tokio::test]
async fn a_role_restarts_from_the_stored_plan() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1"), resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    running.did_until_complete().await;
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "2")])
        .unwrap();
    running.did_until_complete().await;
    operator
        .until("removal", |seen| {
            matches!(seen, Observation::Removed { .. }).then_some(())
        })
        .await;
    running.end().await;
    let (authority, tokens, address) = operator.kill().await;

    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=2"]);
    let message = running.disconnected("Unreachable").await;
    assert!(message.contains(&address.to_string()), "{message}");

    let mut operator = Operator::with(authority, tokens, Some(address), Some(2)).await;
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "2")])
        .unwrap();
    operator.connected().await;
    assert_eq!(running.did_until_complete().await, Vec::<String>::new());
    running.end().await;
}

/// Another version of the program refuses what was good: it stays stored until the operator has spoken.
#[tokio::test]
async fn a_stored_resource_that_is_refused_waits_for_the_operators_word() {
    let mut operator = Operator::start().await;
    let mut site = Site {
        tolerant: true,
        ..Site::of(&operator, "1")
    };
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "bad"), resource("b", "1")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set a=bad", "set b=1"]);
    operator.acknowledged("b").await;
    running.end().await;
    let (authority, tokens, address) = operator.kill().await;

    site.tolerant = false;
    let stored = || std::fs::read_dir(site.path().join("plan")).unwrap().count();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set b=1"]);
    assert_eq!(stored(), 2);
    let operator = Operator::with(authority, tokens, Some(address), Some(2)).await;
    operator
        .handle
        .set_plan(&role("1"), vec![resource("b", "1")])
        .unwrap();
    assert_eq!(running.did_until_complete().await, Vec::<String>::new());
    within("removal", async {
        while stored() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    running.end().await;
}

#[tokio::test]
async fn roles_leave_a_standby_for_the_leader() {
    let ca = authority(Duration::from_secs(3600));
    let tokens = LocalTokens::new();
    let mut first = Operator::with(Arc::clone(&ca), tokens.clone(), None, None).await;
    let mut second = Operator::with(ca, tokens, None, Some(1)).await;
    let mut site = Site::of(&first, "1");
    site.addresses.push(second.address.to_string());
    let running = site.start();
    second.connected().await;

    second.handle.stand_by();
    first.handle.lead(2);
    let (reason, on_purpose) = second.disconnected().await;
    assert!(
        reason.contains("another instance leads") && !on_purpose,
        "{reason}"
    );
    first.connected().await;

    // The first one is cut off and does not know that the second leads again; the role does, and stays.
    first.handle.stand_by();
    second.handle.lead(3);
    second.connected().await;
    first.handle.lead(2);
    second.handle.stand_by();
    tokio::time::sleep(Duration::from_millis(500)).await;
    while let Ok(event) = first.events.try_recv() {
        assert!(
            !matches!(event.what, Observation::Connected { .. }),
            "a deposed leader was believed"
        );
    }
    running.end().await;
}

/// Carries connections to an operator until it hangs, as a process that is stopped: they stay open, and nothing comes.
async fn way_that_hangs(operator: SocketAddr) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hangs = CancellationToken::new();
    let told = hangs.clone();
    tokio::spawn(async move {
        while let Ok((mut role, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut operator = TcpStream::connect(operator).await.unwrap();
                tokio::select! {
                    () = told.cancelled() => std::future::pending().await,
                    _ = tokio::io::copy_bidirectional(&mut role, &mut operator) => {}
                }
            });
        }
    });
    (address, hangs)
}

#[tokio::test]
async fn a_role_goes_from_a_leader_that_hangs_to_the_next() {
    let ca = authority(Duration::from_secs(3600));
    let tokens = LocalTokens::new();
    let mut first = Operator::with(Arc::clone(&ca), tokens.clone(), None, Some(1)).await;
    let mut second = Operator::with(ca, tokens, None, None).await;
    let (way, hangs) = way_that_hangs(first.address).await;
    let mut site = Site::of(&first, "1");
    site.addresses = vec![way.to_string(), second.address.to_string()];
    let running = site.start();
    first.connected().await;

    hangs.cancel();
    second.handle.lead(2);
    second.connected().await;
    running.end().await;
}

#[tokio::test]
async fn each_role_gets_its_own_plan_only() {
    let mut operator = Operator::start().await;
    let (one, two) = (Site::of(&operator, "1"), Site::of(&operator, "2"));
    operator
        .handle
        .set_plan(&role("1"), vec![resource("a", "1")])
        .unwrap();
    operator
        .handle
        .set_plan(&role("2"), vec![resource("b", "1")])
        .unwrap();
    let (mut first, mut second) = (one.start(), two.start());
    assert_eq!(first.did_until_complete().await, ["set a=1"]);
    assert_eq!(second.did_until_complete().await, ["set b=1"]);
    operator.handle.remove_role(&role("2"));
    let message = second.disconnected("Removed").await;
    assert!(message.contains("no longer wanted"), "{message}");
    operator.disconnected().await;
    assert!(
        second.did_meanwhile().is_empty(),
        "what was in force went with the session"
    );
    first.end().await;
    second.end().await;
}

#[tokio::test]
async fn a_role_that_is_too_old_is_reported() {
    let mut operator = Operator::start().await;
    let site = Site {
        capabilities: vec!["ledger"],
        ..Site::of(&operator, "1")
    };
    let newer = resource("a", "1").requiring("ledger").requiring("windows");
    operator
        .handle
        .set_plan(&role("1"), vec![newer, resource("b", "1").requiring("ledger")])
        .unwrap();
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set b=1"]);
    let missing = operator
        .until("what it is too old for", |seen| match seen {
            Observation::Unsupported { resource, missing } if resource.key == key("a") => {
                Some(missing.clone())
            }
            _ => None,
        })
        .await;
    assert_eq!(missing, ["windows"]);
    assert_eq!(
        operator.handle.roles()[0].session.as_ref().unwrap().unsupported,
        1
    );
    running.end().await;
}

#[tokio::test]
async fn a_second_session_of_a_role_supersedes_the_first_in_order() {
    let mut operator = Operator::start().await;
    let (one, two) = (Site::of(&operator, "1"), Site::of(&operator, "1"));
    let mut first = one.start();
    operator.connected().await;
    let second = two.start();
    let (reason, _) = operator.disconnected().await;
    assert!(reason.contains("another session"), "{reason}");
    operator.connected().await;
    first
        .wait("a way out", |status| {
            matches!(status.link, LinkState::Disconnected { .. })
        })
        .await;
    first.end().await;
    second.end().await;
}

#[tokio::test]
async fn large_plans_come_through_and_are_bounded() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let large = "x".repeat(700 * 1024);
    let many: Vec<_> = (0..1200)
        .map(|number| resource(&format!("r{number:04}"), "1"))
        .collect();
    let mut wanted = many.clone();
    wanted.push(resource("large", &large));
    operator.handle.set_plan(&role("1"), wanted.clone()).unwrap();
    let mut running = site.start();
    let all = tokio::join!(running.did_until_complete(), async {
        for _ in 0..1201 {
            operator
                .until("an acknowledgement", |seen| {
                    matches!(seen, Observation::Ack { .. }).then_some(())
                })
                .await;
        }
    });
    assert_eq!(all.0.len(), 1201);
    running.end().await;
    operator.disconnected().await;

    // All that is held is announced, in pieces, and nothing is sent again.
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await.len(), 1201);
    let held = operator
        .until("what it holds", |seen| match seen {
            Observation::Holds { resources } => Some(resources.len()),
            _ => None,
        })
        .await;
    assert_eq!(held, 1201);
    assert_eq!(running.did_until_complete().await, Vec::<String>::new());

    wanted.push(resource("large", &large));
    let error = operator.handle.set_plan(&role("1"), wanted).unwrap_err();
    assert_eq!(
        error,
        PlanError::Repeated {
            key: ResourceKey::new("Secret", "plant", "large")
        }
    );
    let too_many = (0..20_001)
        .map(|number| resource(&format!("r{number}"), "1"))
        .collect();
    let error = operator.handle.set_plan(&role("1"), too_many).unwrap_err();
    assert_eq!(error.to_string(), "plan holds 20001 resources, allowed are 20000");
    assert_eq!(
        operator.handle.roles()[0].desired,
        Some(1201),
        "a bad plan replaced a good one"
    );
    running.end().await;
}
