//! Remembers what was reported.

use std::{collections::BTreeMap, time::Duration};

use foreshore_control::{Aspect, HandOver, Report, ResourceKey, Schema};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::runner::reports::ReportSink;

/// Remembers the latest report and schema of each part of each object.
#[derive(Debug)]
pub struct Recorder {
    reports: Mutex<BTreeMap<(ResourceKey, Aspect), Report>>,
    schemas: Mutex<BTreeMap<(ResourceKey, Aspect), Schema>>,
    hand_overs: Mutex<BTreeMap<String, HandOver>>,
    changed: watch::Sender<u64>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            reports: Mutex::default(),
            schemas: Mutex::default(),
            hand_overs: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Recorder {
    /// The latest report on a part of an object, such as `("Asset", "filler", "Dataset fast")`, or
    /// `("Device", "line", "Endpoint")`.
    #[must_use]
    pub fn report(&self, kind: &str, name: &str, aspect: &str) -> Option<Report> {
        let reports = self.reports.lock();
        let found = reports.iter().find(|((object, part), _)| {
            object.kind == kind && object.name == name && part.to_string() == aspect
        });
        found.map(|(_, report)| report.clone())
    }

    /// The reason of the latest report on a part of an object; empty when there is none.
    #[must_use]
    pub fn reason(&self, kind: &str, name: &str, aspect: &str) -> String {
        self.report(kind, name, aspect)
            .map(|report| report.reason.into_owned())
            .unwrap_or_default()
    }

    /// Where the runner stands with a device, by what it said last.
    #[must_use]
    pub fn hand_over(&self, device: &str) -> Option<HandOver> {
        self.hand_overs.lock().get(device).cloned()
    }

    /// How many parts have a report.
    #[must_use]
    pub fn len(&self) -> usize {
        self.reports.lock().len()
    }

    /// Whether nothing is reported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many schemas are known.
    #[must_use]
    pub fn schemas(&self) -> usize {
        self.schemas.lock().len()
    }

    /// Waits until something holds of the reports; whether it did within `within`.
    pub async fn wait_until(&self, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(self) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, wait).await.is_ok()
    }

    fn notify(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl ReportSink for Recorder {
    fn report(&self, report: Report) {
        self.reports
            .lock()
            .insert((report.object.clone(), report.aspect.clone()), report);
        self.notify();
    }

    fn retract(&self, object: &ResourceKey, aspect: &Aspect) {
        let key = (object.clone(), aspect.clone());
        self.reports.lock().remove(&key);
        self.schemas.lock().remove(&key);
        self.notify();
    }

    fn schema(&self, schema: Schema) {
        self.schemas
            .lock()
            .insert((schema.object.clone(), schema.aspect.clone()), schema);
        self.notify();
    }

    fn hand_over(&self, hand_over: HandOver) {
        let device = hand_over.device.name.clone();
        self.hand_overs.lock().insert(device, hand_over);
        self.notify();
    }

    fn forget_hand_over(&self, device: &ResourceKey) {
        self.hand_overs.lock().remove(&device.name);
        self.notify();
    }
}
