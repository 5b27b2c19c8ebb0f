//! What a camera offers: its services, profiles, clock and pictures.

use foreshore_crds::v1alpha1::device::{OnvifDevice, OnvifMediaService};
use jiff::{Timestamp, civil};
use quick_xml::escape::escape;
use reqwest::Url;
use serde_json::{Value, json};
use tracing::debug;

use crate::{
    action::SCHEMA,
    client::{Client, Error, quote},
    reach::Reach,
    xml::Element,
};

/// Namespace of the device service.
pub(crate) const DEVICE: &str = "http://www.onvif.org/ver10/device/wsdl";
const MEDIA1: &str = "http://www.onvif.org/ver10/media/wsdl";
const MEDIA2: &str = "http://www.onvif.org/ver20/media/wsdl";
/// Namespace of the PTZ service.
pub(crate) const PTZ: &str = "http://www.onvif.org/ver20/ptz/wsdl";
/// Namespace of the event service.
pub(crate) const EVENTS: &str = "http://www.onvif.org/ver10/events/wsdl";
/// Namespace of the imaging service.
pub(crate) const IMAGING: &str = "http://www.onvif.org/ver20/imaging/wsdl";

/// What a camera told about itself.
#[derive(Debug)]
pub(crate) struct Camera {
    pub(crate) device: Url,
    pub(crate) reach: Reach,
    pub(crate) media: Option<(Url, &'static str)>,
    pub(crate) ptz: Option<Url>,
    pub(crate) events: Option<Url>,
    pub(crate) imaging: Option<Url>,
    pub(crate) profiles: Vec<Profile>,
    /// Maker, model, firmware and serial number.
    pub(crate) information: Element,
}

/// A media profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) has_ptz: bool,
    pub(crate) video_source: Option<String>,
    pub(crate) size: Option<(u32, u32)>,
}

impl Camera {
    /// Asks a camera about itself.
    pub(crate) async fn ask(client: &Client, address: &Url, settings: &OnvifDevice) -> Result<Self, Error> {
        learn_clock(client, address).await?;
        let services = services(client, address).await?;
        let told = |namespace: &str| {
            let mut known = services.iter().filter(|(known, _)| known == namespace);
            known.next().map(|(_, address)| address.clone())
        };
        let reach = Reach::new(address.clone(), told(DEVICE));
        let find = |namespace: &str| told(namespace).map(|address| reach.here(&address));
        let media1 = || find(MEDIA1).map(|address| (address, MEDIA1));
        let media2 = || find(MEDIA2).map(|address| (address, MEDIA2));
        let media = match settings.effective_media_service() {
            OnvifMediaService::Auto => media2().or_else(media1),
            OnvifMediaService::Media1 => media1(),
            OnvifMediaService::Media2 => media2(),
        };
        let information = format!("<GetDeviceInformation xmlns=\"{DEVICE}\"/>");
        let information = client
            .call(address, DEVICE, "GetDeviceInformation", &information)
            .await?;
        let mut camera = Self {
            device: address.clone(),
            reach: reach.clone(),
            media,
            ptz: find(PTZ),
            events: find(EVENTS),
            imaging: find(IMAGING),
            profiles: Vec::new(),
            information,
        };
        camera.profiles = match camera.ask_profiles(client).await {
            // Many cameras list a Media2 service that answers nothing of use.
            Err(error)
                if camera
                    .media
                    .as_ref()
                    .is_some_and(|(_, namespace)| *namespace == MEDIA2) =>
            {
                debug!(%error, "media2 does not list profiles, asking media1");
                camera.media = media1();
                camera.ask_profiles(client).await?
            }
            profiles => profiles?,
        };
        Ok(camera)
    }

    async fn ask_profiles(&self, client: &Client) -> Result<Vec<Profile>, Error> {
        let Some((address, namespace)) = &self.media else {
            return Ok(Vec::new());
        };
        let body = if *namespace == MEDIA2 {
            format!("<GetProfiles xmlns=\"{MEDIA2}\"><Type>All</Type></GetProfiles>")
        } else {
            format!("<GetProfiles xmlns=\"{MEDIA1}\"/>")
        };
        let answer = client.call(address, namespace, "GetProfiles", &body).await?;
        Ok(answer
            .children
            .iter()
            .filter(|child| child.name == "Profiles")
            .filter_map(Profile::read)
            .collect())
    }

    /// The profile of that token, or the first with what is needed.
    pub(crate) fn profile(&self, token: Option<&str>, needs_ptz: bool) -> Option<&Profile> {
        match token {
            Some(token) => self.profiles.iter().find(|profile| profile.token == token),
            None => {
                let fitting = self.profiles.iter().find(|profile| profile.has_ptz || !needs_ptz);
                // A camera may turn its head without telling so in a profile.
                fitting.or_else(|| self.profiles.first())
            }
        }
    }

    /// Where pictures of a profile are; asked for each time, since some cameras change it with every start.
    pub(crate) async fn snapshot_address(&self, client: &Client, profile: &str) -> Result<Url, Error> {
        let (address, namespace) = self.media.as_ref().ok_or_else(no_media)?;
        let token = escape(profile);
        let body = format!(
            "<GetSnapshotUri xmlns=\"{namespace}\"><ProfileToken>{token}</ProfileToken></GetSnapshotUri>"
        );
        let answer = client.call(address, namespace, "GetSnapshotUri", &body).await?;
        self.address_in(&answer)
    }

