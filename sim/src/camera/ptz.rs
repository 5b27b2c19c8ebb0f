//! The PTZ service: a head that turns at a steady speed, and presets.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use quick_xml::escape::escape;

use super::{
    Camera,
    events::{duration, later},
    media::check_profile,
    soap::{Fault, Request},
};

/// Most presets that the head remembers.
const MAX_PRESETS: usize = 32;
/// How long a movement lasts that does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest movement.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// The camera's head. Pan and tilt run from -1 to 1, zoom from 0 to 1 (ONVIF PTZ, generic position space).
#[derive(Debug)]
pub(super) struct Head {
    at: [f64; 3],
    /// Movement a second.
    velocity: [f64; 3],
    since: Timestamp,
    /// When the movement ends by itself.
    until: Timestamp,
    presets: BTreeMap<String, (String, [f64; 3])>,
}

impl Default for Head {
    fn default() -> Self {
        let presets = [
            ("home", "Home", [0.0, 0.0, 0.0]),
            ("palletiser", "Palletiser", [0.8, -0.2, 0.5]),
        ];
        Self {
            at: [0.0; 3],
            velocity: [0.0; 3],
            since: Timestamp::UNIX_EPOCH,
            until: Timestamp::UNIX_EPOCH,
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
        let seconds = now
            .min(self.until)
            .duration_since(self.since)
            .as_secs_f64()
            .max(0.0);
        let mut at = self.at;
        for ((value, velocity), low) in at.iter_mut().zip(self.velocity).zip(LOW) {
            *value = (*value + velocity * seconds).clamp(low, 1.0);
        }
        let [pan, tilt, zoom] = at;
        (pan, tilt, zoom)
    }

    /// Is there at once, and rests.
    fn jump(&mut self, now: Timestamp, mut target: [f64; 3]) {
        for (value, low) in target.iter_mut().zip(LOW) {
            *value = value.clamp(low, 1.0);
        }
        (self.at, self.velocity, self.since, self.until) = (target, [0.0; 3], now, now);
    }

    /// Turns on from where it is.
    fn turn(&mut self, now: Timestamp, velocity: [f64; 3], timeout: Duration) {
        let (pan, tilt, zoom) = self.position(now);
        (self.at, self.velocity) = ([pan, tilt, zoom], velocity);
        (self.since, self.until) = (now, later(now, timeout));
    }

    /// Rests where it is.
    fn stop(&mut self, now: Timestamp) {
        let (pan, tilt, zoom) = self.position(now);
        self.jump(now, [pan, tilt, zoom]);
    }

    /// A token that no preset has.
    fn unused_preset(&self) -> String {
        let mut tokens = (1..).map(|number: usize| number.to_string());
        let unused = tokens.find(|token| !self.presets.contains_key(token));
        unused.unwrap_or_default()
    }

    fn is_moving(&self, now: Timestamp) -> bool {
        now < self.until && self.velocity.iter().any(|velocity| velocity.abs() > f64::EPSILON)
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
    if let Some(told) = describe(request)? {
        return Ok(told);
    }
    check_profile(request)?;
    match operation {
        "ContinuousMove" => {
            let velocity = triple(request, "Velocity").map(|speed| speed.unwrap_or(0.0).clamp(-1.0, 1.0));
            let timeout = request.value("Timeout").and_then(duration);
            head.turn(now, velocity, timeout.unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT));
        }
        "AbsoluteMove" => {
            let (pan, tilt, zoom) = head.position(now);
            let [x, y, z] = triple(request, "Position");
            head.jump(now, [x.unwrap_or(pan), y.unwrap_or(tilt), z.unwrap_or(zoom)]);
        }
        "RelativeMove" => {
            let (pan, tilt, zoom) = head.position(now);
            let [x, y, z] = triple(request, "Translation").map(|part| part.unwrap_or(0.0));
            head.jump(now, [pan + x, tilt + y, zoom + z]);
        }
        "Stop" => head.stop(now),
        "GotoHomePosition" => head.jump(now, [0.0; 3]),
        "GotoPreset" => {
            let token = request.value("PresetToken").unwrap_or_default();
            let Some((_, at)) = head.presets.get(token) else {
                return Err(no_preset(token));
            };
            let at = *at;
            head.jump(now, at);
        }
        "SetPreset" => return set_preset(&mut head, request, now),
        "RemovePreset" => {
            let token = request.value("PresetToken").unwrap_or_default();
            head.presets.remove(token).ok_or_else(|| no_preset(token))?;
        }
        "GetPresets" => return Ok(presets(&head)),
        "GetStatus" => return Ok(status(&head, camera, now)),
        operation => return Err(Fault::not_supported(operation)),
    }
    Ok(format!("<tptz:{operation}Response/>"))
}

/// What needs no profile: the head's own description.
fn describe(request: &Request) -> Result<Option<String>, Fault> {
    let operation = request.operation.as_str();
    let check = |element: &str, token: &str, subcode| match request.value(element) {
        Some(found) if found != token => Err(Fault::sender(
            subcode,
            format!("{found:?} does not exist: {token:?} does"),
        )),
        _ => Ok(()),
    };
    let content = match operation {
        "GetNodes" | "GetNode" => {
            check("NodeToken", "node_1", "ter:NoEntity")?;
            format!(
                "<tptz:PTZNode token=\"node_1\" FixedHomePosition=\"true\"><tt:Name>Head</tt:Name>\
                 <tt:SupportedPTZSpaces>{SPACES}</tt:SupportedPTZSpaces>\
                 <tt:MaximumNumberOfPresets>{MAX_PRESETS}</tt:MaximumNumberOfPresets>\
                 <tt:HomeSupported>true</tt:HomeSupported></tptz:PTZNode>"
            )
        }
        "GetConfigurations" | "GetConfiguration" => {
            check("PTZConfigurationToken", CONFIGURATION, "ter:NoConfig")?;
            format!(
                "<tptz:PTZConfiguration token=\"{CONFIGURATION}\"><tt:Name>Head</tt:Name><tt:UseCount>1</tt:UseCount>\
                 <tt:NodeToken>node_1</tt:NodeToken><tt:DefaultPTZTimeout>PT{}S</tt:DefaultPTZTimeout>\
                 </tptz:PTZConfiguration>",
                DEFAULT_TIMEOUT.as_secs()
            )
        }
        "GetConfigurationOptions" => {
            check("ConfigurationToken", CONFIGURATION, "ter:NoConfig")?;
            format!(
                "<tptz:PTZConfigurationOptions><tt:Spaces>{SPACES}</tt:Spaces><tt:PTZTimeout><tt:Min>PT0S</tt:Min>\
                 <tt:Max>PT{}S</tt:Max></tt:PTZTimeout></tptz:PTZConfigurationOptions>",
                MAX_TIMEOUT.as_secs()
            )
        }
        "GetServiceCapabilities" => "<tptz:Capabilities MoveStatus=\"true\"/>".to_owned(),
        _ => return Ok(None),
    };
    Ok(Some(format!(
        "<tptz:{operation}Response>{content}</tptz:{operation}Response>"
    )))
}

fn no_preset(token: &str) -> Fault {
    Fault::sender("ter:NoToken", format!("preset {token:?} does not exist"))
}

fn set_preset(head: &mut Head, request: &Request, now: Timestamp) -> Result<String, Fault> {
    let token = request
        .value("PresetToken")
        .map_or_else(|| head.unused_preset(), ToOwned::to_owned);
    if head.presets.len() >= MAX_PRESETS && !head.presets.contains_key(&token) {
        return Err(Fault::sender(
            "ter:TooManyPresets",
            format!("{MAX_PRESETS} presets are allowed"),
        ));
    }
    let (pan, tilt, zoom) = head.position(now);
    let name = request.value("PresetName").unwrap_or(&token).to_owned();
    head.presets.insert(token.clone(), (name, [pan, tilt, zoom]));
    let token = escape(&token);
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
                escape(token.as_str()),
                escape(name.as_str())
            )
        })
        .collect();
    format!("<tptz:GetPresetsResponse>{presets}</tptz:GetPresetsResponse>")
}

