//! Commands: writes, reads and method calls in the session that carries the data.

use std::{sync::Arc, time::Duration};

use foreshore_connector_sdk::{Invocation, plan::AssetPlan};
use foreshore_crds::v1alpha1::asset::{Action, ActionType};
use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome, DataValue as RecordValue};
use opcua::types::{
    Argument, AttributeId, BrowsePath, CallMethodRequest, DataTypeId, DataValue, NodeId, NumericRange,
    QualifiedName, ReadValueId, ReferenceTypeId, RelativePath, RelativePathElement, StatusCode,
    TimestampsToReturn, Variant, VariantScalarTypeId, VariantTypeId, WriteValue,
};
use serde_json::{Map, Value, json};

use crate::{
    address::Address,
    observed::{Wanted, resolve},
    shared::Shared,
    value,
};

/// A parameter of a method.
struct Parameter {
    name: String,
    scalar: Option<VariantScalarTypeId>,
}

/// Carries out a command.
pub(crate) async fn invoke(shared: &Shared, invocation: Invocation) -> CommandOutcome {
    let action = invocation
        .asset
        .action(&invocation.group, &invocation.action)
        .ok_or_else(|| CommandError::new(CommandErrorCode::NotFound, "the asset has no such action"))?;
    // Of what goes into a connection that is known to be dead, nobody could say what became of it.
    let connected = tokio::time::timeout(Duration::ZERO, shared.session.wait_for_connection());
    if !matches!(connected.await, Ok(true)) {
        let words = "the server is not connected now";
        return Err(CommandError::new(CommandErrorCode::Unavailable, words));
    }
    match action.type_ {
        ActionType::Read => read(shared, action).await,
        ActionType::Write => write(shared, action, &invocation.input).await,
        ActionType::Call => call(shared, action, &invocation.input).await,
    }
}

/// What the server tells of a method's arguments, as a schema.
pub(crate) async fn request_schema(
    shared: &Shared,
    asset: &Arc<AssetPlan>,
    group: &str,
    action: &str,
) -> Option<Value> {
    let action = asset
        .action(group, action)
        .filter(|action| action.type_ == ActionType::Call)?;
    let method = node(shared, action.target.as_ref()?.as_str()).await.ok()?;
    let parameters = parameters(shared, &method, "InputArguments").await?;
    let properties: Map<String, Value> = parameters
        .iter()
        .map(|parameter| (parameter.name.clone(), schema_of(parameter.scalar)))
        .collect();
    let required: Vec<&str> = parameters
        .iter()
        .map(|parameter| parameter.name.as_str())
        .collect();
    Some(
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false }),
    )
}

fn schema_of(scalar: Option<VariantScalarTypeId>) -> Value {
    use VariantScalarTypeId as Scalar;
    let one = match scalar {
        Some(Scalar::Boolean) => "boolean",
        Some(
            Scalar::SByte
            | Scalar::Byte
            | Scalar::Int16
            | Scalar::UInt16
            | Scalar::Int32
            | Scalar::UInt32
            | Scalar::Int64
            | Scalar::UInt64,
        ) => "integer",
        Some(Scalar::Float | Scalar::Double) => "number",
        Some(_) => "string",
        None => return json!({}),
    };
    json!({ "type": [one, "array"] })
}

async fn read(shared: &Shared, action: &Action) -> CommandOutcome {
    let target = ReadValueId {
        index_range: range_of(action)?,
        ..value_of(target(shared, action).await?)
    };
    let answer = shared
        .session
        .read(&[target], TimestampsToReturn::Both, 0.0)
        .await
        .map_err(no_answer)?;
    let answer = answer.into_iter().next().unwrap_or_default();
    let status = answer.status.unwrap_or(StatusCode::Good);
    if status.is_bad() {
        return Err(refused(status, "the server could not read the value"));
    }
    let types = shared.types();
    let record = RecordValue {
        value: answer
            .value
            .as_ref()
            .map_or(Value::Null, |value| value::to_json(value, types.as_deref())),
        source_timestamp: answer.source_timestamp.as_ref().and_then(value::timestamp),
        status_code: status.bits(),
    };
    serde_json::to_value(record)
        .map_err(|error| CommandError::new(CommandErrorCode::Internal, error.to_string()))
}

