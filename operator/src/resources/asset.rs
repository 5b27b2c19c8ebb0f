//! `Asset`: what is observed and commanded at a device.

use foreshore_control::{
    PlanResource, ResourceKey,
    plan::{AssetPlan, AssetSummaryPlan, ConnectionPlan, DevicePlan},
};
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{
        AssetSpec, Destination, Protocol,
        asset::{Action, ActionGroup, AssetEvent, DataPoint, Dataset, EventGroup, Relay, Stream},
    },
};
use foreshore_record::topic::{InvalidTemplate, fill_template};

use crate::{
    object::{Kind, ObjectKey},
    plan::Planner,
    problem::Problem,
    role::RoleName,
};

use super::{Faults, Name, Scope, Version, broker, connector, not_built_in};

/// An Asset that can be served.
pub(crate) struct ValidAsset {
    pub(crate) version: Version<AssetSpec>,
    pub(crate) device: Name,
    pub(crate) connector: Name,
    secrets: Vec<Name>,
}

fn dereference(version: &Version<AssetSpec>, scope: &Scope<'_>) -> (Option<Name>, Vec<Name>, Faults) {
    let mut secrets = scope.secrets(&version.name.namespace);
    for (index, stream) in version.spec.streams.iter().enumerate() {
        if let Some(Relay {
            address: _,
            secret_ref: Some(reference),
        }) = &stream.relay
        {
            secrets.credentials(reference, &format!("spec.streams[{index}].relay.secretRef"));
        }
    }
    let (secrets, mut faults) = secrets.finish();
    let reference = &version.spec.device_ref;
    let device = faults.take(scope.find(Kind::Device, &version.name.namespace, reference, "spec.deviceRef"));
    (device, secrets, faults)
}

pub(crate) fn validate(
    version: Version<AssetSpec>,
    scope: &mut Scope<'_>,
) -> Result<ValidAsset, Vec<Problem>> {
    let (name, secrets, mut faults) = dereference(&version, scope);
    let device = name.as_ref().and_then(|name| scope.valid.devices.get(name));
    if let Some(device) = device {
        check_blocks(&version.spec, &Rules::of(device.protocol), &mut faults);
        Topics::new(&version, &device.version.name.name).check(&version.spec, &mut faults);
    }
    faults.check()?;
    match (name, device) {
        (Some(name), Some(device)) => {
            let connector = device.connector.clone();
            Ok(ValidAsset {
                version,
                device: name,
                connector,
                secrets,
            })
        }
        _ => Err(Vec::new()),
    }
}

/// What a connector of a protocol can do with an asset.
struct Rules {
    protocol: Protocol,
    datasets: bool,
    /// Kinds of streams.
    streams: &'static [&'static str],
}

impl Rules {
    fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Opcua => Self {
                protocol,
                datasets: true,
                streams: &[],
            },
            Protocol::Onvif => Self {
                protocol,
                datasets: false,
                streams: &["snapshot"],
            },
            Protocol::Custom => Self {
                protocol,
                datasets: true,
                streams: &["snapshot", "clip", "relay"],
            },
        }
    }

    /// A block of another protocol than the device's.
    fn block(&self, field: &str, block: Protocol, present: bool, faults: &mut Faults) {
        if present && block != self.protocol {
            let message = "a block of another protocol than the device's";
            let problem = Problem::new(reasons::PROTOCOL_MISMATCH, message).field(format!("{field}.{block}"));
            faults.add(problem.found(block.as_str()).allowed(self.protocol.as_str()));
        }
    }

    /// Something that the connector of the protocol does not do.
    fn unsupported(&self, field: &str, found: &str, allowed: &str, faults: &mut Faults) {
        let message = format!("not done by the connector for {}", self.protocol);
        let problem = Problem::new(reasons::UNSUPPORTED_HERE, message).field(field);
        faults.add(problem.found(found).allowed(allowed));
    }
}

