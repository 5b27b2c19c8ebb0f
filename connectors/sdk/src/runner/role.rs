//! Changes of the plan, put in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{
    Change, GivePlan, Nack, PeersPlan, PlanResource, Resource, ResourceKey, Role, TakePlan, Turn,
    plan::{AssetPlan, ConnectionPlan, DevicePlan, SecretPlan},
};
use foreshore_crds::conditions::reasons;
use foreshore_mqtt::{Options, Security, Target};
use foreshore_tls::ServerName;
use tokio::sync::watch;

use super::{
    Runner,
    book::{Book, check_protocol},
    device::Device,
    resolve,
    supervisor::Desired,
    turn::Gate,
};
use crate::{
    command::serve::Reachable,
    contract::{Refusal, Subject},
    health::Member,
};

/// Shortest and longest time that a device that is given goes on.
const LINGER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

type Name = (String, String);

fn name_of(key: &ResourceKey) -> Name {
    (key.namespace.clone(), key.name.clone())
}

#[async_trait]
impl Role for Runner {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) => self.set(&resource),
            Change::Remove(key) => {
                self.remove(&key);
                Ok(())
            }
            Change::SnapshotComplete => Ok(()),
        }
    }
}

impl Runner {
    fn set(&mut self, resource: &Resource) -> Result<(), Nack> {
        match resource.key().kind.as_str() {
            SecretPlan::KIND => {
                self.set_secret(resource.decode()?);
                Ok(())
            }
            ConnectionPlan::KIND => self.set_connection(resource.decode()?),
            DevicePlan::KIND => self.set_device(resource.decode()?),
            AssetPlan::KIND => self.set_asset(resource.decode()?),
            TakePlan::KIND => {
                self.take(resource.decode()?);
                Ok(())
            }
            GivePlan::KIND => {
                self.give(resource.decode()?);
                Ok(())
            }
            PeersPlan::KIND => {
                let peers: PeersPlan = resource.decode()?;
                self.shared.peers.send_replace(peers.peers);
                Ok(())
            }
            kind => Err(Nack::new(
                reasons::UNSUPPORTED_BY_ROLE,
                format!("a connector has no use for a {kind}"),
            )),
        }
    }

    fn remove(&mut self, key: &ResourceKey) {
        let name = name_of(key);
        match key.kind.as_str() {
            SecretPlan::KIND => {
                self.secrets.remove(&name);
                self.secret_changed(&name);
            }
            DevicePlan::KIND => self.remove_device(&name),
            TakePlan::KIND => self.need_not_wait(&name),
            GivePlan::KIND => self.keep(&name),
            AssetPlan::KIND => {
                if let Some(book) = self.assets.remove(&name) {
                    self.unlist(&book.plan);
                    self.refresh(&(name.0, book.plan.device.clone()));
                }
            }
            // The broker is where it was until another connection is planned.
            _ => {}
        }
    }

    fn set_secret(&mut self, secret: SecretPlan) {
        let name = (secret.namespace.clone(), secret.name.clone());
        self.secrets.insert(name.clone(), secret);
        self.secret_changed(&name);
    }

    /// Devices that use a Secret follow its change.
    fn secret_changed(&self, secret: &Name) {
        let uses = |device: &Device| {
            device.plan.object.namespace == secret.0
                && resolve::secrets_of(&device.plan.spec).contains(&secret.1.as_str())
        };
        let users: Vec<Name> = self
            .devices
            .iter()
            .filter(|(_, device)| uses(device))
            .map(|(name, _)| name.clone())
            .collect();
        for name in users {
            self.refresh(&name);
        }
    }

