//! From the plan of a connector to those of its instances: each is told of its own devices.

use std::collections::BTreeMap;

use foreshore_control::{PeersPlan, Resource, ResourceKey, handover::CAPABILITY};
use foreshore_crds::conditions::reasons;
use foreshore_tls::{Role, RoleIdentity};
use jiff::Timestamp;
use tracing::{error, info};

use crate::{
    reconcile::Outcome,
    role::RoleName,
    shards::{Duty, Holdings, Member, Shards},
    status::Index,
    workloads::{Instance, InstanceState},
};

/// A plan of one instance.
pub(super) type Plan = BTreeMap<ResourceKey, Resource>;

/// Where the devices of all connectors are.
#[derive(Default)]
pub(super) struct Placement {
    shards: BTreeMap<RoleName, Shards>,
}

/// Whether the instances of a role share its work.
pub(super) fn is_shared(role: &RoleName) -> bool {
    matches!(role.role, Role::Connector)
}

impl Placement {
    /// Forgets connectors that are gone.
    pub(super) fn retain(&mut self, outcome: &Outcome) {
        self.shards.retain(|role, _| outcome.workloads.contains_key(role));
    }

    /// Where the devices of a connector are.
    pub(super) fn of(&self, role: &RoleName) -> Option<&Shards> {
        self.shards.get(role)
    }

    /// The plans of those instances that can be told something now.
    ///
    /// None while an instance is about to say what it holds, nor, while `settling`, before all have: what one of them
    /// serves must not be given to another.
    pub(super) fn plans(
        &mut self,
        role: &RoleName,
        instances: &[Instance],
        index: &Index,
        settling: bool,
    ) -> Option<BTreeMap<RoleIdentity, Plan>> {
        let mut holdings = Holdings::new();
        let mut members = Vec::with_capacity(instances.len());
        for instance in instances {
            let identity = &instance.identity;
            let session = index.session(identity);
            let connected = session.is_some_and(|session| session.connected.is_some());
            let known = session.is_some_and(|session| session.has_told);
            if is_gone(instance) && !connected {
                continue;
            }
            if !known && (connected || settling) {
                return None;
            }
            for (device, holding) in session.into_iter().flat_map(|session| session.holdings()) {
                holdings
                    .entry(device)
                    .or_default()
                    .insert(identity.clone(), holding);
            }
            members.push(Member {
                identity: identity.clone(),
                connected,
                known,
                leaving: instance.leaving,
                capable: session.is_some_and(|session| session.capabilities.contains(CAPABILITY)),
            });
        }
        let (empty, outcome) = (BTreeMap::new(), index.outcome());
        let units = outcome.plans.units.get(role).unwrap_or(&empty);
        let seed = || u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        let shards = self
            .shards
            .entry(role.clone())
            .or_insert_with(|| Shards::new(seed()));
        let devices = units.keys().cloned().collect();
        for moved in shards.update(&devices, &members, &holdings) {
            info!(%role, device = %moved.device, place = %moved.place, "device moves");
        }
        let whole = outcome.plans.roles.get(role);
        let told = members.iter().filter(|member| member.known);
        let plans = told.map(|member| {
            let others = members.iter().filter(|other| *other != member && !other.leaving);
            let peers = member.capable.then(|| others.count());
            let plan = plan_of(role, whole, units, shards, &member.identity, peers);
            (member.identity.clone(), plan)
        });
        Some(plans.collect())
    }
}

/// Whether an instance that has no session is not expected to have one again: it ends, or its node is lost. Should it
/// still run somewhere, its records are fenced by those of its heirs.
fn is_gone(instance: &Instance) -> bool {
    let lost = matches!(&instance.state, InstanceState::Failing { reason, .. } if *reason == reasons::WAITING_FOR_NODE);
    instance.leaving || lost
}

fn plan_of(
    role: &RoleName,
    whole: Option<&Plan>,
    units: &crate::plan::Units,
    shards: &Shards,
    identity: &RoleIdentity,
    peers: Option<usize>,
) -> Plan {
    let mut plan = Plan::new();
    let Some(whole) = whole else { return plan };
    let duties = shards.duties(identity);
    let mut shared = std::collections::BTreeSet::new();
    for (device, unit) in units {
        shared.extend(unit);
        if duties.contains_key(device) {
            let resources = unit
                .iter()
                .filter_map(|key| Some((key.clone(), whole.get(key)?.clone())));
            plan.extend(resources);
        }
    }
    let common = whole.iter().filter(|(key, _)| !shared.contains(key));
    plan.extend(common.map(|(key, resource)| (key.clone(), resource.clone())));
    let orders = duties.into_values().filter_map(|duty| match duty {
        Duty::Serve => None,
        Duty::Take(take) => Some(Resource::of(&take)),
        Duty::Give(give) => Some(Resource::of(&give)),
    });
    let peers = peers.map(|peers| {
        Resource::of(&PeersPlan {
            namespace: role.namespace.clone(),
            connector: role.name.clone(),
            peers: u32::try_from(peers).unwrap_or(u32::MAX),
        })
    });
    for order in orders.chain(peers) {
        match order {
            Ok(order) => drop(plan.insert(order.key().clone(), order)),
            Err(error) => error!(%role, %error, "order can't be sent"),
        }
    }
    plan
}
