//! The line's address space: objects, variables, methods and the type of its alarms.

use std::sync::Arc;

use opcua::{
    nodes::{DefaultTypeTree, EventNotifier},
    server::{
        address_space::{AddressSpace, MethodBuilder, ObjectBuilder, ObjectTypeBuilder, VariableBuilder},
        node_manager::memory::SimpleNodeManager,
    },
    types::{
        Argument, DataTypeId, NodeId, ObjectId, ObjectTypeId, QualifiedName, StatusCode, VariableTypeId,
        Variant,
    },
};
use parking_lot::Mutex;

use super::event::PendingAlarms;
use crate::line::{Kind, Line};

/// Namespace of everything that the line shows. Not the application URI, whose namespace is the server's own
/// (OPC 10000-5, 6.3.1: index 1 of the `NamespaceArray`).
pub const NAMESPACE: &str = "urn:foreshore:sim:bottling-line";

/// Application URI of the server.
pub const APPLICATION_URI: &str = "urn:foreshore:sim:server";

/// A variable of the line and how it is read from the model.
pub(super) struct Reading {
    pub(super) id: NodeId,
    pub(super) read: fn(&Line) -> Variant,
}

/// A variable of a machine and how it is read from the model.
pub(super) struct MachineReading {
    pub(super) id: NodeId,
    pub(super) kind: Kind,
    pub(super) read: fn(&crate::line::Machine) -> Variant,
}

/// Everything that changes by itself.
pub(super) struct Readings {
    pub(super) line: Vec<Reading>,
    pub(super) machines: Vec<MachineReading>,
    pub(super) load: Vec<NodeId>,
}