fn check_blocks(spec: &AssetSpec, rules: &Rules, faults: &mut Faults) {
    use Protocol::{Custom, Onvif, Opcua};
    for (index, dataset) in spec.datasets.iter().enumerate() {
        let field = format!("spec.datasets[{index}]");
        if !rules.datasets {
            rules.unsupported(
                &field,
                "a dataset",
                "eventGroups, streams and actionGroups",
                faults,
            );
        }
        let Dataset {
            opcua,
            custom,
            data_points,
            ..
        } = dataset;
        rules.block(&field, Opcua, opcua.is_some(), faults);
        rules.block(&field, Custom, custom.is_some(), faults);
        for (index, point) in data_points.iter().enumerate() {
            let DataPoint { opcua, custom, .. } = point;
            // Most points have no block: their path is written only when it is needed.
            if opcua.is_some() || custom.is_some() {
                let field = format!("{field}.dataPoints[{index}]");
                rules.block(&field, Opcua, opcua.is_some(), faults);
                rules.block(&field, Custom, custom.is_some(), faults);
            }
        }
    }
    for (index, group) in spec.event_groups.iter().enumerate() {
        let field = format!("spec.eventGroups[{index}]");
        let EventGroup {
            name: _,
            destination: _,
            custom,
            events,
        } = group;
        rules.block(&field, Custom, custom.is_some(), faults);
        for (index, event) in events.iter().enumerate() {
            let field = format!("{field}.events[{index}]");
            let AssetEvent {
                name: _,
                address: _,
                destination: _,
                opcua,
                onvif,
                custom,
            } = event;
            rules.block(&field, Opcua, opcua.is_some(), faults);
            let refresh = opcua
                .as_ref()
                .is_some_and(|opcua| opcua.condition_refresh.is_some());
            faults.take(not_built_in(&format!("{field}.opcua.conditionRefresh"), refresh));
            rules.block(&field, Onvif, onvif.is_some(), faults);
            rules.block(&field, Custom, custom.is_some(), faults);
        }
    }
    for (index, stream) in spec.streams.iter().enumerate() {
        check_stream(stream, &format!("spec.streams[{index}]"), rules, faults);
    }
    for (index, group) in spec.action_groups.iter().enumerate() {
        let field = format!("spec.actionGroups[{index}]");
        let ActionGroup {
            name: _,
            timeout: _,
            custom,
            actions,
        } = group;
        rules.block(&field, Custom, custom.is_some(), faults);
        for (index, action) in actions.iter().enumerate() {
            let field = format!("{field}.actions[{index}]");
            let Action {
                opcua, onvif, custom, ..
            } = action;
            rules.block(&field, Opcua, opcua.is_some(), faults);
            rules.block(&field, Onvif, onvif.is_some(), faults);
            rules.block(&field, Custom, custom.is_some(), faults);
            if rules.protocol == Onvif && onvif.is_none() {
                rules.unsupported(
                    &field,
                    "an action without onvif.operation",
                    "onvif.operation",
                    faults,
                );
            }
        }
    }
}

fn check_stream(stream: &Stream, field: &str, rules: &Rules, faults: &mut Faults) {
    let Stream {
        name: _,
        destination: _,
        snapshot,
        clip,
        relay,
        onvif,
        custom,
    } = stream;
    rules.block(field, Protocol::Onvif, onvif.is_some(), faults);
    rules.block(field, Protocol::Custom, custom.is_some(), faults);
    let kinds = [
        ("snapshot", snapshot.is_some()),
        ("clip", clip.is_some()),
        ("relay", relay.is_some()),
    ];
    for (kind, _) in kinds
        .into_iter()
        .filter(|(kind, present)| *present && !rules.streams.contains(kind))
    {
        let allowed = if rules.streams.is_empty() {
            "no streams".to_owned()
        } else {
            rules.streams.join(", ")
        };
        rules.unsupported(&format!("{field}.{kind}"), kind, &allowed, faults);
    }
}

/// Checks topic templates with the values that they will be filled with.
struct Topics<'a> {
    namespace: &'a str,
    asset: &'a str,
    device: &'a str,
    attributes: Vec<(String, &'a str)>,
}

impl<'a> Topics<'a> {
    fn new(version: &'a Version<AssetSpec>, device: &'a str) -> Self {
        let attributes = version.spec.attributes.iter();
        Self {
            namespace: &version.name.namespace,
            asset: &version.name.name,
            device,
            attributes: attributes
                .map(|(name, value)| (format!("attributes.{name}"), value.as_str()))
                .collect(),
        }
    }

