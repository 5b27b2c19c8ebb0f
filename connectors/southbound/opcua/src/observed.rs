//! What is observed at the server, and how it is made equal to what is asked for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use foreshore_connector_sdk::{Health, LinkError, Member, MemberHealth};
use opcua::{
    client::Session,
    types::{
        AttributeId, BrowsePath, ExtensionObject, MonitoredItemCreateRequest, MonitoringMode,
        MonitoringParameters, NodeId, NumericRange, ObjectId, ReadValueId, ReferenceTypeId, RelativePath,
        RelativePathElement, StatusCode, TimestampsToReturn,
    },
};
use tracing::debug;

use crate::{
    address::Address,
    connect::classify,
    event,
    inbox::{Handles, Inbox, Receiver, Target, Track},
    items::{Group, ItemKey, ItemPlan, Items, Watch},
    limits::Limits,
};

/// What is observed now.
#[derive(Default)]
pub(crate) struct Observed {
    /// What is asked for.
    pub(crate) desired: Items,
    /// The server's `NamespaceArray` in this session.
    pub(crate) namespaces: Vec<String>,
    /// What one request may hold.
    pub(crate) limits: Limits,
    pub(crate) subscriptions: Vec<Subscription>,
    items: BTreeMap<ItemKey, Item>,
    next_handle: u32,
}

/// A subscription at the server.
pub(crate) struct Subscription {
    pub(crate) id: u32,
    group: Group,
    items: usize,
    /// Its messages.
    pub(crate) track: Arc<Track>,
}

/// A monitored item, or why there is none.
enum Item {
    Created {
        plan: Box<ItemPlan>,
        subscription: u32,
        id: u32,
        handle: u32,
    },
    Failed {
        why: String,
    },
}

/// Names of data points and why they fail.
type Failing<'a> = Vec<(&'a str, &'a str)>;

/// Rhythm and lifetime of subscriptions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    pub(crate) keep_alive: Duration,
    pub(crate) lifetime: Duration,
}

/// What the reconciliation needs besides what is observed.
pub(crate) struct Tools<'a> {
    pub(crate) session: &'a Session,
    pub(crate) handles: &'a Handles,
    pub(crate) inbox: &'a Arc<Inbox>,
    pub(crate) rhythm: Rhythm,
}

/// Handles of items that are being created. Unless the answer comes they mean nothing, or a second try would have every
/// value twice.
struct Unconfirmed<'a> {
    handles: &'a Handles,
    waiting: Vec<u32>,
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        self.waiting
            .iter()
            .for_each(|handle| self.handles.remove(*handle));
    }
}

/// An item whose node is known.
struct Resolved {
    key: ItemKey,
    plan: ItemPlan,
    node: NodeId,
}

impl Observed {
    /// Ends what is no longer asked for or asked for otherwise, and tries everything that is missing.
    ///
    /// # Errors
    /// When a whole request fails; what was done until then is remembered.
    pub(crate) async fn reconcile(&mut self, tools: &Tools<'_>) -> Result<(), LinkError> {
        self.end_unwanted(tools).await?;
        let missing: Vec<(ItemKey, ItemPlan)> = self
            .desired
            .iter()
            .filter(|(key, _)| !matches!(self.items.get(key), Some(Item::Created { .. })))
            .map(|(key, plan)| (key.clone(), plan.clone()))
            .collect();
        let mut by_group: BTreeMap<Group, Vec<Resolved>> = BTreeMap::new();
        for resolved in self.resolve(tools.session, missing).await? {
            by_group.entry(resolved.plan.group).or_default().push(resolved);
        }
        for (group, items) in by_group {
            self.create(tools, group, items).await?;
        }
        Ok(())
    }

    /// Whether some items could not be created and are worth another try.
    pub(crate) fn has_failures(&self) -> bool {
        self.items
            .values()
            .any(|item| matches!(item, Item::Failed { .. }))
    }

    /// Forgets subscriptions that the server no longer has, with their items.
    pub(crate) fn forget(&mut self, lost: &[u32], handles: &Handles) {
        self.subscriptions
            .retain(|subscription| !lost.contains(&subscription.id));
        self.items.retain(|_, item| match item {
            Item::Created {
                subscription, handle, ..
            } if lost.contains(subscription) => {
                handles.remove(*handle);
                false
            }
            _ => true,
        });
    }

