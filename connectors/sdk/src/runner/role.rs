//! Changes of the plan, put in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use foreshore_control::{
    Change, Nack, PlanResource, Resource, ResourceKey, Role,
    plan::{AssetPlan, ConnectionPlan, DevicePlan, SecretPlan},
};
use foreshore_crds::conditions::reasons;
use foreshore_mqtt::{Options, Security, Target};
use foreshore_tls::ServerName;

use super::{
    Runner,
    book::{Book, check_protocol},
    device::Device,
    resolve,
    supervisor::Desired,
};
use crate::{
    command::serve::Reachable,
    contract::{Refusal, Subject},
    health::Member,
};

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
            AssetPlan::KIND => {
                if let Some(asset) = self.assets.remove(&name) {
                    self.unlist(&asset);
                    self.refresh(&(name.0, asset.device.clone()));
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
        let assets = self.assets_of(&name);
        let refusals: Vec<Refusal> = check_protocol(self.shared.connector.protocol(), &plan)
            .into_iter()
            .chain(
                self.shared
                    .connector
                    .check(&plan, &assets)
                    .err()
                    .unwrap_or_default(),
            )
            .filter(|refusal| refusal.subject == Subject::Device)
            .collect();
        nack(&refusals)?;
        if let Some(device) = self.devices.get_mut(&name) {
            device.plan = plan;
            self.refresh(&name);
            return Ok(());
        }
        let desired = self.desired(&plan);
        let device = self.shared.start_device(&name, &plan, desired);
        self.devices.insert(name.clone(), device);
        self.refresh(&name);
        Ok(())
    }

    fn remove_device(&mut self, name: &Name) {
        let Some(device) = self.devices.remove(name) else {
            return;
        };
        for asset in self.assets_of(name) {
            self.unlist(&asset);
        }
        self.shared.end_device(name, device);
    }

    fn set_asset(&mut self, plan: AssetPlan) -> Result<(), Nack> {
        let name = (plan.object.namespace.clone(), plan.object.name.clone());
        let plan = Arc::new(plan);
        let device_name = (name.0.clone(), plan.device.clone());
        // Without its device nobody can judge it; the device's arrival will.
        if let Some(device) = self.devices.get(&device_name) {
            let mut refusals = Book::new(&plan.device, &plan).err().unwrap_or_default();
            let mut others = self.assets_of(&device_name);
            others.retain(|other| other.object.name != plan.object.name);
            others.push(Arc::clone(&plan));
            let found = self
                .shared
                .connector
                .check(&device.plan, &others)
                .err()
                .unwrap_or_default();
            // Refusals of the device at this moment are refusals of the asset that is too much for it.
            refusals.extend(found.into_iter().filter(|refusal| match &refusal.subject {
                Subject::Device => true,
                Subject::Asset(asset) => *asset == plan.object.name,
            }));
            nack(&refusals)?;
        }
        let earlier = self.assets.insert(name, Arc::clone(&plan));
        if let Some(earlier) = earlier.filter(|earlier| earlier.device != plan.device) {
            self.unlist(&earlier);
            self.refresh(&(earlier.object.namespace.clone(), earlier.device.clone()));
        }
        self.refresh(&device_name);
        Ok(())
    }

    /// The assets of a device that are switched on, in the order of their names.
    fn assets_of(&self, device: &Name) -> Vec<Arc<AssetPlan>> {
        let of_device = |asset: &&Arc<AssetPlan>| {
            asset.object.namespace == device.0 && asset.device == device.1 && asset.spec.effective_enabled()
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

    /// What a device shall be by the present plan.
    fn desired(&self, plan: &Arc<DevicePlan>) -> Desired {
        let name = (plan.object.namespace.clone(), plan.object.name.clone());
        let all = self.assets_of(&name);
        let found = self.shared.connector.check(plan, &all).err().unwrap_or_default();
        let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for refusal in found {
            let text = refusal.to_string();
            if let Subject::Asset(asset) = refusal.subject {
                refused.entry(asset).or_default().push(text);
            }
        }
        let mut books: BTreeMap<Arc<str>, Arc<Book>> = BTreeMap::new();
        for asset in &all {
            match Book::new(&plan.object.name, asset) {
                Ok(book) => drop(books.insert(Arc::from(asset.object.name.as_str()), Arc::new(book))),
                Err(refusals) => {
                    let texts = refusals.iter().map(ToString::to_string);
                    refused
                        .entry(asset.object.name.clone())
                        .or_default()
                        .extend(texts);
                }
            }
        }
        let find = |secret: &str| self.secrets.get(&(name.0.clone(), secret.to_owned()));
        Desired {
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
            refused: refused
                .into_iter()
                .map(|(asset, texts)| (asset, texts.join("; ")))
                .collect(),
            books: Arc::new(books),
        }
    }

    /// Makes a device follow the present plan.
    fn refresh(&self, name: &Name) {
        let Some(device) = self.devices.get(name) else {
            return;
        };
        let desired = Arc::new(self.desired(&device.plan));
        device.channel.board().plan(desired.members());
        let planned: BTreeSet<Member> = desired.members().into_iter().collect();
        device.counters.retain(|member| planned.contains(member));
        device
            .address
            .send_replace(Arc::from(desired.device.address.as_str()));
        device.books.send_replace(Arc::clone(&desired.books));
        for asset in desired.known.values() {
            if desired.refused.contains_key(&asset.object.name) {
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
        for asset in self.assets.values() {
            let object = &asset.object;
            let of_device = object.namespace == name.0 && asset.device == name.1;
            if of_device && !desired.known.contains_key(&object.name) {
                self.unlist(asset);
            }
        }
        device.desired.send_replace(desired);
    }
}

fn nack(refusals: &[Refusal]) -> Result<(), Nack> {
    const TOLD: usize = 10;
    if refusals.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = refusals.iter().take(TOLD).map(ToString::to_string).collect();
    let more = refusals.len().saturating_sub(TOLD);
    let rest = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    Err(Nack::new(reasons::INVALID, format!("{}{rest}", told.join("; "))))
}
