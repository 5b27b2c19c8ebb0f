//! What is promised, and whether it is kept.

use super::{
    Contender, Figures,
    load::{FAN_IN_AT, FAN_OUT_AT, PAIRS_AT, Run},
};

/// A figure with its bound.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Floor {
    pub(super) what: String,
    bound: Bound,
    /// Not a number where it was not measured.
    found: f64,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// How a figure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Times as much as something else.
    Times,
    Percent,
    Milliseconds,
    Bytes,
}

/// Whether a floor is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Floor {
    fn new(what: impl Into<String>, bound: Bound, found: f64, unit: Unit) -> Self {
        Self {
            what: what.into(),
            bound,
            found,
            unit,
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let bound = match self.bound {
            Bound::AtLeast(bound) | Bound::AtMost(bound) => bound,
        };
        if self.found.is_nan() || bound.is_nan() {
            return Verdict::NotMeasured;
        }
        let met = match self.bound {
            Bound::AtLeast(bound) => self.found >= bound,
            Bound::AtMost(bound) => self.found <= bound,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }

    pub(super) fn promised(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!("at least {}", self.unit.text(bound)),
            Bound::AtMost(bound) => format!("at most {}", self.unit.text(bound)),
        }
    }

    pub(super) fn found(&self) -> String {
        self.unit.text(self.found)
    }
}

impl Unit {
    fn text(self, figure: f64) -> String {
        if figure.is_nan() {
            return "?".to_owned();
        }
        match self {
            Self::Times => format!("×{figure:.2}"),
            Self::Percent => format!("{:.1} %", figure * 100.0),
            Self::Milliseconds => format!("{figure:.1} ms"),
            Self::Bytes => format!("{figure:.0} bytes"),
        }
    }
}

/// All floors, with what was found.
pub(super) fn all(figures: &Figures) -> Vec<Floor> {
    let [fan_in, fan_out, pairs] = [FAN_IN_AT, FAN_OUT_AT, PAIRS_AT].map(|place| &figures.loads[place]);
    let rate = |run: &Run| run.delivered.rate;
    let p99 = |run: &Run| run.delivered.p99;
    let apart = |run: &Run| (run.published.rate / run.delivered.rate - 1.0).abs();
    let beside = |name: &str, other: Contender| format!("{name}: deliveries, to {}", other.name());
    let (mosquitto, rumqttd, memory, ours) = (
        Contender::Mosquitto,
        Contender::Rumqttd,
        Contender::Memory,
        Contender::Ours,
    );
    vec![
        Floor::new(
            beside(fan_out.0.name, mosquitto),
            Bound::AtLeast(6.0),
            fan_out.1.ratio(ours, mosquitto, rate),
            Unit::Times,
        ),
        Floor::new(
            beside(fan_out.0.name, rumqttd),
            Bound::AtLeast(0.9),
            fan_out.1.ratio(ours, rumqttd, rate),
            Unit::Times,
        ),
        Floor::new(
            beside(fan_in.0.name, mosquitto),
            Bound::AtLeast(2.3),
            fan_in.1.ratio(ours, mosquitto, rate),
            Unit::Times,
        ),
        Floor::new(
            format!("{}: acknowledgements apart from deliveries", fan_in.0.name),
            Bound::AtMost(0.05),
            fan_in.1.median(ours, apart),
            Unit::Percent,
        ),
        Floor::new(
            format!("{}: p99, bound is mosquitto's", pairs.0.name),
            Bound::AtMost(pairs.1.median(mosquitto, p99)),
            pairs.1.median(ours, p99),
            Unit::Milliseconds,
        ),
        Floor::new(
            format!("{}: taken in, to ours in memory", super::away::NAME),
            Bound::AtLeast(0.5),
            figures.away.ratio(ours, memory, |run| run.published.rate),
            Unit::Times,
        ),
        Floor::new(
            "an idle connection",
            Bound::AtMost(4096.0),
            figures.idle.median(ours, super::crowd::Idle::of_each),
            Unit::Bytes,
        ),
        Floor::new(
            format!("{}: to none", super::crowd::SUBSCRIPTIONS_NAME),
            Bound::AtLeast(0.8),
            figures.subscriptions.median(ours, super::crowd::Subscribed::kept),
            Unit::Times,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_met_missed_or_not_measured() {
        let floor = |bound, found| Floor::new("a load", bound, found, Unit::Times);
        for (bound, found, verdict) in [
            (Bound::AtLeast(6.0), 6.0, Verdict::Met),
            (Bound::AtLeast(6.0), 5.99, Verdict::Missed),
            (Bound::AtMost(5.1), 5.1, Verdict::Met),
            (Bound::AtMost(5.1), 5.2, Verdict::Missed),
            (Bound::AtLeast(0.9), f64::NAN, Verdict::NotMeasured),
            (Bound::AtMost(f64::NAN), 1.0, Verdict::NotMeasured),
        ] {
            assert_eq!(floor(bound, found).verdict(), verdict, "{bound:?} {found}");
        }
        let percent = Floor::new("a load", Bound::AtMost(0.05), 0.031, Unit::Percent);
        assert_eq!(
            (percent.promised(), percent.found()),
            ("at most 5.0 %".to_owned(), "3.1 %".to_owned())
        );
    }
}