    /// Where the moving pictures of a profile are.
    pub(crate) async fn stream_address(&self, client: &Client, profile: &str) -> Result<Url, Error> {
        let (address, namespace) = self.media.as_ref().ok_or_else(no_media)?;
        let setup = if *namespace == MEDIA2 {
            "<Protocol>RtspUnicast</Protocol>".to_owned()
        } else {
            format!(
                "<StreamSetup><Stream xmlns=\"{SCHEMA}\">RTP-Unicast</Stream><Transport xmlns=\"{SCHEMA}\">\
                 <Protocol>RTSP</Protocol></Transport></StreamSetup>"
            )
        };
        let token = escape(profile);
        let body = format!(
            "<GetStreamUri xmlns=\"{namespace}\">{setup}<ProfileToken>{token}</ProfileToken></GetStreamUri>"
        );
        let answer = client.call(address, namespace, "GetStreamUri", &body).await?;
        self.address_in(&answer)
    }

    fn address_in(&self, answer: &Element) -> Result<Url, Error> {
        let uri = answer.descendant("Uri").map(|uri| uri.text.as_str());
        let uri = uri.unwrap_or_default();
        let url =
            Url::parse(uri).map_err(|error| Error::Protocol(format!("address {:?}: {error}", quote(uri))))?;
        Ok(self.reach.here(&url))
    }
}

fn no_media() -> Error {
    Error::Protocol("the camera has no media service".to_owned())
}

impl Profile {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "profile": self.token,
            "name": self.name,
            "width": self.size.map(|(width, _)| width),
            "height": self.size.map(|(_, height)| height),
            "ptz": self.has_ptz,
        })
    }

    fn read(element: &Element) -> Option<Self> {
        let resolution = element.descendant("Resolution");
        let number = |name: &str| {
            resolution
                .and_then(|size| size.text_at(&[name]))
                .and_then(|text| text.parse().ok())
        };
        Some(Self {
            token: element.attribute("token")?.to_owned(),
            name: element.text_at(&["Name"]).unwrap_or_default().to_owned(),
            has_ptz: element
                .descendant("PTZConfiguration")
                .or_else(|| element.descendant("PTZ"))
                .is_some(),
            video_source: element.descendant("SourceToken").map(|token| token.text.clone()),
            size: number("Width").zip(number("Height")),
        })
    }
}

/// Learns how far the camera's clock is from ours; the operation needs no password, but some cameras ask for one.
async fn learn_clock(client: &Client, device: &Url) -> Result<(), Error> {
    let before = Timestamp::now();
    let body = format!("<GetSystemDateAndTime xmlns=\"{DEVICE}\"/>");
    let answer = match client.call(device, DEVICE, "GetSystemDateAndTime", &body).await {
        Ok(answer) => answer,
        Err(
            error @ (Error::Unreachable(_) | Error::NoConnection(_) | Error::Untrusted(_) | Error::Refused),
        ) => return Err(error),
        Err(error) => {
            debug!(%error, "the camera does not tell its clock");
            return Ok(());
        }
    };
    let Some(time) = answer.descendant("UTCDateTime").and_then(utc) else {
        return Ok(());
    };
    client.authentication.learn_clock(time, before);
    Ok(())
}

fn utc(element: &Element) -> Option<Timestamp> {
    let number = |path: [&str; 2]| element.text_at(&path).and_then(|text| text.parse::<i16>().ok());
    let small = |path| number(path).and_then(|number| i8::try_from(number).ok());
    let date = civil::Date::new(
        number(["Date", "Year"])?,
        small(["Date", "Month"])?,
        small(["Date", "Day"])?,
    )
    .ok()?;
    let second = small(["Time", "Second"])?.min(59);
    let time = civil::Time::new(small(["Time", "Hour"])?, small(["Time", "Minute"])?, second, 0).ok()?;
    date.to_datetime(time)
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

/// Lists services, at the addresses that the camera tells, from both operations that tell of them, since each leaves out
/// some on some cameras.
async fn services(client: &Client, device: &Url) -> Result<Vec<(String, Url)>, Error> {
    let mut services: Vec<(String, Url)> = Vec::new();
    let mut add = |namespace: &str, address: Option<&str>| {
        let Some(address) = address.and_then(|address| Url::parse(address).ok()) else {
            return;
        };
        if !services.iter().any(|(known, _)| known == namespace) {
            services.push((namespace.to_owned(), address));
        }
    };
    let body =
        format!("<GetServices xmlns=\"{DEVICE}\"><IncludeCapability>false</IncludeCapability></GetServices>");
    let listed = client.call(device, DEVICE, "GetServices", &body).await;
    if let Ok(answer) = &listed {
        for service in answer.children.iter().filter(|child| child.name == "Service") {
            add(
                service.text_at(&["Namespace"]).unwrap_or_default(),
                service.text_at(&["XAddr"]),
            );
        }
    }
    let body = format!("<GetCapabilities xmlns=\"{DEVICE}\"><Category>All</Category></GetCapabilities>");
    let capabilities = client.call(device, DEVICE, "GetCapabilities", &body).await;
    if let Ok(answer) = &capabilities {
        for (name, namespace) in [
            ("Device", DEVICE),
            ("Media", MEDIA1),
            ("PTZ", PTZ),
            ("Events", EVENTS),
            ("Imaging", IMAGING),
        ] {
            add(
                namespace,
                answer
                    .descendant(name)
                    .and_then(|service| service.text_at(&["XAddr"])),
            );
        }
    }
    match (listed, capabilities) {
        (Err(error), Err(_)) => Err(error),
        _ => Ok(services),
    }
}
