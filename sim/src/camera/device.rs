//! The device service: who it is, what it can do, what time it has.

use super::{
    Camera,
    soap::{self, Fault, Request},
};

/// Operations of the access class `PRE_AUTH` (ONVIF Core, 5.9.4.3).
pub(super) fn needs_no_password(operation: &str) -> bool {
    matches!(
        operation,
        "GetSystemDateAndTime" | "GetServices" | "GetServiceCapabilities" | "GetCapabilities" | "GetHostname"
    )
}

/// Answers a request.
pub(super) fn answer(camera: &Camera, request: &Request) -> Result<String, Fault> {
    match request.operation.as_str() {
        "GetSystemDateAndTime" => Ok(date_and_time(camera)),
        "GetDeviceInformation" => Ok(format!(
            "<tds:GetDeviceInformationResponse><tds:Manufacturer>Foreshore</tds:Manufacturer>\
             <tds:Model>Simulated camera</tds:Model><tds:FirmwareVersion>{}</tds:FirmwareVersion>\
             <tds:SerialNumber>SIM-{}</tds:SerialNumber><tds:HardwareId>sim</tds:HardwareId>\
             </tds:GetDeviceInformationResponse>",
            env!("CARGO_PKG_VERSION"),
            camera.options.seed
        )),
        "GetServices" => Ok(services(camera)),
        "GetCapabilities" => Ok(capabilities(camera)),
        "GetServiceCapabilities" => Ok("<tds:GetServiceCapabilitiesResponse><tds:Capabilities><tds:Network/>\
             <tds:Security UsernameToken=\"true\" HttpDigest=\"true\"/><tds:System/></tds:Capabilities>\
             </tds:GetServiceCapabilitiesResponse>"
            .to_owned()),
        "GetScopes" => Ok("<tds:GetScopesResponse><tds:Scopes><tt:ScopeDef>Fixed</tt:ScopeDef>\
             <tt:ScopeItem>onvif://www.onvif.org/Profile/Streaming</tt:ScopeItem></tds:Scopes><tds:Scopes>\
             <tt:ScopeDef>Configurable</tt:ScopeDef><tt:ScopeItem>onvif://www.onvif.org/name/line-camera</tt:ScopeItem>\
             </tds:Scopes></tds:GetScopesResponse>"
            .to_owned()),
        "GetHostname" => Ok("<tds:GetHostnameResponse><tds:HostnameInformation><tt:FromDHCP>false</tt:FromDHCP>\
             <tt:Name>line-camera</tt:Name></tds:HostnameInformation></tds:GetHostnameResponse>"
            .to_owned()),
        "GetNetworkInterfaces" => Ok(network_interfaces(camera)),
        operation => Err(Fault::not_supported(operation)),
    }
}

fn date_and_time(camera: &Camera) -> String {
    let now = camera.now().to_zoned(jiff::tz::TimeZone::UTC);
    let stamp = format!(
        "<tt:Time><tt:Hour>{}</tt:Hour><tt:Minute>{}</tt:Minute><tt:Second>{}</tt:Second></tt:Time>\
         <tt:Date><tt:Year>{}</tt:Year><tt:Month>{}</tt:Month><tt:Day>{}</tt:Day></tt:Date>",
        now.hour(),
        now.minute(),
        now.second(),
        now.year(),
        now.month(),
        now.day()
    );
    format!(
        "<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:DateTimeType>NTP</tt:DateTimeType>\
         <tt:DaylightSavings>false</tt:DaylightSavings><tt:TimeZone><tt:TZ>UTC0</tt:TZ></tt:TimeZone>\
         <tt:UTCDateTime>{stamp}</tt:UTCDateTime></tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>"
    )
}

/// The one interface, with a locally administered hardware address that the seed makes its own.
fn network_interfaces(camera: &Camera) -> String {
    let [.., a, b, c, d, e] = camera.options.seed.to_be_bytes();
    let address = camera.address.ip();
    format!(
        "<tds:GetNetworkInterfacesResponse><tds:NetworkInterfaces token=\"eth0\"><tt:Enabled>true</tt:Enabled>\
         <tt:Info><tt:Name>eth0</tt:Name><tt:HwAddress>02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}</tt:HwAddress>\
         <tt:MTU>1500</tt:MTU></tt:Info><tt:IPv4><tt:Enabled>true</tt:Enabled><tt:Config><tt:Manual>\
         <tt:Address>{address}</tt:Address><tt:PrefixLength>8</tt:PrefixLength></tt:Manual><tt:DHCP>false</tt:DHCP>\
         </tt:Config></tt:IPv4></tds:NetworkInterfaces></tds:GetNetworkInterfacesResponse>"
    )
}

fn services(camera: &Camera) -> String {
    let base = camera.base();
    let service = |namespace: &str, path: &str| {
        format!(
            "<tds:Service><tds:Namespace>{namespace}</tds:Namespace><tds:XAddr>{base}/onvif/{path}</tds:XAddr>\
             <tds:Version><tt:Major>23</tt:Major><tt:Minor>12</tt:Minor></tds:Version></tds:Service>"
        )
    };
    format!(
        "<tds:GetServicesResponse>{}{}{}{}</tds:GetServicesResponse>",
        service(soap::DEVICE, "device_service"),
        service(soap::MEDIA, "media_service"),
        service(soap::PTZ, "ptz_service"),
        service(soap::EVENTS, "event_service")
    )
}

fn capabilities(camera: &Camera) -> String {
    let base = camera.base();
    format!(
        "<tds:GetCapabilitiesResponse><tds:Capabilities>\
         <tt:Device><tt:XAddr>{base}/onvif/device_service</tt:XAddr></tt:Device>\
         <tt:Events><tt:XAddr>{base}/onvif/event_service</tt:XAddr>\
         <tt:WSSubscriptionPolicySupport>false</tt:WSSubscriptionPolicySupport>\
         <tt:WSPullPointSupport>true</tt:WSPullPointSupport>\
         <tt:WSPausableSubscriptionManagerInterfaceSupport>false</tt:WSPausableSubscriptionManagerInterfaceSupport>\
         </tt:Events><tt:Media><tt:XAddr>{base}/onvif/media_service</tt:XAddr><tt:StreamingCapabilities/></tt:Media>\
         <tt:PTZ><tt:XAddr>{base}/onvif/ptz_service</tt:XAddr></tt:PTZ>\
         </tds:Capabilities></tds:GetCapabilitiesResponse>"
    )
}
