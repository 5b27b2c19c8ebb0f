//! What all tasks of a link share.

use std::sync::Arc;

use foreshore_connector_sdk::Emitter;
use foreshore_crds::v1alpha1::device::OnvifDevice;
use parking_lot::RwLock;

use crate::{camera::Camera, client::Client, events::Wanted, ptz::Movements};

/// A camera, and how it is asked.
pub(crate) struct Shared {
    pub(crate) client: Arc<Client>,
    pub(crate) camera: Camera,
    pub(crate) out: Emitter,
    pub(crate) settings: OnvifDevice,
    pub(crate) movements: Movements,
    pub(crate) events: RwLock<Arc<Vec<Wanted>>>,
}

impl Shared {
    /// Events that are asked for.
    pub(crate) fn wanted_events(&self) -> Arc<Vec<Wanted>> {
        Arc::clone(&self.events.read())
    }
}