    fn set_connection(&mut self, connection: ConnectionPlan) -> Result<(), Nack> {
        if let Some(present) = &self.connection
            && present.namespace != connection.namespace
        {
            let message = format!(
                "found connections for namespaces {} and {}, one is allowed",
                present.namespace, connection.namespace
            );
            return Err(Nack::new(reasons::UNSUPPORTED_BY_ROLE, message));
        }
        let invalid = |error: String| Nack::new(reasons::INVALID, error);
        let server_name = ServerName::try_from(connection.server_name.clone())
            .map_err(|_| invalid(format!("serverName {:?} is no host name", connection.server_name)))?;
        let identity = &self.shared.environment.identity;
        let security = Security::mutual(identity, server_name).map_err(|error| invalid(error.to_string()))?;
        let target = Target {
            addresses: connection.mqtt_addresses.clone(),
            security,
        };
        match &*self.shared.client.borrow() {
            // The same name and roots: only another place, if at all.
            Some(client)
                if self
                    .connection
                    .as_ref()
                    .is_some_and(|old| old.server_name == connection.server_name) =>
            {
                client.set_addresses(connection.mqtt_addresses.clone());
                self.connection = Some(connection);
                return Ok(());
            }
            Some(client) => {
                client.set_target(target);
                self.connection = Some(connection);
                return Ok(());
            }
            None => {}
        }
        let Some(role) = identity.role() else {
            return Err(Nack::new(reasons::STARTING, "the role has no certificate yet"));
        };
        let client_id = format!(
            "{}-{}-{}-{}",
            role.role(),
            role.namespace(),
            role.name(),
            role.uid()
        );
        self.shared.start_client(Options::new(client_id, target));
        self.connection = Some(connection);
        Ok(())
    }

    fn set_device(&mut self, plan: DevicePlan) -> Result<(), Nack> {
        let name = (plan.object.namespace.clone(), plan.object.name.clone());
        let plan = Arc::new(plan);
        let protocol = check_protocol(self.shared.connector.protocol(), &plan);
        let Judged {
            desired,
            device: refusals,
            ..
        } = self.judge(&plan);
        nack(protocol.into_iter().chain(refusals).collect())?;
        if let Some(device) = self.devices.get_mut(&name) {
            device.plan = plan;
        } else {
            let (gate, number) = match self.takes.get(&name) {
                // It must not begin, and knows nothing that it could tell of.
                _ if self.order_to_give(&name).is_some() => (Gate::Shut, 0),
                Some(take) => (Gate::of(&take.turn), take.number),
                None => (Gate::Open, 0),
            };
            let device =
                self.shared
                    .start_device(&name, &plan, desired.clone(), watch::Sender::new(gate), number);
            if let Some(give) = self.order_to_give(&name) {
                // It had let go before this process began, and what it had handed over then nobody knows any more.
                device.standing.number(give.number);
                device.give(Duration::ZERO);
            }
            self.devices.insert(name.clone(), device);
            self.count_devices();
        }
        self.follow(&name, desired);
        Ok(())
    }

    fn remove_device(&mut self, name: &Name) {
        let Some(device) = self.devices.remove(name) else {
            return;
        };
        for book in self.assets_of(name) {
            self.unlist(&book.plan);
        }
        device.standing.forget();
        self.shared.end_device(name, device);
        self.count_devices();
    }

    fn count_devices(&self) {
        self.shared.planned.send_replace(self.devices.len());
    }

    /// Says whose turn it is with a device.
    fn take(&mut self, take: TakePlan) {
        let name = (take.namespace.clone(), take.device.clone());
        if let Some(device) = self.devices.get(&name) {
            device.standing.number(take.number);
            // Whoever has begun goes on: a turn is not taken back.
            if device.gate.borrow().is_shut() && take.turn != Turn::Wait {
                device.gate.send_replace(Gate::of(&take.turn));
            }
        }
        self.takes.insert(name.clone(), take);
        self.refresh(&name);
    }

    /// The order to give a device, unless a later one says to take it: of a device that was given before, the order may
    /// not be gone yet.
    fn order_to_give(&self, name: &Name) -> Option<&GivePlan> {
        let taken = self.takes.get(name).map_or(0, |take| take.number);
        self.gives.get(name).filter(|give| give.number > taken)
    }

    /// The order to take a device is gone: it is this instance's.
    fn need_not_wait(&mut self, name: &Name) {
        self.takes.remove(name);
        if let Some(device) = self.devices.get(name)
            && device.gate.borrow().is_shut()
        {
            device.gate.send_replace(Gate::of(&Turn::Lost { epoch: 0 }));
            self.refresh(name);
        }
    }

