//! What a role tells about itself, and plans of other roles need: where it answers, and whom to trust there.

use std::collections::BTreeMap;

/// Most names, and most addresses of a name.
pub(crate) const MOST: usize = 64;
/// Longest name and longest address, in bytes.
pub(crate) const LONGEST: usize = 512;
/// Largest authority, in bytes.
pub(crate) const LARGEST_AUTHORITY: usize = 64 * 1024;

/// Address of a broker's listener for roles with our certificates, `host:port`.
pub const MQTT: &str = "mqtt";
/// Address of a broker's queue service, `host:port`.
pub const QUEUE: &str = "queue";
/// Address of a simulated OPC UA server or ONVIF camera, as a URL that a Device could name.
pub const DEVICE: &str = "device";
/// Address of a cloud endpoint for edges, `host:port`.
pub const EDGE_LINK: &str = "edge-link";
/// Address of a cloud endpoint's JSON API, as a URL.
pub const HTTP: &str = "http";

/// The name of the address of a broker's listener for others; a URL.
#[must_use]
pub fn listener(name: &str) -> String {
    format!("listener/{name}")
}

/// What one role told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleFacts {
    /// Addresses by name; several where several instances answer.
    pub addresses: BTreeMap<String, Vec<String>>,
    /// Certificates (PEM) of the authority of a cloud endpoint for edges.
    pub authority: Option<String>,
}

impl RoleFacts {
    /// Adds an address.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, address: impl Into<String>) -> Self {
        self.addresses
            .entry(name.into())
            .or_default()
            .push(address.into());
        self
    }

    /// The addresses of that name; none before the role told any.
    #[must_use]
    pub fn all(&self, name: &str) -> &[String] {
        self.addresses.get(name).map_or(&[], Vec::as_slice)
    }

    /// The first address of that name.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&str> {
        self.all(name).first().map(String::as_str)
    }

    /// Whether it is small enough to be sent.
    pub(crate) fn is_bounded(&self) -> bool {
        let Self { addresses, authority } = self;
        let short = |(name, several): (&String, &Vec<String>)| {
            name.len() <= LONGEST && several.len() <= MOST && several.iter().all(|one| one.len() <= LONGEST)
        };
        addresses.len() <= MOST
            && addresses.iter().all(short)
            && authority
                .as_ref()
                .is_none_or(|pem| pem.len() <= LARGEST_AUTHORITY)
    }
}