fn status(head: &Head, camera: &Camera, now: Timestamp) -> String {
    let (pan, tilt, zoom) = head.position(now);
    let moving = if head.is_moving(now) { "MOVING" } else { "IDLE" };
    format!(
        "<tptz:GetStatusResponse><tptz:PTZStatus><tt:Position><tt:PanTilt x=\"{pan}\" y=\"{tilt}\"/>\
         <tt:Zoom x=\"{zoom}\"/></tt:Position><tt:MoveStatus><tt:PanTilt>{moving}</tt:PanTilt><tt:Zoom>{moving}</tt:Zoom>\
         </tt:MoveStatus><tt:UtcTime>{:.0}</tt:UtcTime></tptz:PTZStatus></tptz:GetStatusResponse>",
        camera.now()
    )
}

/// Token of the one PTZ configuration.
const CONFIGURATION: &str = "ptzc_1";

/// The generic spaces (ONVIF PTZ, 5.8), in the order of the schema.
const SPACES: &str = concat!(
    "<tt:AbsolutePanTiltPositionSpace><tt:URI>http://www.onvif.org/ver10/tptz/PanTiltSpaces/PositionGenericSpace</tt:URI>",
    "<tt:XRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:XRange><tt:YRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:YRange>",
    "</tt:AbsolutePanTiltPositionSpace>",
    "<tt:AbsoluteZoomPositionSpace><tt:URI>http://www.onvif.org/ver10/tptz/ZoomSpaces/PositionGenericSpace</tt:URI>",
    "<tt:XRange><tt:Min>0</tt:Min><tt:Max>1</tt:Max></tt:XRange></tt:AbsoluteZoomPositionSpace>",
    "<tt:RelativePanTiltTranslationSpace>",
    "<tt:URI>http://www.onvif.org/ver10/tptz/PanTiltSpaces/TranslationGenericSpace</tt:URI>",
    "<tt:XRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:XRange><tt:YRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:YRange>",
    "</tt:RelativePanTiltTranslationSpace>",
    "<tt:RelativeZoomTranslationSpace><tt:URI>http://www.onvif.org/ver10/tptz/ZoomSpaces/TranslationGenericSpace</tt:URI>",
    "<tt:XRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:XRange></tt:RelativeZoomTranslationSpace>",
    "<tt:ContinuousPanTiltVelocitySpace><tt:URI>http://www.onvif.org/ver10/tptz/PanTiltSpaces/VelocityGenericSpace</tt:URI>",
    "<tt:XRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:XRange><tt:YRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:YRange>",
    "</tt:ContinuousPanTiltVelocitySpace>",
    "<tt:ContinuousZoomVelocitySpace><tt:URI>http://www.onvif.org/ver10/tptz/ZoomSpaces/VelocityGenericSpace</tt:URI>",
    "<tt:XRange><tt:Min>-1</tt:Min><tt:Max>1</tt:Max></tt:XRange></tt:ContinuousZoomVelocitySpace>",
);