async fn write(shared: &Shared, action: &Action, input: &Value) -> CommandOutcome {
    let node_id = target(shared, action).await?;
    let declared = action
        .opcua
        .as_ref()
        .and_then(|opcua| opcua.data_type)
        .map(value::scalar_type);
    let scalar = match declared {
        Some(scalar) => scalar,
        None => type_of(shared, &node_id).await?,
    };
    let value = value::from_json(input, scalar).map_err(invalid)?;
    let request = WriteValue {
        node_id,
        attribute_id: AttributeId::Value as u32,
        index_range: range_of(action)?,
        // Only the value: many servers refuse to have status and times written.
        value: DataValue {
            value: Some(value),
            ..DataValue::default()
        },
    };
    let status = shared
        .session
        .write(&[request])
        .await
        .map_err(unknown)?
        .into_iter()
        .next();
    match status {
        Some(status) if status.is_good() => Ok(Value::Null),
        Some(status) => Err(refused(status, "the server did not write the value")),
        None => Err(CommandError::new(
            CommandErrorCode::Unknown,
            "the server did not say what became of the write",
        )),
    }
}

async fn call(shared: &Shared, action: &Action, input: &Value) -> CommandOutcome {
    let method_id = target(shared, action).await?;
    let object = action.opcua.as_ref().and_then(|opcua| opcua.object_id.as_ref());
    let object =
        object.ok_or_else(|| CommandError::new(CommandErrorCode::Internal, "the action names no object"))?;
    let object_id = node(shared, object.as_str()).await?;
    let inputs = inputs(shared, action, &method_id, input).await?;
    let request = CallMethodRequest {
        object_id,
        method_id: method_id.clone(),
        input_arguments: Some(inputs),
    };
    let result = shared.session.call_one(request).await.map_err(unknown)?;
    if result.status_code.is_bad() {
        let bad = result
            .input_argument_results
            .iter()
            .flatten()
            .position(|status| status.is_bad());
        let message = bad.map_or_else(
            || "the server did not carry out the method".to_owned(),
            |index| format!("the server refused argument {}", index + 1),
        );
        return Err(refused(result.status_code, message));
    }
    let names = parameters(shared, &method_id, "OutputArguments")
        .await
        .unwrap_or_default();
    let types = shared.types();
    let outputs = result
        .output_arguments
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(index, output)| {
            let name = names
                .get(index)
                .map_or_else(|| format!("output{}", index + 1), |name| name.name.clone());
            (name, value::to_json(&output, types.as_deref()))
        });
    Ok(Value::Object(outputs.collect()))
}

