//! Addresses: cameras tell those that they believe they have; behind a router or in a container only ours works.

use reqwest::Url;

/// How the addresses that a camera tells are reached from here.
///
/// The host is always the one that the user gave, so that credentials go nowhere else.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// The device service as the user gave it.
    dialled: Url,
    /// The device service as the camera tells it.
    believed: Option<Url>,
}

impl Reach {
    pub(crate) fn new(dialled: Url, believed: Option<Url>) -> Self {
        Self { dialled, believed }
    }

    /// Where an address that the camera told is reached.
    pub(crate) fn here(&self, told: &Url) -> Url {
        self.rewrite(told).unwrap_or_else(|| told.clone())
    }

    fn rewrite(&self, told: &Url) -> Option<Url> {
        let mut here = told.clone();
        // Ours are the credentials that count.
        here.set_username("").ok()?;
        here.set_password(None).ok()?;
        here.set_host(self.dialled.host_str()).ok()?;
        let (secure, same_scheme) = (
            self.dialled.scheme() == "https",
            told.scheme() == self.dialled.scheme(),
        );
        let beside_device = self.believed.as_ref().is_some_and(|believed| {
            told.host_str() == believed.host_str()
                && told.port_or_known_default() == believed.port_or_known_default()
        });
        let elsewhere = told.host_str() != self.dialled.host_str();
        if !matches!(told.scheme(), "http" | "https") {
            // A stream's address has ports of its own.
        } else if secure && !same_scheme {
            // What the user asked to be encrypted stays so, whatever the camera tells.
            here.set_scheme(self.dialled.scheme()).ok()?;
            here.set_port(self.dialled.port()).ok()?;
        } else if same_scheme && (beside_device || (elsewhere && told.port().is_none())) {
            // What the camera serves where it believes its device service is, it serves where we found that. Another
            // port is real, such as that of a web server for pictures.
            here.set_port(self.dialled.port()).ok()?;
        }
        Some(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_here(dialled: &str, believed: Option<&str>, told: &str) -> String {
        let url = |text: &str| Url::parse(text).unwrap();
        let reach = Reach::new(url(dialled), believed.map(url));
        reach.here(&url(told)).to_string()
    }

    #[test]
    fn addresses_are_reached_from_here() {
        let dialled = "http://192.0.2.7:8080/onvif/device_service";
        let inside = Some("http://172.17.0.2:80/onvif/device_service");
        let mapped = Some("http://172.17.0.2:8000/onvif/device_service");
        for (believed, told, expected) in [
            (
                None,
                "http://10.0.0.1/onvif/media",
                "http://192.0.2.7:8080/onvif/media",
            ),
            (None, "http://10.0.0.1:81/snap", "http://192.0.2.7:81/snap"),
            (None, "http://192.0.2.7:81/snap", "http://192.0.2.7:81/snap"),
            (
                inside,
                "http://172.17.0.2/onvif/media",
                "http://192.0.2.7:8080/onvif/media",
            ),
            (mapped, "http://172.17.0.2:8000/ptz", "http://192.0.2.7:8080/ptz"),
            (mapped, "http://172.17.0.2:81/snap", "http://192.0.2.7:81/snap"),
            (
                Some("http://192.0.2.7/d"),
                "http://192.0.2.7/m",
                "http://192.0.2.7:8080/m",
            ),
            (None, "https://10.0.0.1/media", "https://192.0.2.7/media"),
            (mapped, "rtsp://172.17.0.2:554/s", "rtsp://192.0.2.7:554/s"),
            (
                None,
                "http://eve:x@10.0.0.1:81/snap?a=b",
                "http://192.0.2.7:81/snap?a=b",
            ),
        ] {
            assert_eq!(from_here(dialled, believed, told), expected, "{told}");
        }
    }

    #[test]
    fn encryption_is_kept() {
        let dialled = "https://camera:8443/onvif/device_service";
        for told in [
            "http://camera/media",
            "http://10.0.0.1:81/media",
            "https://10.0.0.1/media",
        ] {
            assert_eq!(from_here(dialled, None, told), "https://camera:8443/media");
        }
    }
}
