//! One machine of the line.

use rand::{Rng, rngs::StdRng};

use super::{Alarm, STEP, jitter};

/// Fastest speed that a machine accepts, in bottles a minute.
pub const MAX_SPEED: f64 = 600.0;

/// Temperature of the hall, in degrees Celsius.
const AMBIENT: f64 = 21.0;

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fills bottles.
    Filler,
    /// Puts caps on.
    Capper,
    /// Puts labels on.
    Labeller,
    /// Stacks bottles on pallets.
    Palletiser,
}

impl Kind {
    /// All machines in the order of the bottles' way.
    pub const ALL: [Self; 4] = [Self::Filler, Self::Capper, Self::Labeller, Self::Palletiser];

    /// Name as it appears in the address space.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filler => "Filler",
            Self::Capper => "Capper",
            Self::Labeller => "Labeller",
            Self::Palletiser => "Palletiser",
        }
    }

    /// Name, message and severity of the fault that this machine has now and then.
    fn fault(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::Filler => ("LowPressure", "filling pressure is below 2 bar", 700),
            Self::Capper => ("CapJam", "cap jammed in the chute", 600),
            Self::Labeller => ("LabelsOut", "label roll is empty", 400),
            Self::Palletiser => ("LayerMisaligned", "pallet layer is misaligned", 800),
        }
    }
}

/// What a machine is doing (after OMAC PackML, simplified).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Switched off by the operator or by `Line.Stop`.
    Stopped,
    /// Producing.
    Running,
    /// Waiting for bottles from the machine before.
    Starved,
    /// Waiting for space behind it.
    Blocked,
    /// Stopped by a fault until it is cleared.
    Faulted,
}

impl State {
    /// Name as it appears in the address space.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "Stopped",
            Self::Running => "Running",
            Self::Starved => "Starved",
            Self::Blocked => "Blocked",
            Self::Faulted => "Faulted",
        }
    }
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    kind: Kind,
    state: State,
    /// Bottles a minute that the operator asks for.
    speed: f64,
    /// Bottles that left the machine, with the fraction that is inside it.
    processed: f64,
    rejected: u64,
    temperature: f64,
    /// What is particular to the kind: fill level (ml), torque (Nm), labels left, layer.
    particular: f64,
    /// Steps until the operator has cleared the fault.
    repair_in: u32,
}

impl Machine {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            state: State::Stopped,
            speed: 240.0,
            processed: 0.0,
            rejected: 0,
            temperature: AMBIENT,
            particular: if kind == Kind::Labeller { 5_000.0 } else { 0.0 },
            repair_in: 0,
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Bottles that left it.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of bottles fits and is positive"
    )]
    pub fn count(&self) -> u64 {
        self.processed as u64
    }

    /// Bottles that it rejected.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Motor temperature in degrees Celsius.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Speed asked for, in bottles a minute.
    #[must_use]
    pub fn speed(&self) -> f64 {
        self.speed
    }

    /// What is particular to the kind: fill level (ml), torque (Nm), labels left, bottles on the pallet.
    #[must_use]
    pub fn particular(&self) -> f64 {
        self.particular
    }

    /// Asks for another speed; `false`, and nothing changes, when it is not within 0 to [`MAX_SPEED`].
    pub fn set_speed(&mut self, bottles_per_minute: f64) -> bool {
        let allowed = (0.0..=MAX_SPEED).contains(&bottles_per_minute);
        if allowed {
            self.speed = bottles_per_minute;
        }
        allowed
    }

    pub(super) fn start(&mut self) {
        if self.state == State::Stopped {
            self.state = State::Starved;
        }
    }

    pub(super) fn stop(&mut self) {
        self.state = State::Stopped;
    }

    pub(super) fn reset(&mut self, running: bool) -> Option<Alarm> {
        if self.state != State::Faulted {
            return None;
        }
        self.state = if running { State::Starved } else { State::Stopped };
        if self.kind == Kind::Labeller {
            self.particular = 5_000.0;
        }
        Some(self.alarm(false))
    }

    fn alarm(&self, active: bool) -> Alarm {
        let (name, message, severity) = self.kind.fault();
        Alarm {
            source: self.kind,
            name,
            message: message.to_owned(),
            severity,
            active,
        }
    }

    /// Moves bottles from `before` to `behind`.
    pub(super) fn step(
        &mut self,
        random: &mut StdRng,
        before: &mut f64,
        behind: &mut f64,
        capacity: f64,
    ) -> Option<Alarm> {
        let wanted = self.speed / 60.0 * STEP.as_secs_f64();
        let alarm = match self.state {
            State::Stopped => None,
            State::Faulted => {
                self.repair_in = self.repair_in.saturating_sub(1);
                if self.repair_in == 0 {
                    self.reset(true)
                } else {
                    None
                }
            }
            State::Running | State::Starved | State::Blocked => {
                self.state = if *before < wanted {
                    State::Starved
                } else if *behind + wanted > capacity {
                    State::Blocked
                } else {
                    State::Running
                };
                if self.state == State::Running {
                    self.produce(random, wanted, before, behind)
                } else {
                    None
                }
            }
        };
        self.warm(random);
        alarm
    }

    fn produce(
        &mut self,
        random: &mut StdRng,
        wanted: f64,
        before: &mut f64,
        behind: &mut f64,
    ) -> Option<Alarm> {
        *before -= wanted;
        self.processed += wanted;
        if random.random_bool(0.002) {
            self.rejected += 1;
        } else {
            *behind += wanted;
        }
        self.particular = match self.kind {
            Kind::Filler => 500.0 + 2.5 * jitter(random),
            Kind::Capper => 1.8 + 0.15 * jitter(random),
            Kind::Labeller => (self.particular - wanted).max(0.0),
            Kind::Palletiser => self.processed % 480.0,
        };
        let out_of_labels = self.kind == Kind::Labeller && self.particular <= 0.0;
        // About one fault in five minutes of production.
        if out_of_labels || random.random_bool(1.0 / 3_000.0) {
            self.state = State::Faulted;
            self.repair_in = random.random_range(50..300);
            return Some(self.alarm(true));
        }
        None
    }

    fn warm(&mut self, random: &mut StdRng) {
        let load = if self.state == State::Running {
            self.speed / MAX_SPEED
        } else {
            0.0
        };
        let target = AMBIENT + 45.0 * load;
        self.temperature += (target - self.temperature) * 0.01 + 0.05 * jitter(random);
    }
}