    /// Every dataset and event that is asked for.
    pub(crate) fn members(&self) -> BTreeSet<&Member> {
        self.desired.keys().map(|key| &key.member).collect()
    }

    /// Health of every dataset and event that is asked for.
    pub(crate) fn health(&self) -> Vec<MemberHealth> {
        let mut members: BTreeMap<&Member, (usize, Failing<'_>)> = BTreeMap::new();
        for key in self.desired.keys() {
            let (points, failing) = members.entry(&key.member).or_default();
            *points += 1;
            if let Some(Item::Failed { why }) = self.items.get(key) {
                failing.push((key.point.as_ref(), why));
            }
        }
        let health = members.into_iter().map(|(member, (points, failing))| {
            let health = Health::of_points(points, failing);
            MemberHealth {
                member: member.clone(),
                health,
            }
        });
        health.collect()
    }

    async fn end_unwanted(&mut self, tools: &Tools<'_>) -> Result<(), LinkError> {
        let mut unwanted: HashMap<u32, Vec<(ItemKey, u32, u32)>> = HashMap::new();
        for (key, item) in &self.items {
            if let Item::Created {
                plan,
                subscription,
                id,
                handle,
            } = item
                && self.desired.get(key) != Some(plan.as_ref())
            {
                unwanted
                    .entry(*subscription)
                    .or_default()
                    .push((key.clone(), *id, *handle));
            }
        }
        self.items
            .retain(|key, item| matches!(item, Item::Created { .. }) || self.desired.contains_key(key));
        for (subscription, items) in unwanted {
            for chunk in items.chunks(self.limits.items_per_call) {
                let ids: Vec<u32> = chunk.iter().map(|(_, id, _)| *id).collect();
                tools
                    .session
                    .delete_monitored_items(subscription, &ids)
                    .await
                    .map_err(request_failed)?;
                for (key, _, handle) in chunk {
                    self.items.remove(key);
                    tools.handles.remove(*handle);
                }
            }
            if let Some(known) = self
                .subscriptions
                .iter_mut()
                .find(|known| known.id == subscription)
            {
                known.items = known.items.saturating_sub(items.len());
            }
        }
        let empty: Vec<u32> = self
            .subscriptions
            .iter()
            .filter(|subscription| subscription.items == 0)
            .map(|known| known.id)
            .collect();
        if !empty.is_empty() {
            tools
                .session
                .delete_subscriptions(&empty)
                .await
                .map_err(request_failed)?;
            self.subscriptions.retain(|subscription| subscription.items > 0);
        }
        Ok(())
    }

    /// Finds the nodes of items; what has none is remembered with the reason.
    async fn resolve(
        &mut self,
        session: &Session,
        missing: Vec<(ItemKey, ItemPlan)>,
    ) -> Result<Vec<Resolved>, LinkError> {
        let wanted: Vec<Wanted<'_>> = missing
            .iter()
            .map(|(_, plan)| Wanted {
                start: plan.start.as_ref(),
                node: &plan.node,
            })
            .collect();
        let nodes = resolve(session, &wanted, &self.namespaces, self.limits.paths_per_call).await?;
        let mut found = Vec::with_capacity(missing.len());
        for ((key, plan), node) in missing.into_iter().zip(nodes) {
            match node {
                Ok(node) => found.push(Resolved { key, plan, node }),
                Err(why) => {
                    self.items.insert(key, Item::Failed { why });
                }
            }
        }
        Ok(found)
    }

    async fn create(
        &mut self,
        tools: &Tools<'_>,
        group: Group,
        mut items: Vec<Resolved>,
    ) -> Result<(), LinkError> {
        while !items.is_empty() {
            let (subscription, room) = self.subscription(tools, group).await?;
            let rest = items.split_off(items.len().min(room).min(self.limits.items_per_call));
            self.create_in(tools, subscription, items).await?;
            items = rest;
        }
        Ok(())
    }

    /// A subscription of that rhythm with room for more items, and how many.
    async fn subscription(&mut self, tools: &Tools<'_>, group: Group) -> Result<(u32, usize), LinkError> {
        let limit = self.limits.items_per_subscription;
        let known = self
            .subscriptions
            .iter()
            .find(|known| known.group == group && known.items < limit);
        if let Some(known) = known {
            return Ok((known.id, limit - known.items));
        }
        let count = |duration: Duration, least: u128| {
            let count = duration
                .as_millis()
                .div_ceil(group.interval.as_millis().max(1))
                .max(least);
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let keep_alive = count(tools.rhythm.keep_alive, 1);
        // A lifetime shorter than three keep-alives is refused (OPC 10000-4, 5.14.2).
        let lifetime = count(tools.rhythm.lifetime, u128::from(keep_alive) * 3);
        let track = Arc::<Track>::default();
        let receiver = Receiver::new(Arc::clone(tools.inbox), Arc::clone(&track));
        let id = tools
            .session
            .create_subscription(
                group.interval,
                lifetime,
                keep_alive,
                0,
                group.priority,
                true,
                receiver,
            )
            .await
            .map_err(request_failed)?;
        debug!(id, ?group, "created a subscription");
        track.name(id);
        self.subscriptions.push(Subscription {
            id,
            group,
            items: 0,
            track,
        });
        Ok((id, limit))
    }

    async fn create_in(
        &mut self,
        tools: &Tools<'_>,
        subscription: u32,
        items: Vec<Resolved>,
    ) -> Result<(), LinkError> {
        let mut requests = Vec::with_capacity(items.len());
        let mut asked = Vec::with_capacity(items.len());
        let mut unconfirmed = Unconfirmed {
            handles: tools.handles,
            waiting: Vec::with_capacity(items.len()),
        };
        for Resolved { key, plan, node } in items {
            self.next_handle += 1;
            let handle = self.next_handle;
            match request(&plan, node, handle, &self.namespaces) {
                Ok(request) => {
                    // Before the request, since values may arrive before its answer.
                    let event = match &plan.watch {
                        Watch::Events(event) => Some(event.clone()),
                        Watch::Value { .. } => None,
                    };
                    tools.handles.insert(
                        handle,
                        Target {
                            key: key.clone(),
                            event,
                        },
                    );
                    unconfirmed.waiting.push(handle);
                    requests.push(request);
                    asked.push((key, plan, handle));
                }
                Err(why) => {
                    self.items.insert(key, Item::Failed { why });
                }
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        let answered = tools
            .session
            .create_monitored_items(subscription, TimestampsToReturn::Both, requests)
            .await
            .map_err(request_failed)?;
        unconfirmed.waiting.clear();
        for ((key, plan, handle), created) in asked.into_iter().zip(answered) {
            let status = created.result.status_code;
            let item = if status.is_good() {
                if let Some(known) = self
                    .subscriptions
                    .iter_mut()
                    .find(|known| known.id == subscription)
                {
                    known.items += 1;
                }
                Item::Created {
                    plan: Box::new(plan),
                    subscription,
                    id: created.result.monitored_item_id,
                    handle,
                }
            } else {
                tools.handles.remove(handle);
                Item::Failed {
                    why: status.to_string(),
                }
            };
            self.items.insert(key, item);
        }
        Ok(())
    }
}

pub(crate) fn request_failed(error: opcua::types::Error) -> LinkError {
    classify(error.status(), "the server did not carry out a request").with_evidence(error)
}

fn request(
    plan: &ItemPlan,
    node_id: NodeId,
    client_handle: u32,
    namespaces: &[String],
) -> Result<MonitoredItemCreateRequest, String> {
    let (attribute, range, sampling_interval, filter, discard_oldest) = match &plan.watch {
        Watch::Value {
            sampling,
            discard_oldest,
            trigger,
            deadband,
            index_range,
            register: _,
        } => {
            let range = index_range.as_deref().map_or(Ok(NumericRange::None), str::parse);
            let range = range.map_err(|_| "indexRange is not a numeric range such as 0:9".to_owned())?;
            let filter = data_change_filter(*trigger, *deadband);
            (
                AttributeId::Value,
                range,
                sampling.as_secs_f64() * 1000.0,
                filter,
                *discard_oldest,
            )
        }
        Watch::Events(event) => {
            let filter = event::filter(event, namespaces).map_err(|error| error.to_string())?;
            (
                AttributeId::EventNotifier,
                NumericRange::None,
                0.0,
                ExtensionObject::from_message(filter),
                true,
            )
        }
    };
    Ok(MonitoredItemCreateRequest {
        item_to_monitor: ReadValueId {
            node_id,
            attribute_id: attribute as u32,
            index_range: range,
            ..ReadValueId::default()
        },
        monitoring_mode: MonitoringMode::Reporting,
        requested_parameters: MonitoringParameters {
            client_handle,
            sampling_interval,
            filter,
            queue_size: plan.queue_size,
            discard_oldest,
        },
    })
}

/// No filter where the default does, since some servers know none.
fn data_change_filter(
    trigger: foreshore_crds::v1alpha1::asset::ChangeTrigger,
    deadband: Option<(u32, f64)>,
) -> ExtensionObject {
    use foreshore_crds::v1alpha1::asset::ChangeTrigger;
    use opcua::types::{DataChangeFilter, DataChangeTrigger};
    if trigger == ChangeTrigger::StatusValue && deadband.is_none() {
        return ExtensionObject::null();
    }
    let (deadband_type, deadband_value) = deadband.unwrap_or((0, 0.0));
    let trigger = match trigger {
        ChangeTrigger::Status => DataChangeTrigger::Status,
        ChangeTrigger::StatusValue => DataChangeTrigger::StatusValue,
        ChangeTrigger::StatusValueTimestamp => DataChangeTrigger::StatusValueTimestamp,
    };
    ExtensionObject::from_message(DataChangeFilter {
        trigger,
        deadband_type,
        deadband_value,
    })
}

/// A node that is looked for.
pub(crate) struct Wanted<'a> {
    /// Where a browse path begins; the Root folder where it is left out.
    pub(crate) start: Option<&'a Address>,
    /// The node.
    pub(crate) node: &'a Address,
}

/// Finds nodes by their addresses; what has none gets the reason.
///
/// # Errors
/// When a whole request fails.
pub(crate) async fn resolve(
    session: &Session,
    wanted: &[Wanted<'_>],
    namespaces: &[String],
    chunk: usize,
) -> Result<Vec<Result<NodeId, String>>, LinkError> {
    let mut nodes: Vec<Result<NodeId, String>> = Vec::with_capacity(wanted.len());
    let mut paths: Vec<(usize, BrowsePath)> = Vec::new();
    for (index, Wanted { start, node }) in wanted.iter().enumerate() {
        let direct = node
            .node_id(namespaces)
            .map(|id| id.map_err(|error| error.to_string()));
        nodes.push(
            direct.unwrap_or_else(|| match browse_path(*start, node, namespaces) {
                Ok(path) => {
                    paths.push((index, path));
                    Err(StatusCode::BadNoMatch.to_string())
                }
                Err(why) => Err(why),
            }),
        );
    }
    for chunk in paths.chunks(chunk.max(1)) {
        let request: Vec<BrowsePath> = chunk.iter().map(|(_, path)| path.clone()).collect();
        let results = session
            .translate_browse_paths_to_node_ids(&request)
            .await
            .map_err(request_failed)?;
        for ((index, _), result) in chunk.iter().zip(results) {
            let target = result
                .targets
                .into_iter()
                .flatten()
                .next()
                .map(|target| target.target_id.node_id);
            let found = target
                .filter(|_| result.status_code.is_good())
                .ok_or_else(|| result.status_code.to_string());
            if let Some(slot) = nodes.get_mut(*index) {
                *slot = found;
            }
        }
    }
    Ok(nodes)
}

fn browse_path(start: Option<&Address>, path: &Address, namespaces: &[String]) -> Result<BrowsePath, String> {
    let starting_node = match start.map(|start| start.node_id(namespaces)) {
        None => ObjectId::RootFolder.into(),
        Some(Some(id)) => id.map_err(|error| error.to_string())?,
        Some(None) => return Err("startNode is a browse path, a node id is allowed".to_owned()),
    };
    let names = path
        .browse_names(namespaces)
        .unwrap_or_else(|| Ok(Vec::new()))
        .map_err(|error| error.to_string())?;
    let elements = names.into_iter().map(|target_name| RelativePathElement {
        reference_type_id: ReferenceTypeId::HierarchicalReferences.into(),
        is_inverse: false,
        include_subtypes: true,
        target_name,
    });
    Ok(BrowsePath {
        starting_node,
        relative_path: RelativePath {
            elements: Some(elements.collect()),
        },
    })
}
