//! Commands: which there are, what they take, and those that are no movements.

use foreshore_connector_sdk::Invocation;
use foreshore_crds::v1alpha1::asset::{OnvifAction, OnvifOperation};
use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome};
use quick_xml::escape::escape;
use reqwest::Url;
use serde_json::{Map, Value, json, map::Entry};

use crate::{
    camera::{DEVICE, IMAGING, Profile},
    client::Error,
    ptz::{self, AXES},
    shared::Shared,
    xml::Element,
};

/// Namespace of ONVIF's common types.
pub(crate) const SCHEMA: &str = "http://www.onvif.org/ver10/schema";

/// Settings of a picture that are numbers, in the order of the schema, with the members of a request that set them;
/// `IrCutFilter` stands before the last.
const IMAGING_NUMBERS: [(&str, &str); 4] = [
    ("brightness", "Brightness"),
    ("colorSaturation", "ColorSaturation"),
    ("contrast", "Contrast"),
    ("sharpness", "Sharpness"),
];

/// The schema of an operation's request.
pub(crate) fn request_schema(operation: OnvifOperation) -> Value {
    let axes = |low: [f64; 3]| {
        let axes = AXES.iter().zip(low).map(|(axis, low)| {
            (
                (*axis).to_owned(),
                json!({ "type": "number", "minimum": low, "maximum": 1.0 }),
            )
        });
        axes.collect::<Map<_, _>>()
    };
    let object = |properties: Map<String, Value>| json!({ "type": ["object", "null"], "properties": properties, "additionalProperties": false });
    let needs = |name: &str, properties: Value| json!({ "type": "object", "properties": properties, "required": [name], "additionalProperties": false });
    let preset = || json!({ "type": "string", "minLength": 1, "maxLength": 64 });
    match operation {
        OnvifOperation::AbsoluteMove => object(axes([-1.0, -1.0, 0.0])),
        OnvifOperation::RelativeMove => object(axes([-1.0; 3])),
        OnvifOperation::ContinuousMove => {
            let mut properties = axes([-1.0; 3]);
            properties.insert(
                "seconds".to_owned(),
                json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 60 }),
            );
            object(properties)
        }
        OnvifOperation::GotoPreset | OnvifOperation::RemovePreset => {
            object(Map::from_iter([("preset".to_owned(), preset())]))
        }
        OnvifOperation::SetPreset => object(Map::from_iter([
            ("preset".to_owned(), preset()),
            ("name".to_owned(), preset()),
        ])),
        OnvifOperation::SendAuxiliaryCommand => needs("command", json!({ "command": preset() })),
        OnvifOperation::SetRelayOutputState => {
            let mut schema = needs(
                "relay",
                json!({ "relay": preset(), "active": { "type": "boolean" } }),
            );
            schema["required"] = json!(["relay", "active"]);
            schema
        }
        OnvifOperation::SetImagingSettings => {
            let numbers = IMAGING_NUMBERS.iter();
            let mut properties: Map<_, _> = numbers
                .map(|(member, _)| ((*member).to_owned(), json!({ "type": "number" })))
                .collect();
            properties.insert("irCutFilter".to_owned(), json!({ "enum": ["ON", "OFF", "AUTO"] }));
            json!({ "type": "object", "properties": properties, "minProperties": 1, "additionalProperties": false })
        }
        _ => json!({ "type": ["object", "null"], "maxProperties": 0 }),
    }
}

/// Carries out a command.
pub(crate) async fn invoke(shared: &Shared, invocation: &Invocation) -> CommandOutcome {
    let action = invocation
        .asset
        .action(&invocation.group, &invocation.action)
        .ok_or_else(|| CommandError::new(CommandErrorCode::NotFound, "the asset has no such action"))?;
    let onvif = action.onvif.as_ref().ok_or_else(|| {
        CommandError::new(CommandErrorCode::Internal, "the action names no onvif operation")
    })?;
    let input = &invocation.input;
    match onvif.operation {
        OnvifOperation::GetDeviceInformation => Ok(to_json(&shared.camera.information)),
        OnvifOperation::GetSystemDateAndTime => device(shared, "GetSystemDateAndTime", "").await,
        OnvifOperation::SystemReboot => device(shared, "SystemReboot", "").await,
        OnvifOperation::SetRelayOutputState => set_relay(shared, input).await,
        OnvifOperation::GetImagingSettings | OnvifOperation::SetImagingSettings => {
            imaging(shared, onvif, input).await
        }
        OnvifOperation::GetProfiles => {
            let profiles = shared.camera.profiles.iter().map(Profile::to_json);
            Ok(json!({ "profiles": profiles.collect::<Vec<_>>() }))
        }
        OnvifOperation::GetSnapshotUri | OnvifOperation::GetStreamUri => {
            let profile = profile(shared, onvif, false)?;
            let address = match onvif.operation {
                OnvifOperation::GetStreamUri => shared.camera.stream_address(&shared.client, &profile).await,
                _ => shared.camera.snapshot_address(&shared.client, &profile).await,
            };
            Ok(json!({ "uri": address.map_err(outcome)?.as_str() }))
        }
        OnvifOperation::AbsoluteMove
        | OnvifOperation::RelativeMove
        | OnvifOperation::ContinuousMove
        | OnvifOperation::Stop
        | OnvifOperation::GetStatus
        | OnvifOperation::GetPresets
        | OnvifOperation::GotoPreset
        | OnvifOperation::SetPreset
        | OnvifOperation::RemovePreset
        | OnvifOperation::GotoHomePosition
        | OnvifOperation::SetHomePosition
        | OnvifOperation::SendAuxiliaryCommand => ptz::invoke(shared, onvif, input).await,
    }
}

