use std::sync::atomic::{AtomicU32, Ordering};

use foreshore_tls::Role;
use tokio::sync::Notify;

use super::*;
use crate::{
    control::ControlAccess,
    workloads::{Shape, Task},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A runner that counts, and does what a test wants.
#[derive(Default)]
struct Fake {
    starts: AtomicU32,
    at_once: AtomicU32,
    /// How often a role fails before it stays.
    failures: u32,
    panics: bool,
    stays: Notify,
}

#[async_trait]
impl RoleRunner for Fake {
    async fn run(&self, start: Start) -> Result<(), RoleError> {
        let number = self.starts.fetch_add(1, Ordering::SeqCst);
        assert!(!start.credentials.credential().await.unwrap().is_empty());
        if number < self.failures {
            assert!(!self.panics, "as a test wants it");
            return Err(RoleError {
                reason: reasons::PORT_IN_USE,
                message: "port 1883 is taken".to_owned(),
            });
        }
        assert_eq!(self.at_once.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        self.stays.notify_one();
        start.shutdown.begun().await;
        sleep(Duration::from_millis(50)).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

fn local(fake: &Arc<Fake>) -> LocalWorkloads {
    foreshore_tls::install_provider();
    LocalWorkloads::new(
        Arc::clone(fake) as Arc<dyn RoleRunner>,
        ControlAccess::for_tests(),
        LocalTokens::new(),
    )
}

fn desired(uid: &str) -> BTreeMap<RoleName, Workload> {
    let role = RoleName::new(Role::Broker, "plant", "main");
    BTreeMap::from([(
        role.clone(),
        Workload {
            role,
            uid: uid.to_owned(),
            task: Task::Broker,
            shape: Shape::default(),
        },
    )])
}

async fn until(local: &LocalWorkloads, what: &str, fits: impl Fn(&Running) -> bool) -> Arc<Running> {
    let mut running = local.running();
    let found = tokio::time::timeout(DEADLINE, running.wait_for(|running| fits(running))).await;
    found
        .unwrap_or_else(|_| panic!("not in time: {what}"))
        .unwrap()
        .clone()
}

fn only(running: &Running) -> Option<&Instance> {
    running.instances.values().flatten().next()
}

#[tokio::test]
async fn a_role_that_ends_is_started_again() {
    let fake = Arc::new(Fake {
        failures: 2,
        ..Fake::default()
    });
    let local = local(&fake);
    local.apply(desired("1")).await;
    let failing = until(&local, "failure", |running| {
        only(running).is_some_and(|one| matches!(one.state, InstanceState::Failing { .. }))
    })
    .await;
    let instance = only(&failing).unwrap();
    assert!(
        matches!(&instance.state, InstanceState::Failing { reason: reasons::PORT_IN_USE, error, .. }
        if error.contains("1883"))
    );
    let stays = until(&local, "third start", |running| {
        only(running)
            .is_some_and(|one| one.restarts == 2 && matches!(one.state, InstanceState::Running { .. }))
    })
    .await;
    assert_eq!(only(&stays).unwrap().identity.uid(), "1");
    local.end().await;
    assert_eq!(
        (
            fake.starts.load(Ordering::SeqCst),
            fake.at_once.load(Ordering::SeqCst)
        ),
        (3, 0)
    );
    assert!(local.running().borrow().instances.is_empty());
}

#[tokio::test]
async fn a_panic_is_a_failure_like_others() {
    let fake = Arc::new(Fake {
        failures: 1,
        panics: true,
        ..Fake::default()
    });
    let local = local(&fake);
    local.apply(desired("1")).await;
    until(&local, "restart", |running| {
        only(running)
            .is_some_and(|one| one.restarts == 1 && matches!(one.state, InstanceState::Running { .. }))
    })
    .await;
    local.end().await;
}

#[tokio::test]
async fn what_did_not_change_runs_on_and_what_did_follows_its_predecessor() {
    let fake = Arc::new(Fake::default());
    let local = local(&fake);
    local.apply(desired("1")).await;
    tokio::time::timeout(DEADLINE, fake.stays.notified())
        .await
        .unwrap();
    local.apply(desired("1")).await;
    assert_eq!(fake.starts.load(Ordering::SeqCst), 1);

    local.apply(desired("2")).await;
    tokio::time::timeout(DEADLINE, fake.stays.notified())
        .await
        .unwrap();
    until(&local, "second", |running| {
        only(running).is_some_and(|one| one.identity.uid() == "2")
    })
    .await;

    // Removed and wanted again at once: still one after the other.
    local.apply(BTreeMap::new()).await;
    local.apply(desired("2")).await;
    tokio::time::timeout(DEADLINE, fake.stays.notified())
        .await
        .unwrap();
    local.apply(BTreeMap::new()).await;
    until(&local, "none", |running| running.instances.is_empty()).await;
    assert_eq!(fake.starts.load(Ordering::SeqCst), 3);
    local.end().await;
}
