//! Our broker beside those of others: each freshly started for each run, under the same load, in turns.
//!
//! | module | what |
//! |---|---|
//! | `contender` | the brokers, and how each is started |
//! | `generator` | the load generator's processes |
//! | `load` | fan-in, fan-out and pairs |
//! | `away` | messages that have to be kept for a session whose client is away |
//! | `crowd` | idle connections, and subscriptions that nothing matches |
//! | `floors` | what is promised, and whether it is kept |
//! | `tables` | figures as tables |

use anyhow::{Context, Result};

use crate::Plan;

mod away;
mod contender;
mod crowd;
mod floors;
mod generator;
mod load;
mod tables;

use contender::Contender;
pub(crate) use tables::text;

/// Everything that was measured.
pub(crate) struct Figures {
    loads: Vec<(load::Scenario, Rounds<load::Run>)>,
    away: Rounds<away::Run>,
    subscriptions: Rounds<crowd::Subscribed>,
    idle: Rounds<crowd::Idle>,
    idle_encrypted: Rounds<crowd::Idle>,
}

/// The runs of one load, round by round.
#[derive(Clone, Debug)]
pub(crate) struct Rounds<T> {
    contenders: Vec<Contender>,
    /// In the order of the contenders; nothing where a broker of others failed.
    runs: Vec<Vec<Option<T>>>,
}

impl<T> Rounds<T> {
    /// No rounds yet, of those that are there.
    fn of(plan: &Plan, contenders: &[Contender]) -> Self {
        let there = contenders.iter().filter(|contender| contender.is_there(plan));
        Self {
            contenders: there.copied().collect(),
            runs: Vec::new(),
        }
    }

    /// Runs one more round: each broker in turn.
    fn turn(
        &mut self,
        name: &str,
        run: impl Fn(Contender) -> Result<T>,
        rate: impl Fn(&T) -> String,
    ) -> Result<()> {
        let mut runs = Vec::new();
        let mut rates = Vec::new();
        for contender in &self.contenders {
            // On a machine that others use, a subscriber may starve until its broker gives it up.
            let ran = run(*contender).or_else(|error| {
                eprintln!("    again: {name}: {}: {error:#}", contender.name());
                run(*contender)
            });
            let ran = match ran {
                Err(error) if contender.may_fail() => {
                    eprintln!("    failed: {name}: {}: {error:#}", contender.name());
                    None
                }
                ran => Some(ran.with_context(|| format!("{name}: {}", contender.name()))?),
            };
            let told = ran.as_ref().map_or_else(|| "failed".to_owned(), &rate);
            rates.push(format!("{} {told}", contender.name()));
            runs.push(ran);
        }
        self.runs.push(runs);
        eprintln!("    round {} {name}: {}", self.runs.len(), rates.join(", "));
        Ok(())
    }

    /// Those of a contender that did not fail.
    fn runs(&self, contender: Contender) -> impl Iterator<Item = &T> {
        self.runs
            .iter()
            .filter_map(move |round| self.run(round, contender))
    }

    fn run<'a>(&self, round: &'a [Option<T>], contender: Contender) -> Option<&'a T> {
        let place = self.contenders.iter().position(|other| *other == contender)?;
        round.get(place)?.as_ref()
    }

    /// The median of a figure; not a number where there is none.
    fn median(&self, contender: Contender, figure: impl Fn(&T) -> f64) -> f64 {
        median(self.runs(contender).map(figure))
    }

    /// The median of the ratios of a figure to another contender's in the same round, since rounds differ by what else
    /// runs.
    fn ratio(&self, contender: Contender, to: Contender, figure: impl Fn(&T) -> f64) -> f64 {
        median(self.runs.iter().filter_map(|round| {
            let (one, other) = (self.run(round, contender)?, self.run(round, to)?);
            Some(figure(one) / figure(other))
        }))
    }
}

/// Runs everything.
pub(crate) fn measure(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures {
        loads: load::SCENARIOS
            .into_iter()
            .map(|scenario| (scenario, Rounds::of(plan, scenario.contenders)))
            .collect(),
        away: Rounds::of(plan, &Contender::DURABLE),
        subscriptions: Rounds::of(plan, &Contender::ALIKE),
        idle: Rounds::of(plan, &Contender::ALIKE),
        idle_encrypted: Rounds::of(plan, &Contender::ENCRYPTED),
    };
    let per_second = |rate: f64| format!("{rate:.0}/s");
    for _ in 0..plan.rounds {
        for (scenario, rounds) in &mut figures.loads {
            rounds.turn(
                scenario.name,
                |contender| load::run(plan, contender, scenario),
                |run| per_second(run.delivered.rate),
            )?;
        }
        figures.away.turn(
            away::NAME,
            |contender| away::run(plan, contender),
            |run| per_second(run.published.rate),
        )?;
        figures.subscriptions.turn(
            crowd::SUBSCRIPTIONS_NAME,
            |contender| crowd::subscriptions(plan, contender),
            |run| format!("{:.2}", run.kept()),
        )?;
    }
    // Once is enough: memory does not depend on who has the processor.
    let each = |idle: &crowd::Idle| format!("{:.1} KB", idle.of_each() / 1024.0);
    figures.idle.turn(
        "idle connections",
        |contender| crowd::idle(plan, contender, false),
        each,
    )?;
    figures.idle_encrypted.turn(
        "idle connections over TLS",
        |contender| crowd::idle(plan, contender, true),
        each,
    )?;
    Ok(figures)
}

/// The middle of values.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(value) if values.len() % 2 == 1 => *value,
        Some(value) => f64::midpoint(*value, values[middle - 1]),
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn ratios_are_of_the_same_round_and_leave_out_failures() {
        let rounds = Rounds {
            contenders: vec![Contender::Mosquitto, Contender::Rumqttd, Contender::Ours],
            runs: vec![
                vec![Some(1.0), None, Some(6.0)],
                vec![Some(10.0), Some(50.0), Some(40.0)],
                vec![Some(2.0), Some(4.0), Some(10.0)],
            ],
        };
        let same = |figure: &f64| *figure;
        assert_eq!(rounds.ratio(Contender::Ours, Contender::Mosquitto, same), 5.0);
        assert_eq!(rounds.ratio(Contender::Ours, Contender::Rumqttd, same), 1.65);
        assert_eq!(rounds.median(Contender::Rumqttd, same), 27.0);
        assert!(rounds.ratio(Contender::Ours, Contender::Rmqtt, same).is_nan());
    }
}