    fn check(&self, spec: &AssetSpec, faults: &mut Faults) {
        let outer = spec.destination.as_ref();
        // The asset's own template is filled for datasets, events and streams alike, each with its own placeholders,
        // and found wrong where it is used.
        for (index, dataset) in spec.datasets.iter().enumerate() {
            let field = format!("spec.datasets[{index}]");
            self.topic(
                &[dataset.destination.as_ref(), outer],
                &[("dataset", &dataset.name)],
                &field,
                faults,
            );
        }
        for (index, group) in spec.event_groups.iter().enumerate() {
            for (event, declared) in group.events.iter().enumerate() {
                let destinations = [declared.destination.as_ref(), group.destination.as_ref(), outer];
                let own = [("group", group.name.as_str()), ("event", declared.name.as_str())];
                self.topic(
                    &destinations,
                    &own,
                    &format!("spec.eventGroups[{index}].events[{event}]"),
                    faults,
                );
            }
        }
        for (index, stream) in spec.streams.iter().enumerate() {
            let field = format!("spec.streams[{index}]");
            self.topic(
                &[stream.destination.as_ref(), outer],
                &[("stream", &stream.name)],
                &field,
                faults,
            );
        }
    }

    /// The innermost destination with a topic counts.
    fn topic(
        &self,
        destinations: &[Option<&Destination>],
        own: &[(&str, &str)],
        field: &str,
        faults: &mut Faults,
    ) {
        let template = destinations
            .iter()
            .enumerate()
            .find_map(|(depth, destination)| Some((depth, destination.as_ref()?.topic.as_ref()?)));
        let Some((depth, template)) = template else { return };
        let mut variables = vec![
            ("namespace", self.namespace),
            ("asset", self.asset),
            ("device", self.device),
        ];
        variables.extend_from_slice(own);
        variables.extend(
            self.attributes
                .iter()
                .map(|(name, value)| (name.as_str(), *value)),
        );
        if let Err(error) = fill_template(template, &variables) {
            let field = if depth == 0 {
                format!("{field}.destination.topic")
            } else {
                field.to_owned()
            };
            faults.add(topic_problem(&error, template, &field));
        }
    }
}

/// A topic template that gives no topic.
pub(crate) fn topic_problem(error: &InvalidTemplate, template: &str, field: &str) -> Problem {
    let problem = Problem::new(reasons::INVALID, "a topic that can't be filled in")
        .field(field)
        .found(template);
    match error {
        InvalidTemplate::Variable { found, allowed } => {
            let names = allowed
                .split(", ")
                .map(|name| name.trim_matches(['{', '}']))
                .collect::<Vec<_>>();
            let nearest = foreshore_record::nearest(found, names);
            problem.allowed(allowed).nearest(nearest)
        }
        InvalidTemplate::Brace { .. } | InvalidTemplate::Topic(_) => problem.allowed(error.to_string()),
    }
}

impl ValidAsset {
    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self {
            version,
            device,
            connector,
            secrets,
        } = self;
        let (role, object) = (connector::role(connector), version.name.key(Kind::Asset));
        let dialled = planner
            .valid
            .devices
            .get(device)
            .is_some_and(|device| device.version.spec.effective_enabled());
        if !version.spec.effective_enabled() {
            planner.disabled(&object, "switched off by enabled: false");
        } else if !dialled {
            planner.disabled(&object, format!("its Device {} is switched off", device.name));
        } else if !planner.has::<DevicePlan>(&role, device) {
            planner.role(&role, &object);
            planner.waits(&role, &object, format!("Device {} waits itself", device.name));
        } else {
            let unit = ResourceKey::new(DevicePlan::KIND, &*device.namespace, &*device.name);
            let (object_ref, device, spec) = (version.object(), device.name.clone(), (*version.spec).clone());
            planner.add(
                &role,
                &object,
                &AssetPlan {
                    object: object_ref,
                    device,
                    spec,
                },
            );
            planner.secrets(&role, &object, secrets);
            planner.unit(&role, &unit, &object);
        }
    }
}

/// Plans for a role what it tells a cloud endpoint of a namespace's assets, and the ways to the brokers that their commands go
/// to, for the sake of the endpoint.
pub(crate) fn plan_summaries(
    planner: &mut Planner<'_>,
    role: &RoleName,
    endpoint: &ObjectKey,
    namespace: &str,
) {
    let valid = planner.valid;
    let assets = valid
        .assets
        .values()
        .filter(|asset| asset.version.name.namespace == namespace);
    for asset in assets {
        let Some(connector) = valid.connectors.get(&asset.connector) else {
            continue;
        };
        let broker = &connector.broker;
        if !planner.has::<ConnectionPlan>(role, broker) {
            broker::connect(planner, role, endpoint, broker);
        }
        let summary = AssetSummaryPlan::new(asset.version.object(), &broker.name, &asset.version.spec);
        planner.inform(role, endpoint, &summary);
    }
}
