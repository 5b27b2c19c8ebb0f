use std::borrow::Cow;

use foreshore_control::{
    Aspect, AspectKind, Health, Nack, ObjectRef, Observation, Report, session::server::ResourceVersion,
};
use foreshore_crds::conditions::{find, reasons, types};
use foreshore_tls::Role;
use jiff::SignedDuration;

use super::*;
use crate::{
    object::Kind,
    reconcile::tests::{plant, told},
    status::StatusTable,
    workloads::{Instance, InstanceState},
};

/// An index of the plant, and the hands that turn it.
struct Fixture {
    index: Index,
    now: Timestamp,
}

fn identity(role: Role, name: &str) -> RoleIdentity {
    RoleIdentity::new(role, "plant", name, "1").unwrap()
}

fn connector() -> RoleIdentity {
    identity(Role::Connector, "opcua")
}

fn device() -> ObjectKey {
    ObjectKey::new(Kind::Device, "plant", "plc")
}

impl Fixture {
    fn new() -> Self {
        let mut index = Index::default();
        index.set_outcome(Arc::new(plant(&told())));
        let mut fixture = Self {
            index,
            now: Timestamp::UNIX_EPOCH,
        };
        fixture.run(InstanceState::Running {
            since: Timestamp::UNIX_EPOCH,
        });
        fixture
    }

    fn run(&mut self, state: InstanceState) {
        let roles = self.index.outcome().workloads.keys().cloned().collect::<Vec<_>>();
        let instance = |role: &RoleName| Instance {
            identity: identity(role.role, &role.name),
            state: state.clone(),
            restarts: 3,
            leaving: false,
        };
        let instances = roles
            .into_iter()
            .map(|role| (role.clone(), vec![instance(&role)]))
            .collect();
        self.index.set_running(Arc::new(Running {
            instances,
            ..Running::default()
        }));
    }

    fn observe(&mut self, role: &RoleIdentity, what: Observation) {
        self.index.observe(
            Observed {
                role: role.clone(),
                what,
            },
            self.now,
        );
    }

    fn connect(&mut self, role: &RoleIdentity) {
        let address = "127.0.0.1:9".parse().unwrap();
        self.observe(
            role,
            Observation::Connected {
                software: "test".into(),
                capabilities: BTreeSet::new(),
                address,
            },
        );
    }

    /// What a role is told of a resource.
    fn version(&self, role: &RoleIdentity, kind: &str, name: &str) -> ResourceVersion {
        let key = ResourceKey::new(kind, "plant", name);
        let resource = &self.index.outcome().plans.roles[&RoleName::of(role)][&key];
        ResourceVersion {
            key,
            version: 1,
            hash: resource.hash(),
        }
    }

    fn acknowledge(&mut self, role: &RoleIdentity) {
        let plan = self.index.outcome().plans.roles[&RoleName::of(role)].clone();
        for (key, resource) in plan {
            let resource = ResourceVersion {
                key,
                version: 1,
                hash: resource.hash(),
            };
            self.observe(role, Observation::Ack { resource });
        }
    }

    fn report(&mut self, health: Health, reason: &'static str, aspect: Aspect, count: u64) {
        let object = ObjectRef {
            namespace: "plant".into(),
            name: "plc".into(),
            uid: "1".into(),
            generation: 1,
        };
        let report = Report::new("Device", &object, aspect, health, reason);
        let report = report
            .message("in words")
            .evidence("word for word")
            .counter("values", count);
        self.observe(&connector(), Observation::Report(report));
    }

    fn pass(&mut self, time: SignedDuration) -> Vec<ObjectKey> {
        self.now += time;
        self.index
            .refresh(self.now)
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }

    /// Status, reason and message of a condition.
    fn condition(&mut self, key: &ObjectKey, type_: &str) -> Option<(String, String, String)> {
        self.pass(SignedDuration::ZERO);
        let condition = find(&self.index.statuses()[key].conditions, type_)?;
        Some((
            condition.status.to_string(),
            condition.reason.to_string(),
            condition.message.to_string(),
        ))
    }

    fn is(&mut self, key: &ObjectKey, type_: &str, status: &str, reason: &str) {
        let (found, why, message) = self.condition(key, type_).unwrap_or_default();
        assert_eq!(
            (found.as_str(), why.as_str()),
            (status, reason),
            "{key} {type_}: {message}"
        );
    }
}