/// Puts the arguments into the order of the method.
async fn inputs(
    shared: &Shared,
    action: &Action,
    method: &NodeId,
    input: &Value,
) -> Result<Vec<Variant>, CommandError> {
    let declared = action
        .opcua
        .as_ref()
        .map(|opcua| opcua.arguments.as_slice())
        .unwrap_or_default();
    let parameters = if declared.is_empty() {
        parameters(shared, method, "InputArguments")
            .await
            .unwrap_or_default()
    } else {
        let declared = declared.iter().map(|argument| Parameter {
            name: argument.name.as_str().to_owned(),
            scalar: Some(value::scalar_type(argument.data_type)),
        });
        declared.collect()
    };
    let none = Map::new();
    let given = input.as_object().unwrap_or(&none);
    let names = || {
        parameters
            .iter()
            .map(|parameter| parameter.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(stranger) = given
        .keys()
        .find(|key| !parameters.iter().any(|parameter| parameter.name == **key))
    {
        return Err(invalid(format!(
            "found argument {stranger:?}, the method takes: {}",
            names()
        )));
    }
    let inputs = parameters.iter().map(|parameter| {
        let given = given.get(&parameter.name);
        let given = given.ok_or_else(|| invalid(format!("argument {:?} is missing", parameter.name)))?;
        let scalar = parameter.scalar.ok_or_else(|| {
            invalid(format!(
                "argument {:?} is a structure, which is not supported",
                parameter.name
            ))
        })?;
        value::from_json(given, scalar)
            .map_err(|error| invalid(format!("argument {:?}: {error}", parameter.name)))
    });
    inputs.collect()
}

/// Reads a method's declared arguments (OPC 10000-3, 5.7); `None` when it declares none.
async fn parameters(shared: &Shared, method: &NodeId, which: &str) -> Option<Vec<Parameter>> {
    let path = BrowsePath {
        starting_node: method.clone(),
        relative_path: RelativePath {
            elements: Some(vec![RelativePathElement {
                reference_type_id: ReferenceTypeId::HasProperty.into(),
                is_inverse: false,
                include_subtypes: true,
                target_name: QualifiedName::new(0, which),
            }]),
        },
    };
    let found = shared
        .session
        .translate_browse_paths_to_node_ids(&[path])
        .await
        .ok()?
        .into_iter()
        .next()?;
    let property = found.targets?.into_iter().next()?.target_id.node_id;
    let answer = shared
        .session
        .read(&[value_of(property)], TimestampsToReturn::Neither, 0.0)
        .await
        .ok()?;
    let Some(Variant::Array(array)) = answer.into_iter().next()?.value else {
        return None;
    };
    let types = shared.types();
    let parameters = array.values.iter().filter_map(|value| match value {
        Variant::ExtensionObject(object) => object.inner_as::<Argument>(),
        _ => None,
    });
    let parameters = parameters.map(|argument| {
        let known = types
            .as_ref()
            .and_then(|types| types.parent_ids().get_builtin_type(&argument.data_type));
        let scalar = known.or_else(|| builtin(&argument.data_type));
        let scalar = scalar.filter(|scalar| *scalar != VariantScalarTypeId::ExtensionObject);
        Parameter {
            name: argument.name.as_ref().to_owned(),
            scalar,
        }
    });
    Some(parameters.collect())
}

/// The built-in type of a variable: as declared, or as its value shows.
async fn type_of(shared: &Shared, node: &NodeId) -> Result<VariantScalarTypeId, CommandError> {
    let declared = ReadValueId {
        attribute_id: AttributeId::DataType as u32,
        ..value_of(node.clone())
    };
    let nodes = [declared, value_of(node.clone())];
    let answers = shared
        .session
        .read(&nodes, TimestampsToReturn::Neither, 0.0)
        .await
        .map_err(no_answer)?;
    let mut answers = answers.into_iter();
    let declared = answers.next().unwrap_or_default();
    if let Some(status) = declared.status.filter(StatusCode::is_bad) {
        return Err(refused(status, "the server does not tell the variable's type"));
    }
    let types = shared.types();
    let declared = match declared.value {
        Some(Variant::NodeId(id)) => types
            .and_then(|types| types.parent_ids().get_builtin_type(&id))
            .or_else(|| builtin(&id)),
        _ => None,
    };
    let current = answers
        .next()
        .and_then(|answer| answer.value)
        .and_then(|value| match value.type_id() {
            VariantTypeId::Scalar(scalar) | VariantTypeId::Array(scalar, _) => Some(scalar),
            VariantTypeId::Empty => None,
        });
    let found = declared
        .or(current)
        .filter(|scalar| *scalar != VariantScalarTypeId::ExtensionObject);
    found.ok_or_else(|| invalid("the variable holds a structure, which can't be written yet"))
}

/// Built-in types of the standard's namespace have their own numbers (OPC 10000-6, 5.1.2).
fn builtin(data_type: &NodeId) -> Option<VariantScalarTypeId> {
    let standard = data_type.as_data_type_id().ok()?;
    Some(match standard {
        DataTypeId::Boolean => VariantScalarTypeId::Boolean,
        DataTypeId::SByte => VariantScalarTypeId::SByte,
        DataTypeId::Byte => VariantScalarTypeId::Byte,
        DataTypeId::Int16 => VariantScalarTypeId::Int16,
        DataTypeId::UInt16 => VariantScalarTypeId::UInt16,
        DataTypeId::Int32 | DataTypeId::Enumeration => VariantScalarTypeId::Int32,
        DataTypeId::UInt32 => VariantScalarTypeId::UInt32,
        DataTypeId::Int64 => VariantScalarTypeId::Int64,
        DataTypeId::UInt64 => VariantScalarTypeId::UInt64,
        DataTypeId::Float => VariantScalarTypeId::Float,
        DataTypeId::Double | DataTypeId::Duration => VariantScalarTypeId::Double,
        DataTypeId::String => VariantScalarTypeId::String,
        DataTypeId::DateTime | DataTypeId::UtcTime => VariantScalarTypeId::DateTime,
        DataTypeId::Guid => VariantScalarTypeId::Guid,
        DataTypeId::ByteString => VariantScalarTypeId::ByteString,
        DataTypeId::NodeId => VariantScalarTypeId::NodeId,
        DataTypeId::QualifiedName => VariantScalarTypeId::QualifiedName,
        DataTypeId::LocalizedText => VariantScalarTypeId::LocalizedText,
        _ => return None,
    })
}

async fn target(shared: &Shared, action: &Action) -> Result<NodeId, CommandError> {
    let target = action.target.as_ref();
    let target =
        target.ok_or_else(|| CommandError::new(CommandErrorCode::Internal, "the action names no target"))?;
    node(shared, target.as_str()).await
}

async fn node(shared: &Shared, text: &str) -> Result<NodeId, CommandError> {
    let address = Address::parse(text)
        .map_err(|error| CommandError::new(CommandErrorCode::Internal, error.to_string()))?;
    let namespaces = shared.namespaces().await;
    let wanted = [Wanted {
        start: None,
        node: &address,
    }];
    let found = resolve(&shared.session, &wanted, &namespaces, 1).await;
    let found = found.map_err(|error| CommandError::new(CommandErrorCode::Unavailable, error.to_string()))?;
    found
        .into_iter()
        .next()
        .unwrap_or_else(|| Err("no answer".to_owned()))
        .map_err(|why| {
            let mut error = CommandError::new(
                CommandErrorCode::DeviceFailed,
                format!("the server does not know {address}"),
            );
            error.device_status = Some(why);
            error
        })
}

fn value_of(node_id: NodeId) -> ReadValueId {
    ReadValueId {
        node_id,
        attribute_id: AttributeId::Value as u32,
        ..ReadValueId::default()
    }
}

fn range_of(action: &Action) -> Result<NumericRange, CommandError> {
    let range = action.opcua.as_ref().and_then(|opcua| opcua.index_range.as_ref());
    range.map_or(Ok(NumericRange::None), |range| {
        range
            .as_str()
            .parse()
            .map_err(|_| invalid("indexRange is not a numeric range such as 0:9"))
    })
}

fn invalid(why: impl ToString) -> CommandError {
    CommandError::new(CommandErrorCode::InvalidInput, why.to_string())
}

fn refused(status: StatusCode, message: impl Into<String>) -> CommandError {
    let mut error = CommandError::new(CommandErrorCode::DeviceFailed, message);
    error.device_status = Some(status.to_string());
    error
}

/// Nothing was changed, so it is known that nothing took effect.
fn no_answer(error: opcua::types::Error) -> CommandError {
    let mut outcome = CommandError::new(CommandErrorCode::Unavailable, "the server did not answer");
    outcome.device_status = Some(error.status().to_string());
    outcome
}

/// The request may have arrived and its answer not.
fn unknown(error: opcua::types::Error) -> CommandError {
    let mut outcome = CommandError::new(
        CommandErrorCode::Unknown,
        "the server did not say what became of it",
    );
    outcome.device_status = Some(error.status().to_string());
    outcome
}
