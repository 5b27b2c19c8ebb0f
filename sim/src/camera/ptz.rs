//! The PTZ service: a head that turns at a steady speed, and presets.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    Camera,
    media::check_profile,
    soap::{self, Fault, Request},
};

/// Most presets that the head remembers.
const MAX_PRESETS: usize = 32;

/// The camera's head. Pan and tilt run from -1 to 1, zoom from 0 to 1 (ONVIF PTZ, generic position space).
#[derive(Debug)]
pub(super) struct Head {
    at: [f64; 3],
    /// Movement a second.
    velocity: [f64; 3],
    since: Timestamp,
    presets: BTreeMap<String, (String, [f64; 3])>,
}

impl Default for Head {
    fn default() -> Self {
        let presets = [
            ("1", "home", [0.0, 0.0, 0.0]),
            ("2", "palletiser", [0.8, -0.2, 0.5]),
        ];
        Self {
            at: [0.0; 3],
            velocity: [0.0; 3],
            since: Timestamp::UNIX_EPOCH,
            presets: presets
                .map(|(token, name, at)| (token.to_owned(), (name.to_owned(), at)))
                .into(),
        }
    }
}

const LOW: [f64; 3] = [-1.0, -1.0, 0.0];

impl Head {
    /// Where it looks at that time.
    pub(super) fn position(&self, now: Timestamp) -> (f64, f64, f64) {
        let seconds = now.duration_since(self.since).as_secs_f64().max(0.0);
        let mut at = self.at;
        for ((value, velocity), low) in at.iter_mut().zip(self.velocity).zip(LOW) {
            *value = (*value + velocity * seconds).clamp(low, 1.0);
        }
        let [pan, tilt, zoom] = at;
        (pan, tilt, zoom)
    }

    fn go(&mut self, now: Timestamp, target: Option<[f64; 3]>, velocity: [f64; 3]) {
        let (pan, tilt, zoom) = self.position(now);
        let mut at = target.unwrap_or([pan, tilt, zoom]);
        for (value, low) in at.iter_mut().zip(LOW) {
            *value = value.clamp(low, 1.0);
        }
        self.at = at;
        self.velocity = velocity;
        self.since = now;
    }

    fn is_moving(&self) -> bool {
        self.velocity.iter().any(|velocity| velocity.abs() > f64::EPSILON)
    }
}

fn triple(request: &Request, element: &str) -> [Option<f64>; 3] {
    [("PanTilt@x"), ("PanTilt@y"), ("Zoom@x")].map(|part| request.number(&format!("{element}/{part}")))
}

/// Answers a request.
pub(super) fn answer(camera: &Camera, request: &Request) -> Result<String, Fault> {
    let now = Timestamp::now();
    let mut head = camera.ptz.lock();
    let operation = request.operation.as_str();
    if !matches!(
        operation,
        "GetNodes" | "GetNode" | "GetConfigurations" | "GetServiceCapabilities"
    ) {
        check_profile(request)?;
    }
    match operation {
        "ContinuousMove" => {
            let velocity = triple(request, "Velocity").map(|speed| speed.unwrap_or(0.0).clamp(-1.0, 1.0));
            head.go(now, None, velocity);
        }
        "AbsoluteMove" => {
            let (pan, tilt, zoom) = head.position(now);
            let [x, y, z] = triple(request, "Position");
            head.go(
                now,
                Some([x.unwrap_or(pan), y.unwrap_or(tilt), z.unwrap_or(zoom)]),
                [0.0; 3],
            );
        }
        "RelativeMove" => {
            let (pan, tilt, zoom) = head.position(now);
            let [x, y, z] = triple(request, "Translation").map(|part| part.unwrap_or(0.0));
            head.go(now, Some([pan + x, tilt + y, zoom + z]), [0.0; 3]);
        }
        "Stop" => head.go(now, None, [0.0; 3]),
        "GotoHomePosition" => head.go(now, Some([0.0; 3]), [0.0; 3]),
        "GotoPreset" => {
            let token = request.value("PresetToken").unwrap_or_default();
            let Some((_, at)) = head.presets.get(token) else {
                return Err(no_preset(token));
            };
            let at = *at;
            head.go(now, Some(at), [0.0; 3]);
        }
        "SetPreset" => return set_preset(&mut head, request, now),
        "RemovePreset" => {
            let token = request.value("PresetToken").unwrap_or_default();
            head.presets.remove(token).ok_or_else(|| no_preset(token))?;
        }
        "GetPresets" => return Ok(presets(&head)),
        "GetStatus" => return Ok(status(&head, camera, now)),
        "GetNodes" | "GetNode" => return Ok(node(operation)),
        "GetConfigurations" => {
            return Ok("<tptz:GetConfigurationsResponse><tptz:PTZConfiguration token=\"ptzc_1\"><tt:Name>Head</tt:Name>\
                 <tt:UseCount>1</tt:UseCount><tt:NodeToken>node_1</tt:NodeToken></tptz:PTZConfiguration>\
                 </tptz:GetConfigurationsResponse>"
                .to_owned());
        }
        "GetServiceCapabilities" => {
            return Ok(
                "<tptz:GetServiceCapabilitiesResponse><tptz:Capabilities MoveStatus=\"true\"/>\
                 </tptz:GetServiceCapabilitiesResponse>"
                    .to_owned(),
            );
        }
        operation => return Err(Fault::not_supported(operation)),
    }
    Ok(format!("<tptz:{operation}Response/>"))
}