#[test]
fn an_object_is_ready_when_its_role_has_acknowledged_it() {
    let mut fixture = Fixture::new();
    fixture.is(&device(), types::READY, "False", reasons::AWAITING_ROLE);
    fixture.is(&device(), types::RECONCILING, "True", reasons::AWAITING_ROLE);
    fixture.connect(&connector());
    fixture.acknowledge(&connector());
    fixture.is(&device(), types::READY, "True", reasons::IN_FORCE);
    fixture.is(&device(), types::ACCEPTED, "True", reasons::ACCEPTED);
    fixture.is(&device(), types::RESOLVED_REFS, "True", reasons::RESOLVED);
    assert_eq!(fixture.condition(&device(), types::RECONCILING), None);
    // An older version is not enough.
    let mut old = fixture.version(&connector(), "Device", "plc");
    old.hash = foreshore_tls::Fingerprint::of(b"older");
    fixture.observe(&connector(), Observation::Ack { resource: old });
    fixture.is(&device(), types::READY, "False", reasons::AWAITING_ROLE);
}

#[test]
fn a_refusal_stalls_until_the_version_changes() {
    let mut fixture = Fixture::new();
    fixture.connect(&connector());
    fixture.acknowledge(&connector());
    let resource = fixture.version(&connector(), "Device", "plc");
    let nack = Nack {
        reason: Cow::Borrowed("BadAddress"),
        message: "no such host".into(),
    };
    fixture.observe(
        &connector(),
        Observation::Nack {
            resource: resource.clone(),
            nack,
        },
    );
    fixture.is(&device(), types::ACCEPTED, "False", reasons::REFUSED_BY_ROLE);
    fixture.is(&device(), types::STALLED, "True", reasons::REFUSED_BY_ROLE);
    let message = fixture.condition(&device(), types::READY).unwrap().2;
    assert!(
        message.contains("BadAddress") && message.contains("no such host"),
        "{message}"
    );
    fixture.observe(&connector(), Observation::Ack { resource });
    fixture.is(&device(), types::READY, "True", reasons::IN_FORCE);
}

#[test]
fn a_role_that_fails_is_why_its_objects_are_not_ready() {
    let mut fixture = Fixture::new();
    let (since, next) = (fixture.now, fixture.now);
    let error = "address in use".to_owned();
    fixture.run(InstanceState::Failing {
        since,
        error,
        reason: reasons::PORT_IN_USE,
        next,
    });
    fixture.is(&device(), types::READY, "False", reasons::PORT_IN_USE);
    let table = StatusTable::of(&fixture.index, fixture.now);
    assert_eq!(
        table.object(&device()).unwrap().evidence.as_deref(),
        Some("address in use")
    );
    assert!(table.to_string().contains("ROLES THAT FAIL"));
}

#[test]
fn health_is_the_worst_of_its_parts_and_no_part_of_ready() {
    let mut fixture = Fixture::new();
    fixture.connect(&connector());
    fixture.acknowledge(&connector());
    fixture.is(&device(), types::HEALTHY, "Unknown", reasons::NOT_YET_KNOWN);
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 0);
    fixture.is(&device(), types::HEALTHY, "True", reasons::HEALTHY);
    fixture.report(
        Health::Unavailable,
        reasons::AUTHENTICATION_FAILED,
        Aspect::endpoint(),
        0,
    );
    fixture.is(&device(), types::HEALTHY, "False", reasons::AUTHENTICATION_FAILED);
    fixture.is(&device(), types::READY, "True", reasons::IN_FORCE);
    // A reason that only the role knows goes into the message.
    let events = Aspect::new(AspectKind::Event, "alarms/high");
    fixture.report(Health::Available, reasons::HEALTHY, events, 0);
    fixture.report(Health::Unavailable, "BadLuck", Aspect::endpoint(), 0);
    fixture.is(&device(), types::HEALTHY, "False", reasons::DEGRADED);
    let message = fixture.condition(&device(), types::HEALTHY).unwrap().2;
    assert_eq!(message, "Endpoint (BadLuck): in words");
    let table = StatusTable::of(&fixture.index, fixture.now);
    let row = table.object(&device()).unwrap();
    assert_eq!(
        (row.evidence.as_deref(), row.next.is_some()),
        (Some("word for word"), true)
    );
    // What is retracted does not count.
    fixture.observe(
        &connector(),
        Observation::Retracted {
            object: ResourceKey::new("Device", "plant", "plc"),
            aspect: Aspect::endpoint(),
        },
    );
    fixture.is(&device(), types::HEALTHY, "True", reasons::HEALTHY);
}