    /// Lets another instance have a device.
    fn give(&mut self, give: GivePlan) {
        let name = (give.namespace.clone(), give.device.clone());
        if let Some(device) = self.devices.get(&name) {
            device.standing.number(give.number);
            if !device.is_given() {
                let linger = if give.overlap {
                    self.linger(&name)
                } else {
                    Duration::ZERO
                };
                device.give(linger);
            }
        }
        self.gives.insert(name.clone(), give);
        self.refresh(&name);
    }

    /// A device is this instance's again.
    fn keep(&mut self, name: &Name) {
        self.gives.remove(name);
        let Some(given) = self.devices.remove(name) else {
            return;
        };
        if !given.is_given() {
            self.devices.insert(name.clone(), given);
            return;
        }
        let plan = Arc::clone(&given.plan);
        let desired = self.judge(&plan).desired;
        let (opening, number) = (
            watch::Sender::new(Gate::Shut),
            self.takes.get(name).map(|take| take.number),
        );
        match self.takes.get(name).map(|take| &take.turn) {
            Some(Turn::Wait) => {}
            Some(turn @ Turn::After { .. }) => drop(opening.send_replace(Gate::of(turn))),
            // Nobody knows more than what was given here.
            turn @ (Some(Turn::Lost { .. }) | None) => {
                given.resume(opening.clone(), turn.map_or(0, Turn::epoch));
            }
        }
        self.shared.end_device(name, given);
        let number = number.unwrap_or_default();
        let device = self
            .shared
            .start_device(name, &plan, desired.clone(), opening, number);
        self.devices.insert(name.clone(), device);
        self.follow(name, desired);
    }

    /// How long a device that is given goes on: until everything that its server had when the other instance
    /// subscribed has come, and some.
    fn linger(&self, name: &Name) -> Duration {
        let books = self.assets_of(name);
        let datasets = books.iter().flat_map(|book| &book.plan.spec.datasets);
        let longest = datasets
            .map(|dataset| dataset.effective_publishing_interval())
            .max();
        (longest.unwrap_or_default() * 2 + LINGER.0).min(LINGER.1)
    }

    fn set_asset(&mut self, plan: AssetPlan) -> Result<(), Nack> {
        let name = (plan.object.namespace.clone(), plan.object.name.clone());
        let plan = Arc::new(plan);
        let book = Book::new(&plan.device, &plan).map_err(|refusals| refused(&refusals))?;
        let earlier = self.assets.insert(name.clone(), Arc::new(book));
        let device_name = (name.0.clone(), plan.device.clone());
        // Without its device nobody can judge it further; the device's arrival will.
        if let Some(device) = self.devices.get(&device_name) {
            let Judged {
                desired,
                device: mut refusals,
                assets,
            } = self.judge(&device.plan);
            // The device was accepted without this asset: what it is refused for now is the asset's doing.
            refusals.extend(
                assets
                    .into_iter()
                    .filter(|refusal| refusal.subject == Subject::Asset(name.1.clone())),
            );
            if let Err(refusal) = nack(refusals) {
                match earlier {
                    Some(earlier) => drop(self.assets.insert(name, earlier)),
                    None => drop(self.assets.remove(&name)),
                }
                return Err(refusal);
            }
            self.follow(&device_name, desired);
        }
        if let Some(earlier) = earlier.filter(|earlier| earlier.plan.device != plan.device) {
            let left = (name.0.clone(), earlier.plan.device.clone());
            self.refresh(&left);
            if !self.devices.contains_key(&device_name) {
                self.unlist(&plan);
            }
        }
        Ok(())
    }

    /// The assets of a device that are switched on, in the order of their names.
    fn assets_of(&self, device: &Name) -> Vec<Arc<Book>> {
        let of_device = |book: &&Arc<Book>| {
            let AssetPlan {
                object,
                device: of,
                spec,
            } = &*book.plan;
            object.namespace == device.0 && *of == device.1 && spec.effective_enabled()
        };
        self.assets.values().filter(of_device).cloned().collect()
    }