async fn device(shared: &Shared, operation: &str, content: &str) -> CommandOutcome {
    let body = format!("<{operation} xmlns=\"{DEVICE}\">{content}</{operation}>");
    let answer = shared
        .client
        .call(&shared.camera.device, DEVICE, operation, &body)
        .await
        .map_err(outcome)?;
    Ok(to_json(&answer))
}

async fn set_relay(shared: &Shared, input: &Value) -> CommandOutcome {
    let relay = input.get("relay").and_then(Value::as_str);
    let relay = relay.ok_or_else(|| invalid("found no relay; the token of one is allowed"))?;
    let state = match input.get("active").and_then(Value::as_bool) {
        Some(true) => "active",
        Some(false) => "inactive",
        None => return Err(invalid("found no active; true and false are allowed")),
    };
    let content = format!(
        "<RelayOutputToken>{}</RelayOutputToken><LogicalState>{state}</LogicalState>",
        escape(relay)
    );
    device(shared, "SetRelayOutputState", &content)
        .await
        .map(|_| Value::Null)
}

async fn imaging(shared: &Shared, onvif: &OnvifAction, input: &Value) -> CommandOutcome {
    let service = service(shared.camera.imaging.as_ref(), "imaging")?;
    let token = profile(shared, onvif, false)?;
    let profile = shared.camera.profile(Some(&token), false);
    let source = profile.and_then(|profile| profile.video_source.as_deref());
    let source = source.ok_or_else(|| invalid(format!("profile {token:?} has no video source")))?;
    let (operation, settings) = match onvif.operation {
        OnvifOperation::SetImagingSettings => ("SetImagingSettings", imaging_settings(input)),
        _ => ("GetImagingSettings", String::new()),
    };
    let body = format!(
        "<{operation} xmlns=\"{IMAGING}\"><VideoSourceToken>{}</VideoSourceToken>{settings}</{operation}>",
        escape(source)
    );
    let answer = shared
        .client
        .call(service, IMAGING, operation, &body)
        .await
        .map_err(outcome)?;
    Ok(match onvif.operation {
        OnvifOperation::SetImagingSettings => Value::Null,
        _ => to_json(&answer),
    })
}

fn imaging_settings(input: &Value) -> String {
    let mut settings = String::new();
    for (member, element) in IMAGING_NUMBERS {
        // The order is that of the schema, which some cameras insist on.
        if element == "Sharpness"
            && let Some(filter) = input.get("irCutFilter").and_then(Value::as_str)
        {
            settings.push_str(&format!("<tt:IrCutFilter>{}</tt:IrCutFilter>", escape(filter)));
        }
        if let Some(value) = input.get(member).and_then(Value::as_f64) {
            settings.push_str(&format!("<tt:{element}>{value}</tt:{element}>"));
        }
    }
    format!("<ImagingSettings xmlns:tt=\"{SCHEMA}\">{settings}</ImagingSettings>")
}

/// An answer as JSON, for operations whose answer is told as it is. Elements of one name become a list.
fn to_json(element: &Element) -> Value {
    if element.children.is_empty() && element.attributes.is_empty() {
        return json!(element.text);
    }
    let attributes = element.attributes.iter();
    let mut object: Map<_, _> = attributes
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    for child in &element.children {
        let value = to_json(child);
        match object.entry(child.name.as_str()) {
            Entry::Vacant(entry) => drop(entry.insert(value)),
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Value::Array(values) => values.push(value),
                single => *single = json!([single.take(), value]),
            },
        }
    }
    Value::Object(object)
}

pub(crate) fn profile(shared: &Shared, onvif: &OnvifAction, needs_ptz: bool) -> Result<String, CommandError> {
    let token = onvif.profile_token.as_ref().map(|token| token.as_str());
    let profile = shared.camera.profile(token, needs_ptz);
    profile
        .map(|profile| profile.token.clone())
        .ok_or_else(|| match token {
            Some(token) => invalid(format!("the camera has no media profile {token:?}")),
            None => CommandError::new(CommandErrorCode::DeviceFailed, "the camera has no media profile"),
        })
}

pub(crate) fn service<'a>(address: Option<&'a Url>, name: &str) -> Result<&'a Url, CommandError> {
    address.ok_or_else(|| {
        CommandError::new(
            CommandErrorCode::DeviceFailed,
            format!("the camera has no {name} service"),
        )
    })
}

pub(crate) fn invalid(message: impl Into<String>) -> CommandError {
    CommandError::new(CommandErrorCode::InvalidInput, message)
}

pub(crate) fn outcome(error: Error) -> CommandError {
    let code = match &error {
        // The request may have arrived and its answer not.
        Error::Unreachable(_) => CommandErrorCode::Unknown,
        Error::NoConnection(_) | Error::Untrusted(_) => CommandErrorCode::Unavailable,
        Error::Refused | Error::Fault { .. } | Error::Protocol(_) | Error::TooLarge { .. } => {
            CommandErrorCode::DeviceFailed
        }
    };
    let mut outcome = CommandError::new(code, error.to_string());
    if let Error::Fault { code, .. } = error {
        outcome.device_status = Some(code);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_one_name_become_a_list() {
        let element = Element::parse("<a><b>1</b><b>2</b><b>3</b><c d='4'/></a>").unwrap();
        assert_eq!(
            to_json(&element),
            json!({ "b": ["1", "2", "3"], "c": { "d": "4" } })
        );
    }

    #[test]
    fn settings_of_the_picture_keep_the_order_of_the_schema() {
        let settings = imaging_settings(&json!({ "sharpness": 1, "irCutFilter": "AUTO", "brightness": 50 }));
        let order =
            ["Brightness>50<", "IrCutFilter>AUTO<", "Sharpness>1<"].map(|part| settings.find(part).unwrap());
        assert!(order.is_sorted(), "{settings}");
    }
}
