//! Whose turn it is to hand a device's data to the broker, and what the operator is told about it.

use std::sync::Arc;

use bytes::Bytes;
use foreshore_control::{HandOver, PlanResource, ResourceKey, Stage, Turn, plan::DevicePlan};
use parking_lot::Mutex;

use super::{reports::ReportSink, watermark::Watermark};

/// Whether a device's data may be handed over.
#[derive(Clone, Debug, Default)]
pub(crate) enum Gate {
    /// Not yet: another instance does it.
    Shut,
    /// From the beginning.
    #[default]
    Open,
    /// After what another instance has handed over.
    After(Arc<Entry>),
}

/// How an instance goes on where another let go.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Numbers have a larger epoch than this.
    pub(crate) epoch: u64,
    /// What was handed over; `None` when nobody knows.
    pub(crate) watermark: Option<Watermark>,
}

impl Gate {
    pub(crate) fn is_shut(&self) -> bool {
        matches!(self, Self::Shut)
    }

    pub(crate) fn of(turn: &Turn) -> Self {
        let (epoch, watermark) = match turn {
            Turn::Wait => return Self::Shut,
            Turn::Lost { epoch } => (*epoch, None),
            // One of another format is as good as none.
            Turn::After { epoch, .. } => (
                *epoch,
                turn.watermark().and_then(|bytes| Watermark::decode(&bytes)),
            ),
        };
        Self::After(Arc::new(Entry { epoch, watermark }))
    }
}

/// Tells the operator where a device stands, as long as the device is planned.
pub(crate) struct Standing {
    sink: Arc<dyn ReportSink>,
    /// `None` when there is nothing more to say.
    told: Mutex<Option<HandOver>>,
}

impl Standing {
    pub(crate) fn new(sink: Arc<dyn ReportSink>, namespace: &str, device: &str) -> Arc<Self> {
        let told = HandOver {
            device: ResourceKey::new(DevicePlan::KIND, namespace, device),
            stage: Stage::Serving,
            number: 0,
            epoch: 0,
            watermark: Bytes::new(),
        };
        Arc::new(Self {
            sink,
            told: Mutex::new(Some(told)),
        })
    }

    /// Which hand-over answers are about. What was said already is said of this one too.
    pub(crate) fn number(&self, number: u64) {
        let mut told = self.told.lock();
        if let Some(told) = &mut *told
            && told.number != number
        {
            told.number = number;
            if told.stage != Stage::Serving {
                self.sink.hand_over(told.clone());
            }
        }
    }

    /// It hands data over, under numbers of this epoch.
    pub(crate) fn serving(&self, epoch: u64) {
        self.tell(Stage::Serving, epoch, Bytes::new());
    }

    /// It is subscribed, and waits.
    pub(crate) fn ready(&self) {
        self.tell(Stage::Ready, 0, Bytes::new());
    }

    /// It can't subscribe while another does.
    pub(crate) fn refused(&self) {
        self.tell(Stage::Refused, 0, Bytes::new());
    }

    /// It has let go.
    pub(crate) fn given(&self, epoch: u64, watermark: Bytes) {
        self.tell(Stage::Given, epoch, watermark);
    }

    /// The device is not planned any more.
    pub(crate) fn forget(&self) {
        if let Some(told) = self.told.lock().take() {
            self.sink.forget_hand_over(&told.device);
        }
    }

    /// How to go on after what was given here.
    pub(crate) fn entry(&self, above: u64) -> Entry {
        let told = self.told.lock();
        let told = told.as_ref();
        Entry {
            epoch: told.map_or(0, |told| told.epoch).max(above),
            watermark: told.and_then(|told| Watermark::decode(&told.watermark)),
        }
    }

    fn tell(&self, stage: Stage, epoch: u64, watermark: Bytes) {
        if let Some(told) = &mut *self.told.lock() {
            (told.stage, told.epoch, told.watermark) = (stage, epoch, watermark);
            self.sink.hand_over(told.clone());
        }
    }
}