type LineVariable = (&'static str, DataTypeId, fn(&Line) -> Variant);
type MachineVariable = (&'static str, DataTypeId, fn(&crate::line::Machine) -> Variant);

const LINE_VARIABLES: &[LineVariable] = &[
    ("Running", DataTypeId::Boolean, |line| {
        Variant::Boolean(line.is_running())
    }),
    ("Steps", DataTypeId::UInt64, |line| Variant::UInt64(line.steps())),
    ("Bottles", DataTypeId::UInt64, |line| {
        Variant::UInt64(line.bottles())
    }),
    ("Pallets", DataTypeId::UInt64, |line| {
        Variant::UInt64(line.pallets())
    }),
];

const MACHINE_VARIABLES: &[MachineVariable] = &[
    ("State", DataTypeId::String, |machine| {
        Variant::from(machine.state().name())
    }),
    ("Count", DataTypeId::UInt64, |machine| {
        Variant::UInt64(machine.count())
    }),
    ("Rejected", DataTypeId::UInt64, |machine| {
        Variant::UInt64(machine.rejected())
    }),
    ("Temperature", DataTypeId::Double, |machine| {
        Variant::Double(machine.temperature())
    }),
    ("Speed", DataTypeId::Double, |machine| {
        Variant::Double(machine.speed())
    }),
];

fn particular(kind: Kind) -> &'static str {
    match kind {
        Kind::Filler => "FillLevel",
        Kind::Capper => "Torque",
        Kind::Labeller => "LabelsLeft",
        Kind::Palletiser => "BottlesOnPallet",
    }
}

/// Node id of an object or of one of its members.
pub(super) fn node_id(namespace: u16, name: impl Into<String>) -> NodeId {
    NodeId::new(namespace, name.into())
}

/// Builds the address space and returns what changes by itself.
pub(super) fn build(
    space: &mut AddressSpace,
    types: &mut DefaultTypeTree,
    namespace: u16,
    load_points: u32,
) -> Readings {
    alarm_type(space, types, namespace);
    let line = object(
        space,
        namespace,
        "Line",
        &NodeId::from(ObjectId::ObjectsFolder),
        true,
    );
    let mut readings = Readings {
        line: Vec::new(),
        machines: Vec::new(),
        load: Vec::new(),
    };
    for (name, data_type, read) in LINE_VARIABLES {
        let id = variable(space, namespace, &line, "Line", name, *data_type, false);
        readings.line.push(Reading { id, read: *read });
    }
    method(space, namespace, &line, "Line.Start", &[], &[]);
    method(space, namespace, &line, "Line.Stop", &[], &[]);
    for kind in Kind::ALL {
        let parent = object(space, namespace, kind.name(), &line, false);
        for (name, data_type, read) in MACHINE_VARIABLES {
            let id = variable(
                space,
                namespace,
                &parent,
                kind.name(),
                name,
                *data_type,
                *name == "Speed",
            );
            readings.machines.push(MachineReading {
                id,
                kind,
                read: *read,
            });
        }
        let id = variable(
            space,
            namespace,
            &parent,
            kind.name(),
            particular(kind),
            DataTypeId::Double,
            false,
        );
        let read = |machine: &crate::line::Machine| Variant::Double(machine.particular());
        readings.machines.push(MachineReading { id, kind, read });
        let reset = format!("{}.Reset", kind.name());
        method(
            space,
            namespace,
            &parent,
            &reset,
            &[],
            &[("Cleared", DataTypeId::Boolean)],
        );
        let set_speed = format!("{}.SetSpeed", kind.name());
        let speed = [("BottlesPerMinute", DataTypeId::Double)];
        method(
            space,
            namespace,
            &parent,
            &set_speed,
            &speed,
            &[("Previous", DataTypeId::Double)],
        );
    }
    if load_points > 0 {
        let parent = object(
            space,
            namespace,
            "Load",
            &NodeId::from(ObjectId::ObjectsFolder),
            true,
        );
        for index in 0..load_points {
            let name = index.to_string();
            readings.load.push(variable(
                space,
                namespace,
                &parent,
                "Load",
                &name,
                DataTypeId::Double,
                false,
            ));
        }
    }
    readings
}

fn object(space: &mut AddressSpace, namespace: u16, name: &str, parent: &NodeId, organized: bool) -> NodeId {
    let id = node_id(namespace, name);
    let builder = ObjectBuilder::new(&id, QualifiedName::new(namespace, name), name)
        .event_notifier(EventNotifier::SUBSCRIBE_TO_EVENTS)
        .has_type_definition(ObjectTypeId::BaseObjectType);
    let builder = if organized {
        builder.organized_by(parent.clone())
    } else {
        builder.component_of(parent.clone())
    };
    builder.insert(space);
    id
}

fn variable(
    space: &mut AddressSpace,
    namespace: u16,
    parent: &NodeId,
    owner: &str,
    name: &str,
    data_type: DataTypeId,
    writable: bool,
) -> NodeId {
    let id = node_id(namespace, format!("{owner}.{name}"));
    let initial = match data_type {
        DataTypeId::Boolean => Variant::Boolean(false),
        DataTypeId::String => Variant::from(""),
        DataTypeId::UInt64 => Variant::UInt64(0),
        _ => Variant::Double(0.0),
    };
    let builder = VariableBuilder::new(&id, QualifiedName::new(namespace, name), name)
        .data_type(data_type)
        .value(initial)
        .has_type_definition(VariableTypeId::BaseDataVariableType)
        .component_of(parent.clone());
    if writable { builder.writable() } else { builder }.insert(space);
    id
}

fn method(
    space: &mut AddressSpace,
    namespace: u16,
    parent: &NodeId,
    name: &str,
    inputs: &[(&str, DataTypeId)],
    outputs: &[(&str, DataTypeId)],
) {
    let id = node_id(namespace, name);
    let browse_name = name.rsplit('.').next().unwrap_or(name);
    let mut builder = MethodBuilder::new(&id, QualifiedName::new(namespace, browse_name), browse_name)
        .component_of(parent.clone())
        .executable(true)
        .user_executable(true);
    if !inputs.is_empty() {
        let arguments = node_id(namespace, format!("{name}.InputArguments"));
        builder = builder.input_args(space, &arguments, &arguments_of(inputs));
    }
    if !outputs.is_empty() {
        let arguments = node_id(namespace, format!("{name}.OutputArguments"));
        builder = builder.output_args(space, &arguments, &arguments_of(outputs));
    }
    builder.insert(space);
}

fn arguments_of(arguments: &[(&str, DataTypeId)]) -> Vec<Argument> {
    arguments
        .iter()
        .map(|(name, data_type)| (*name, *data_type).into())
        .collect()
}

/// Declares `BottlingAlarmType`, so that clients find its fields and can filter by it.
fn alarm_type(space: &mut AddressSpace, types: &mut DefaultTypeTree, namespace: u16) {
    let id = node_id(namespace, "BottlingAlarmType");
    let base = NodeId::from(ObjectTypeId::BaseEventType);
    ObjectTypeBuilder::new(
        &id,
        QualifiedName::new(namespace, "BottlingAlarmType"),
        "BottlingAlarmType",
    )
    .subtype_of(base.clone())
    .insert(space);
    types.add_type_node(&id, &base, opcua::types::NodeClass::ObjectType);
    for (name, data_type) in [("AlarmName", DataTypeId::String), ("Active", DataTypeId::Boolean)] {
        let property = node_id(namespace, format!("BottlingAlarmType.{name}"));
        VariableBuilder::new(&property, QualifiedName::new(namespace, name), name)
            .data_type(data_type)
            .value(Variant::Empty)
            .has_type_definition(VariableTypeId::PropertyType)
            .property_of(id.clone())
            .insert(space);
        let path = [QualifiedName::new(namespace, name)];
        types.add_type_property(
            &property,
            &id,
            &path.iter().collect::<Vec<_>>(),
            opcua::types::NodeClass::Variable,
        );
    }
}

/// Connects writes and method calls to the model.
pub(super) fn connect(
    manager: &SimpleNodeManager,
    namespace: u16,
    line: &Arc<Mutex<Line>>,
    alarms: &PendingAlarms,
) {
    let model = Arc::clone(line);
    manager
        .inner()
        .add_method_callback(node_id(namespace, "Line.Start"), move |_| {
            model.lock().start();
            Ok(Vec::new())
        });
    let model = Arc::clone(line);
    manager
        .inner()
        .add_method_callback(node_id(namespace, "Line.Stop"), move |_| {
            model.lock().stop();
            Ok(Vec::new())
        });
    for kind in Kind::ALL {
        let model = Arc::clone(line);
        manager.inner().add_write_callback(
            node_id(namespace, format!("{}.Speed", kind.name())),
            move |value, range| {
                if !matches!(range, opcua::types::NumericRange::None) {
                    return StatusCode::BadWriteNotSupported;
                }
                match value.value {
                    Some(Variant::Double(speed)) if model.lock().machine_mut(kind).set_speed(speed) => {
                        StatusCode::Good
                    }
                    Some(Variant::Double(_)) => StatusCode::BadOutOfRange,
                    _ => StatusCode::BadTypeMismatch,
                }
            },
        );
        let (model, pending) = (Arc::clone(line), alarms.clone());
        manager.inner().add_method_callback(
            node_id(namespace, format!("{}.Reset", kind.name())),
            move |_| {
                let cleared = model.lock().reset(kind);
                let was_faulted = cleared.is_some();
                pending.lock().extend(cleared);
                Ok(vec![Variant::Boolean(was_faulted)])
            },
        );
        let model = Arc::clone(line);
        manager.inner().add_method_callback(
            node_id(namespace, format!("{}.SetSpeed", kind.name())),
            move |arguments| {
                let [Variant::Double(speed)] = arguments else {
                    return Err(StatusCode::BadInvalidArgument);
                };
                let mut line = model.lock();
                let machine = line.machine_mut(kind);
                let previous = machine.speed();
                if machine.set_speed(*speed) {
                    Ok(vec![Variant::Double(previous)])
                } else {
                    Err(StatusCode::BadOutOfRange)
                }
            },
        );
    }
}