    /// An asset takes no commands any more.
    fn unlist(&self, asset: &AssetPlan) {
        self.shared
            .registry
            .remove(&asset.object.namespace, &asset.object.name);
        self.shared
            .schemas
            .remove(&asset.object.namespace, &asset.object.name);
    }

    /// What a device shall be by the present plan, and what of it can't be.
    fn judge(&self, plan: &Arc<DevicePlan>) -> Judged {
        let name = (plan.object.namespace.clone(), plan.object.name.clone());
        let books = self.assets_of(&name);
        let all: Vec<Arc<AssetPlan>> = books.iter().map(|book| Arc::clone(&book.plan)).collect();
        let found = self.shared.connector.check(plan, &all).err().unwrap_or_default();
        let (device, assets): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|refusal| refusal.subject == Subject::Device);
        let mut refused: BTreeMap<String, String> = BTreeMap::new();
        for refusal in &assets {
            if let Subject::Asset(asset) = &refusal.subject {
                let text = refused.entry(asset.clone()).or_default();
                let separator = if text.is_empty() { "" } else { "; " };
                text.push_str(&format!("{separator}{refusal}"));
            }
        }
        let find = |secret: &str| self.secrets.get(&(name.0.clone(), secret.to_owned()));
        let name_of = |book: &Arc<Book>| Arc::from(book.plan.object.name.as_str());
        let desired = Desired {
            device: Arc::clone(plan),
            resolved: resolve::resolve(&plan.spec, find),
            assets: all
                .iter()
                .filter(|asset| !refused.contains_key(&asset.object.name))
                .cloned()
                .collect(),
            known: all
                .into_iter()
                .map(|asset| (asset.object.name.clone(), asset))
                .collect(),
            refused,
            books: Arc::new(
                books
                    .iter()
                    .map(|book| (name_of(book), Arc::clone(book)))
                    .collect(),
            ),
        };
        Judged {
            desired,
            device,
            assets,
        }
    }

    /// Makes a device follow the present plan.
    fn refresh(&self, name: &Name) {
        if let Some(device) = self.devices.get(name) {
            self.follow(name, self.judge(&device.plan).desired);
        }
    }

    /// Makes a device be what it shall be.
    fn follow(&self, name: &Name, desired: Desired) {
        let Some(device) = self.devices.get(name) else {
            return;
        };
        device.channel.board().plan(desired.members());
        let planned: BTreeSet<Member> = desired.members().into_iter().collect();
        device.counters.retain(|member| planned.contains(member));
        device
            .address
            .send_replace(Arc::from(desired.device.address.as_str()));
        device.books.send_replace(Arc::clone(&desired.books));
        for asset in desired.known.values() {
            if !device.is_served() || desired.refused.contains_key(&asset.object.name) {
                self.unlist(asset);
                continue;
            }
            self.shared.schemas.plan(asset, &*self.shared.connector);
            let (slot, channel) = (Arc::clone(&device.slot), device.channel.clone());
            self.shared.registry.set(Reachable {
                asset: Arc::clone(asset),
                slot,
                channel,
            });
        }
        // Assets that were switched off take no commands any more.
        for book in self.assets.values() {
            let AssetPlan {
                object, device: of, ..
            } = &*book.plan;
            if object.namespace == name.0 && *of == name.1 && !desired.known.contains_key(&object.name) {
                self.unlist(&book.plan);
            }
        }
        device.desired.send_replace(Arc::new(desired));
    }
}

/// A device as it shall be, and what of it can't be.
struct Judged {
    desired: Desired,
    /// Refusals of the device.
    device: Vec<Refusal>,
    /// Refusals of its assets.
    assets: Vec<Refusal>,
}

fn nack(refusals: Vec<Refusal>) -> Result<(), Nack> {
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(refused(&refusals))
    }
}

fn refused(refusals: &[Refusal]) -> Nack {
    const TOLD: usize = 10;
    let told: Vec<String> = refusals.iter().take(TOLD).map(ToString::to_string).collect();
    let more = refusals.len().saturating_sub(TOLD);
    let rest = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    Nack::new(reasons::INVALID, format!("{}{rest}", told.join("; ")))
}
