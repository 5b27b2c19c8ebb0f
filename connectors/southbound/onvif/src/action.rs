//! Commands: PTZ, and what a camera tells about itself.

use foreshore_connector_sdk::{Invocation, plan::AssetPlan};
use foreshore_crds::v1alpha1::asset::{Action, OnvifAction, OnvifOperation};
use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome};
use reqwest::Url;
use serde_json::{Map, Value, json};

use crate::{
    camera::{DEVICE, IMAGING, PTZ},
    client::Error,
    link::Shared,
    xml::{Element, escape},
};

/// Members of a request that move the head.
const AXES: [&str; 3] = ["pan", "tilt", "zoom"];

/// Operations that [`invoke`] carries out.
pub(crate) fn is_supported(operation: OnvifOperation) -> bool {
    !matches!(
        operation,
        OnvifOperation::SetImagingSettings
            | OnvifOperation::SetRelayOutputState
            | OnvifOperation::GetProfiles
            | OnvifOperation::GetStreamUri
            | OnvifOperation::SendAuxiliaryCommand
    )
}

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
        _ => json!({ "type": ["object", "null"], "maxProperties": 0 }),
    }
}

/// Carries out a command.
pub(crate) async fn invoke(shared: &Shared, invocation: &Invocation) -> CommandOutcome {
    let action = find(&invocation.asset, &invocation.group, &invocation.action)
        .ok_or_else(|| CommandError::new(CommandErrorCode::NotFound, "the asset has no such action"))?;
    let onvif = action.onvif.as_ref().ok_or_else(|| {
        CommandError::new(CommandErrorCode::Internal, "the action names no onvif operation")
    })?;
    match onvif.operation {
        OnvifOperation::GetDeviceInformation => Ok(to_json(&shared.camera.information)),
        OnvifOperation::GetSystemDateAndTime => device(shared, "GetSystemDateAndTime").await,
        OnvifOperation::SystemReboot => device(shared, "SystemReboot").await,
        OnvifOperation::GetImagingSettings => imaging(shared, onvif).await,
        OnvifOperation::GetSnapshotUri => {
            let profile = profile(shared, onvif, false)?;
            let address = shared
                .camera
                .snapshot_address(&shared.client, &profile)
                .await
                .map_err(outcome)?;
            Ok(json!({ "uri": address.as_str() }))
        }
        operation if is_supported(operation) => ptz(shared, onvif, &invocation.input).await,
        operation => Err(CommandError::new(
            CommandErrorCode::InvalidInput,
            format!("operation {operation:?} is not supported yet"),
        )),
    }
}

pub(crate) fn find<'a>(asset: &'a AssetPlan, group: &str, action: &str) -> Option<&'a Action> {
    let group = asset
        .spec
        .action_groups
        .iter()
        .find(|candidate| candidate.name.as_str() == group)?;
    group
        .actions
        .iter()
        .find(|candidate| candidate.name.as_str() == action)
}

async fn device(shared: &Shared, operation: &str) -> CommandOutcome {
    let body = format!("<{operation} xmlns=\"{DEVICE}\"/>");
    let answer = shared
        .client
        .call(&shared.camera.device, DEVICE, operation, &body)
        .await
        .map_err(outcome)?;
    Ok(to_json(&answer))
}

async fn imaging(shared: &Shared, onvif: &OnvifAction) -> CommandOutcome {
    let service = service(shared.camera.imaging.as_ref(), "imaging")?;
    let token = profile(shared, onvif, false)?;
    let profile = shared.camera.profile(Some(&token), false);
    let source = profile.and_then(|profile| profile.video_source.as_deref());
    let source = source.ok_or_else(|| invalid(format!("profile {token:?} has no video source")))?;
    let body = format!(
        "<GetImagingSettings xmlns=\"{IMAGING}\"><VideoSourceToken>{}</VideoSourceToken></GetImagingSettings>",
        escape(source)
    );
    let answer = shared
        .client
        .call(service, IMAGING, "GetImagingSettings", &body)
        .await
        .map_err(outcome)?;
    Ok(to_json(&answer))
}

async fn ptz(shared: &Shared, onvif: &OnvifAction, input: &Value) -> CommandOutcome {
    let service = service(shared.camera.ptz.as_ref(), "PTZ")?;
    let profile = profile(shared, onvif, true)?;
    let operation = format!("{:?}", onvif.operation);
    let content = content(onvif, input)?;
    let body = format!(
        "<{operation} xmlns=\"{PTZ}\"><ProfileToken>{}</ProfileToken>{content}</{operation}>",
        escape(&profile)
    );
    let answer = shared
        .client
        .call(service, PTZ, &operation, &body)
        .await
        .map_err(outcome)?;
    Ok(match onvif.operation {
        OnvifOperation::GetPresets => presets(&answer),
        OnvifOperation::GetStatus => status(&answer),
        OnvifOperation::SetPreset => json!({ "preset": answer.text_at(&["PresetToken"]) }),
        _ => Value::Null,
    })
}

