//! A client that others wrote publishes numbers, and remembers which were acknowledged.

use std::{collections::BTreeSet, process::Command, time::Duration};

use foreshore_peers::{Program, python, script};

use crate::{
    cloud::Cloud,
    plant::{SOON, signal},
    site::wait_until,
};

pub(crate) struct Publisher {
    program: Program,
    topic: String,
    pub(crate) acknowledged: BTreeSet<u64>,
    /// Numbers that the broker refused, with the reason code.
    pub(crate) refused: Vec<(u64, String)>,
}

/// How fast, and how much of it.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Numbers in a second; 0 for as fast as it goes.
    pub(crate) rate: u32,
    /// Characters in each.
    pub(crate) size: u32,
}

impl Publisher {
    /// Publishes numbers until it is told to finish.
    pub(crate) fn start(port: u16, topic: &str, load: Load) -> Self {
        let mut command = Command::new(python());
        command
            .arg(script("mqtt_numbers.py"))
            .args([&port.to_string(), topic, "operator", "example-operator-password"])
            .args([load.rate.to_string(), load.size.to_string()]);
        Self {
            program: Program::start(command, "publishing"),
            topic: topic.to_owned(),
            acknowledged: BTreeSet::new(),
            refused: Vec::new(),
        }
    }

    /// Reads what the broker has answered by now.
    pub(crate) fn hear(&mut self) {
        for line in self.program.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["acknowledged", number] => {
                    self.acknowledged.insert(number.parse().unwrap());
                }
                ["refused", number, code] => self.refused.push((number.parse().unwrap(), code.to_owned())),
                _ => panic!("{line}"),
            }
        }
    }

    /// Waits until so many more have been acknowledged.
    pub(crate) fn wait_for(&mut self, more: usize, within: Duration) {
        self.hear();
        let wanted = self.acknowledged.len() + more;
        let enough = wait_until(within, || {
            self.hear();
            self.acknowledged.len() >= wanted
        });
        assert!(enough, "{} of {wanted} acknowledged", self.acknowledged.len());
    }

    /// Lets what is on the way be answered, and ends.
    pub(crate) fn finish(&mut self) {
        signal(self.program.id(), "TERM");
        self.program.wait_for("done", SOON);
        self.hear();
    }

    /// What was acknowledged is in the cloud, nothing is there twice.
    pub(crate) fn assert_once_in(&self, cloud: &Cloud) {
        let numbers = cloud.numbers(&self.topic);
        let missing: Vec<_> = self
            .acknowledged
            .iter()
            .filter(|number| !numbers.contains_key(number))
            .collect();
        let doubled: Vec<_> = numbers.iter().filter(|(_, count)| **count > 1).collect();
        assert!(
            missing.is_empty() && doubled.is_empty(),
            "of {} acknowledged numbers are missing: {missing:?}; doubled: {doubled:?}",
            self.acknowledged.len()
        );
    }
}