#[test]
fn a_connector_is_as_healthy_as_its_devices() {
    let mut fixture = Fixture::new();
    let own = ObjectKey::new(Kind::Connector, "plant", "opcua");
    fixture.connect(&connector());
    fixture.is(&own, types::HEALTHY, "Unknown", reasons::NOT_YET_KNOWN);
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 0);
    fixture.is(&own, types::HEALTHY, "True", reasons::HEALTHY);
    fixture.report(Health::Unavailable, reasons::UNREACHABLE, Aspect::endpoint(), 0);
    fixture.is(&own, types::HEALTHY, "False", reasons::UNREACHABLE);
    let message = fixture.condition(&own, types::HEALTHY).unwrap().2;
    assert_eq!(message, "1 of 1 devices do not work: plc");
}

#[test]
fn a_lost_session_makes_health_unknown_after_a_while_and_leaves_ready() {
    let mut fixture = Fixture::new();
    fixture.connect(&connector());
    fixture.acknowledge(&connector());
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 0);
    fixture.observe(
        &connector(),
        Observation::Disconnected {
            reason: "cut".into(),
            on_purpose: false,
        },
    );
    fixture.is(&device(), types::HEALTHY, "True", reasons::HEALTHY);
    let due = fixture.index.next_due().unwrap();
    assert_eq!(
        due.duration_since(fixture.now),
        SignedDuration::try_from(STALE_AFTER).unwrap()
    );
    fixture.pass(SignedDuration::from_secs(30));
    fixture.is(&device(), types::HEALTHY, "Unknown", reasons::STALE);
    fixture.is(&device(), types::READY, "True", reasons::IN_FORCE);
    assert_eq!(fixture.index.next_due(), None);
    // Back again, it says anew what it has and how it is.
    fixture.connect(&connector());
    fixture.acknowledge(&connector());
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 0);
    fixture.is(&device(), types::HEALTHY, "True", reasons::HEALTHY);
}

#[test]
fn nothing_changes_while_nothing_happens() {
    let mut fixture = Fixture::new();
    assert!(!fixture.pass(SignedDuration::ZERO).is_empty());
    assert!(fixture.pass(SignedDuration::from_hours(1)).is_empty());
    let outcome = Arc::clone(fixture.index.outcome());
    fixture.index.set_outcome(Arc::new((*outcome).clone()));
    assert!(fixture.pass(SignedDuration::from_hours(1)).is_empty());
    // The same report again is news only for its rates.
    fixture.connect(&connector());
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 1);
    assert!(!fixture.pass(SignedDuration::ZERO).is_empty());
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 2);
    assert!(fixture.pass(SignedDuration::ZERO).is_empty());
}

#[test]
fn counters_have_rates() {
    let mut fixture = Fixture::new();
    fixture.connect(&connector());
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 100);
    fixture.pass(SignedDuration::from_secs(2));
    fixture.report(Health::Available, reasons::HEALTHY, Aspect::endpoint(), 300);
    fixture.pass(SignedDuration::ZERO);
    let table = StatusTable::of(&fixture.index, fixture.now);
    let part = &table.object(&device()).unwrap().parts[0];
    assert_eq!((part.counters["values"], part.rates["values"]), (300, 100.0));
    assert!(table.to_string().contains("100.0 values/s"), "{table}");
    let later = fixture.now + SignedDuration::from_secs(60);
    let table = StatusTable::of(&fixture.index, later);
    assert_eq!(table.object(&device()).unwrap().parts[0].rates["values"], 0.0);
}

#[test]
fn an_object_that_is_gone_has_no_status() {
    let mut fixture = Fixture::new();
    fixture.pass(SignedDuration::ZERO);
    fixture.index.set_outcome(Arc::new(Outcome::default()));
    let changed = fixture.index.refresh(fixture.now);
    assert!(!changed.is_empty() && changed.iter().all(|(_, status)| status.is_none()));
    assert!(StatusTable::of(&fixture.index, fixture.now).objects.is_empty());
}

#[test]
fn the_table_is_stable() {
    let mut fixture = Fixture::new();
    fixture.connect(&connector());
    fixture.acknowledge(&connector());
    fixture.report(Health::Unavailable, reasons::UNREACHABLE, Aspect::endpoint(), 7);
    fixture.pass(SignedDuration::from_secs(100));
    let table = StatusTable::of(&fixture.index, fixture.now);
    insta::assert_snapshot!("table", table.to_string());
    insta::assert_json_snapshot!("device", table.object(&device()).unwrap());
    assert_eq!(
        table.paths,
        [
            "connector/plant/plc->broker/plant/main",
            "connector/plant/sim->broker/plant/main",
            "dataflow/plant/telemetry->cloud"
        ]
    );
}
