//! Movements of the head, and its presets.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use foreshore_crds::v1alpha1::asset::{OnvifAction, OnvifOperation};
use foreshore_record::{CommandError, CommandOutcome};
use parking_lot::Mutex;
use quick_xml::escape::escape;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tracing::warn;

use crate::{
    action::{SCHEMA, invalid, outcome, profile, service},
    camera::PTZ,
    client::Client,
    shared::Shared,
    xml::Element,
};

/// Members of a request that move the head.
pub(crate) const AXES: [&str; 3] = ["pan", "tilt", "zoom"];

/// Movements that are to end, by profile.
///
/// Every movement tells the camera when to end, but some cameras do not listen and would turn for ever.
#[derive(Debug, Default)]
pub(crate) struct Movements(Mutex<BTreeMap<String, AbortHandle>>);

impl Movements {
    /// Forgets the end of a movement, since another order comes; whether there was one.
    fn forget(&self, profile: &str) -> bool {
        let ending = self.0.lock().remove(profile);
        ending.is_some_and(|ending| {
            let pending = !ending.is_finished();
            ending.abort();
            pending
        })
    }

    /// Ends a movement after some time; also when the link ends before.
    fn end_after(&self, wait: Duration, client: &Arc<Client>, service: &Url, profile: String) {
        let (client, service, token) = (Arc::clone(client), service.clone(), profile.clone());
        let ending = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let body = request("Stop", &token, STOP);
            if let Err(error) = client.call(&service, PTZ, "Stop", &body).await {
                warn!(%error, "movement was not ended");
            }
        });
        self.0.lock().insert(profile, ending.abort_handle());
    }
}

const STOP: &str = "<PanTilt>true</PanTilt><Zoom>true</Zoom>";

fn request(operation: &str, profile: &str, content: &str) -> String {
    format!(
        "<{operation} xmlns=\"{PTZ}\"><ProfileToken>{}</ProfileToken>{content}</{operation}>",
        escape(profile)
    )
}

/// Whether an operation takes the place of the movement that there is.
fn moves(operation: OnvifOperation) -> bool {
    matches!(
        operation,
        OnvifOperation::AbsoluteMove
            | OnvifOperation::RelativeMove
            | OnvifOperation::ContinuousMove
            | OnvifOperation::Stop
            | OnvifOperation::GotoPreset
            | OnvifOperation::GotoHomePosition
    )
}

/// Carries out a command of the PTZ service.
pub(crate) async fn invoke(shared: &Shared, onvif: &OnvifAction, input: &Value) -> CommandOutcome {
    let service = service(shared.camera.ptz.as_ref(), "PTZ")?;
    let profile = profile(shared, onvif, true)?;
    let operation = format!("{:?}", onvif.operation);
    let body = request(&operation, &profile, &content(onvif, input)?);
    let was_moving = moves(onvif.operation) && shared.movements.forget(&profile);
    let answered = shared.client.call(service, PTZ, &operation, &body).await;
    let end_after = match (&answered, onvif.operation) {
        (Ok(_), OnvifOperation::ContinuousMove) => Some(duration(onvif, input)),
        // The movement before goes on, and its end was forgotten.
        (Err(_), _) if was_moving => Some(Duration::ZERO),
        _ => None,
    };
    if let Some(wait) = end_after {
        shared.movements.end_after(wait, &shared.client, service, profile);
    }
    let answer = answered.map_err(outcome)?;
    Ok(match onvif.operation {
        OnvifOperation::GetPresets => presets(&answer),
        OnvifOperation::GetStatus => status(&answer),
        OnvifOperation::SetPreset => json!({ "preset": answer.text_at(&["PresetToken"]) }),
        OnvifOperation::SendAuxiliaryCommand => json!({ "response": answer.text_at(&["AuxiliaryResponse"]) }),
        _ => Value::Null,
    })
}

/// How long a continuous movement lasts.
fn duration(onvif: &OnvifAction, input: &Value) -> Duration {
    let seconds = input.get("seconds").and_then(Value::as_f64);
    let asked = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    asked.unwrap_or_else(|| onvif.effective_move_timeout())
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
            // Always with an end: the Stop may never arrive.
            let seconds = duration(onvif, input).as_secs_f64();
            format!("{}<Timeout>PT{seconds}S</Timeout>", vector("Velocity", input)?)
        }
        OnvifOperation::Stop => STOP.to_owned(),
        OnvifOperation::SendAuxiliaryCommand => {
            let command = input.get("command").and_then(Value::as_str);
            let command =
                command.ok_or_else(|| invalid("found no command; one such as tt:Wiper|On is allowed"))?;
            format!("<AuxiliaryData>{}</AuxiliaryData>", escape(command))
        }
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