fn no_preset(token: &str) -> Fault {
    Fault::sender("ter:NoToken", format!("preset {token:?} does not exist"))
}

fn set_preset(head: &mut Head, request: &Request, now: Timestamp) -> Result<String, Fault> {
    let token = request
        .value("PresetToken")
        .map_or_else(|| (head.presets.len() + 1).to_string(), ToOwned::to_owned);
    if head.presets.len() >= MAX_PRESETS && !head.presets.contains_key(&token) {
        return Err(Fault::sender(
            "ter:TooManyPresets",
            format!("{MAX_PRESETS} presets are allowed"),
        ));
    }
    let (pan, tilt, zoom) = head.position(now);
    let name = request.value("PresetName").unwrap_or(&token).to_owned();
    head.presets.insert(token.clone(), (name, [pan, tilt, zoom]));
    let token = soap::escape(&token);
    Ok(format!(
        "<tptz:SetPresetResponse><tptz:PresetToken>{token}</tptz:PresetToken></tptz:SetPresetResponse>"
    ))
}

fn presets(head: &Head) -> String {
    let presets: String = head
        .presets
        .iter()
        .map(|(token, (name, [pan, tilt, zoom]))| {
            format!(
                "<tptz:Preset token=\"{}\"><tt:Name>{}</tt:Name><tt:PTZPosition><tt:PanTilt x=\"{pan}\" y=\"{tilt}\"/>\
                 <tt:Zoom x=\"{zoom}\"/></tt:PTZPosition></tptz:Preset>",
                soap::escape(token),
                soap::escape(name)
            )
        })
        .collect();
    format!("<tptz:GetPresetsResponse>{presets}</tptz:GetPresetsResponse>")
}

fn status(head: &Head, camera: &Camera, now: Timestamp) -> String {
    let (pan, tilt, zoom) = head.position(now);
    let moving = if head.is_moving() { "MOVING" } else { "IDLE" };
    format!(
        "<tptz:GetStatusResponse><tptz:PTZStatus><tt:Position><tt:PanTilt x=\"{pan}\" y=\"{tilt}\"/>\
         <tt:Zoom x=\"{zoom}\"/></tt:Position><tt:MoveStatus><tt:PanTilt>{moving}</tt:PanTilt><tt:Zoom>{moving}</tt:Zoom>\
         </tt:MoveStatus><tt:UtcTime>{:.0}</tt:UtcTime></tptz:PTZStatus></tptz:GetStatusResponse>",
        camera.now()
    )
}

fn node(operation: &str) -> String {
    format!(
        "<tptz:{operation}Response><tptz:PTZNode token=\"node_1\" FixedHomePosition=\"true\"><tt:Name>Head</tt:Name>\
         <tt:SupportedPTZSpaces/><tt:MaximumNumberOfPresets>{MAX_PRESETS}</tt:MaximumNumberOfPresets>\
         <tt:HomeSupported>true</tt:HomeSupported></tptz:PTZNode></tptz:{operation}Response>"
    )
}
