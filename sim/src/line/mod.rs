//! A bottling line: filler, capper, labeller and palletiser with a conveyor between each two.
//!
//! The model is pure. [`Line::step`] advances it by a fixed [`STEP`]; the same seed, the same calls and the same number
//! of steps give the same plant.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

mod machine;
#[cfg(test)]
mod tests;

pub use machine::{Kind, MAX_SPEED, Machine, State};

/// How much time one step of the model stands for.
pub const STEP: Duration = Duration::from_millis(100);

/// Bottles that fit on a conveyor between two machines.
const CONVEYOR_CAPACITY: f64 = 120.0;

/// Bottles on a pallet.
const BOTTLES_PER_PALLET: u64 = 480;

/// An alarm that a machine raised or that went away.
#[derive(Clone, Debug, PartialEq)]
pub struct Alarm {
    /// Which machine.
    pub source: Kind,
    /// What happened, such as `CapJam`.
    pub name: &'static str,
    /// For humans.
    pub message: String,
    /// Urgency from 1 to 1000 (OPC 10000-5, 6.4.2).
    pub severity: u16,
    /// Whether it was raised (`true`) or went away.
    pub active: bool,
}

/// The line at one moment.
pub struct Line {
    machines: [Machine; 4],
    /// Bottles on the conveyor behind each machine but the last.
    conveyors: [f64; 3],
    random: StdRng,
    steps: u64,
    running: bool,
}

impl Line {
    /// Makes a running line from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut line = Self {
            machines: Kind::ALL.map(Machine::new),
            conveyors: [0.0; 3],
            random: StdRng::seed_from_u64(seed),
            steps: 0,
            running: false,
        };
        line.start();
        line
    }

    /// Starts every machine that is stopped.
    pub fn start(&mut self) {
        self.running = true;
        for machine in &mut self.machines {
            machine.start();
        }
    }

    /// Stops every machine.
    pub fn stop(&mut self) {
        self.running = false;
        for machine in &mut self.machines {
            machine.stop();
        }
    }

    /// Whether the line was started.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Steps since the line was made; a reader of this counter sees every value that it missed.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Bottles that reached a pallet.
    #[must_use]
    pub fn bottles(&self) -> u64 {
        self.machine(Kind::Palletiser).count()
    }

    /// Pallets that are full.
    #[must_use]
    pub fn pallets(&self) -> u64 {
        self.bottles() / BOTTLES_PER_PALLET
    }

    /// One machine.
    #[must_use]
    pub fn machine(&self, kind: Kind) -> &Machine {
        let [filler, capper, labeller, palletiser] = &self.machines;
        match kind {
            Kind::Filler => filler,
            Kind::Capper => capper,
            Kind::Labeller => labeller,
            Kind::Palletiser => palletiser,
        }
    }

    /// One machine, to be changed.
    pub fn machine_mut(&mut self, kind: Kind) -> &mut Machine {
        let [filler, capper, labeller, palletiser] = &mut self.machines;
        match kind {
            Kind::Filler => filler,
            Kind::Capper => capper,
            Kind::Labeller => labeller,
            Kind::Palletiser => palletiser,
        }
    }

    /// Ends a machine's fault, as its operator would after clearing a jam; returns the alarm that went away.
    pub fn reset(&mut self, kind: Kind) -> Option<Alarm> {
        let running = self.running;
        self.machine_mut(kind).reset(running)
    }

    /// Advances the line by [`STEP`] and returns the alarms that were raised or went away.
    pub fn step(&mut self) -> Vec<Alarm> {
        self.steps += 1;
        let [filler, capper, labeller, palletiser] = &mut self.machines;
        let [first, second, third] = &mut self.conveyors;
        let mut alarms = Vec::new();
        let random = &mut self.random;
        // From the end to the start, so that a machine sees the space that the next one has just made.
        let mut supply = f64::INFINITY;
        let mut sink = 0.0;
        alarms.extend(palletiser.step(random, third, &mut sink, f64::INFINITY));
        alarms.extend(labeller.step(random, second, third, CONVEYOR_CAPACITY));
        alarms.extend(capper.step(random, first, second, CONVEYOR_CAPACITY));
        alarms.extend(filler.step(random, &mut supply, first, CONVEYOR_CAPACITY));
        alarms
    }
}

/// Draws a number from a bell-like distribution around zero, between -1 and 1.
fn jitter(random: &mut StdRng) -> f64 {
    (random.random::<f64>() + random.random::<f64>() + random.random::<f64>()) / 1.5 - 1.0
}
