//! The media service: one profile, a snapshot and no stream.

use super::{
    Camera,
    soap::{Fault, Request},
};

/// Token of the one media profile.
pub(super) const PROFILE: &str = "profile_1";

/// Checks that a request names the one profile.
pub(super) fn check_profile(request: &Request) -> Result<(), Fault> {
    match request.value("ProfileToken") {
        Some(PROFILE) => Ok(()),
        found => Err(Fault::sender(
            "ter:NoProfile",
            format!(
                "profile {:?} does not exist: {PROFILE:?} does",
                found.unwrap_or_default()
            ),
        )),
    }
}

/// Answers a request.
pub(super) fn answer(camera: &Camera, request: &Request) -> Result<String, Fault> {
    match request.operation.as_str() {
        "GetProfiles" => {
            Ok(format!("<trt:GetProfilesResponse>{}</trt:GetProfilesResponse>", profile(camera, "trt:Profiles")))
        }
        "GetProfile" => {
            check_profile(request)?;
            Ok(format!("<trt:GetProfileResponse>{}</trt:GetProfileResponse>", profile(camera, "trt:Profile")))
        }
        "GetSnapshotUri" => {
            check_profile(request)?;
            Ok(format!(
                "<trt:GetSnapshotUriResponse><trt:MediaUri><tt:Uri>{}/snapshot.jpg</tt:Uri>\
                 <tt:InvalidAfterConnect>false</tt:InvalidAfterConnect><tt:InvalidAfterReboot>false</tt:InvalidAfterReboot>\
                 <tt:Timeout>PT0S</tt:Timeout></trt:MediaUri></trt:GetSnapshotUriResponse>",
                camera.base()
            ))
        }
        "GetVideoSources" => {
            let (width, height) = camera.options.size;
            Ok(format!(
                "<trt:GetVideoSourcesResponse><trt:VideoSources token=\"source_1\"><tt:Framerate>10</tt:Framerate>\
                 <tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution>\
                 </trt:VideoSources></trt:GetVideoSourcesResponse>"
            ))
        }
        "GetServiceCapabilities" => Ok("<trt:GetServiceCapabilitiesResponse><trt:Capabilities SnapshotUri=\"true\">\
             <trt:ProfileCapabilities MaximumNumberOfProfiles=\"1\"/><trt:StreamingCapabilities/></trt:Capabilities>\
             </trt:GetServiceCapabilitiesResponse>"
            .to_owned()),
        operation => Err(Fault::not_supported(operation)),
    }
}

fn profile(camera: &Camera, element: &str) -> String {
    let (width, height) = camera.options.size;
    format!(
        "<{element} token=\"{PROFILE}\" fixed=\"true\"><tt:Name>Line</tt:Name>\
         <tt:VideoSourceConfiguration token=\"vsc_1\"><tt:Name>Line</tt:Name><tt:UseCount>1</tt:UseCount>\
         <tt:SourceToken>source_1</tt:SourceToken><tt:Bounds x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\"/>\
         </tt:VideoSourceConfiguration><tt:VideoEncoderConfiguration token=\"vec_1\"><tt:Name>JPEG</tt:Name>\
         <tt:UseCount>1</tt:UseCount><tt:Encoding>JPEG</tt:Encoding><tt:Resolution><tt:Width>{width}</tt:Width>\
         <tt:Height>{height}</tt:Height></tt:Resolution><tt:Quality>4</tt:Quality>\
         <tt:Multicast><tt:Address><tt:Type>IPv4</tt:Type><tt:IPv4Address>0.0.0.0</tt:IPv4Address></tt:Address>\
         <tt:Port>0</tt:Port><tt:TTL>1</tt:TTL><tt:AutoStart>false</tt:AutoStart></tt:Multicast>\
         <tt:SessionTimeout>PT60S</tt:SessionTimeout></tt:VideoEncoderConfiguration>\
         <tt:PTZConfiguration token=\"ptzc_1\"><tt:Name>Head</tt:Name><tt:UseCount>1</tt:UseCount>\
         <tt:NodeToken>node_1</tt:NodeToken></tt:PTZConfiguration></{element}>"
    )
}