/// What stands in the request of a PTZ operation besides the profile.
fn content(onvif: &OnvifAction, input: &Value) -> Result<String, CommandError> {
    let preset = || {
        let given = input.get("preset").and_then(Value::as_str);
        given.or_else(|| onvif.preset_token.as_ref().map(|token| token.as_str()))
    };
    let token = |token: &str| format!("<PresetToken>{}</PresetToken>", escape(token));
    Ok(match onvif.operation {
        OnvifOperation::AbsoluteMove => vector("Position", input)?,
        OnvifOperation::RelativeMove => vector("Translation", input)?,
        OnvifOperation::ContinuousMove => {
            // Always with an end: a camera that loses the Stop would turn for ever.
            let seconds = input.get("seconds").and_then(Value::as_f64);
            let seconds = seconds.unwrap_or_else(|| onvif.effective_move_timeout().as_secs_f64());
            format!("{}<Timeout>PT{seconds}S</Timeout>", vector("Velocity", input)?)
        }
        OnvifOperation::Stop => "<PanTilt>true</PanTilt><Zoom>true</Zoom>".to_owned(),
        OnvifOperation::GotoPreset | OnvifOperation::RemovePreset => {
            token(preset().ok_or_else(|| invalid("neither the request nor the action names a preset"))?)
        }
        OnvifOperation::SetPreset => {
            let name = input.get("name").and_then(Value::as_str);
            let name = name
                .map(|name| format!("<PresetName>{}</PresetName>", escape(name)))
                .unwrap_or_default();
            name + &preset().map(token).unwrap_or_default()
        }
        _ => String::new(),
    })
}

/// A vector of the generic spaces; pan and tilt go together.
fn vector(element: &str, input: &Value) -> Result<String, CommandError> {
    const SCHEMA: &str = "http://www.onvif.org/ver10/schema";
    let [pan, tilt, zoom] = AXES.map(|axis| input.get(axis).and_then(Value::as_f64));
    if pan.is_none() && tilt.is_none() && zoom.is_none() {
        return Err(invalid(
            "found no movement; pan, tilt and zoom are allowed, at least one of them",
        ));
    }
    let mut parts = String::new();
    if pan.is_some() || tilt.is_some() {
        let (x, y) = (pan.unwrap_or(0.0), tilt.unwrap_or(0.0));
        parts.push_str(&format!("<PanTilt xmlns=\"{SCHEMA}\" x=\"{x}\" y=\"{y}\"/>"));
    }
    if let Some(x) = zoom {
        parts.push_str(&format!("<Zoom xmlns=\"{SCHEMA}\" x=\"{x}\"/>"));
    }
    Ok(format!("<{element}>{parts}</{element}>"))
}

fn presets(answer: &Element) -> Value {
    let presets = answer
        .children
        .iter()
        .filter(|child| child.name == "Preset")
        .map(|preset| json!({ "preset": preset.attribute("token"), "name": preset.text_at(&["Name"]) }));
    json!({ "presets": presets.collect::<Vec<_>>() })
}

fn status(answer: &Element) -> Value {
    let number = |element: Option<&Element>, name: &str| {
        element
            .and_then(|element| element.attribute(name))
            .and_then(|text| text.parse::<f64>().ok())
    };
    let position = answer.descendant("Position");
    let (pan_tilt, zoom) = (
        position.and_then(|at| at.child("PanTilt")),
        position.and_then(|at| at.child("Zoom")),
    );
    json!({
        "pan": number(pan_tilt, "x"),
        "tilt": number(pan_tilt, "y"),
        "zoom": number(zoom, "x"),
        "moving": answer.descendant("MoveStatus").map(|moving| {
            moving.children.iter().any(|part| part.text == "MOVING")
        }),
    })
}

/// An answer as JSON, for operations whose answer is told as it is.
fn to_json(element: &Element) -> Value {
    if element.children.is_empty() && element.attributes.is_empty() {
        return json!(element.text);
    }
    let attributes = element
        .attributes
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)));
    let children = element
        .children
        .iter()
        .map(|child| (child.name.clone(), to_json(child)));
    Value::Object(attributes.chain(children).collect())
}

fn profile(shared: &Shared, onvif: &OnvifAction, needs_ptz: bool) -> Result<String, CommandError> {
    let token = onvif.profile_token.as_ref().map(|token| token.as_str());
    let profile = shared.camera.profile(token, needs_ptz);
    profile
        .map(|profile| profile.token.clone())
        .ok_or_else(|| match token {
            Some(token) => invalid(format!("the camera has no media profile {token:?}")),
            None => CommandError::new(CommandErrorCode::DeviceFailed, "the camera has no media profile"),
        })
}

fn service<'a>(address: Option<&'a Url>, name: &str) -> Result<&'a Url, CommandError> {
    address.ok_or_else(|| {
        CommandError::new(
            CommandErrorCode::DeviceFailed,
            format!("the camera has no {name} service"),
        )
    })
}

fn invalid(message: impl Into<String>) -> CommandError {
    CommandError::new(CommandErrorCode::InvalidInput, message)
}

fn outcome(error: Error) -> CommandError {
    let code = match &error {
        // The request may have arrived and its answer not.
        Error::Unreachable(_) => CommandErrorCode::Unknown,
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
    fn a_movement_always_has_an_end() {
        let onvif = OnvifAction {
            operation: OnvifOperation::ContinuousMove,
            ..OnvifAction::default()
        };
        let content = content(&onvif, &json!({ "pan": 0.5 })).unwrap();
        assert!(
            content.contains("x=\"0.5\" y=\"0\"") && content.contains("<Timeout>PT1S</Timeout>"),
            "{content}"
        );
    }

    #[test]
    fn names_cannot_break_out_of_the_request() {
        let onvif = OnvifAction {
            operation: OnvifOperation::SetPreset,
            ..OnvifAction::default()
        };
        let content = content(&onvif, &json!({ "name": "</PresetName><x/>" })).unwrap();
        assert!(!content.contains("<x/>"), "{content}");
    }
}
