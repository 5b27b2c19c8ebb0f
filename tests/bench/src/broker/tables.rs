//! Figures of brokers as tables.

use super::{
    Contender, Figures, Rounds, away, crowd,
    floors::{self, Verdict},
    generator::PAYLOAD,
    load::Run,
};
use crate::{
    Plan, host,
    report::{mib, row, table},
};

/// All tables, in Markdown.
pub(crate) fn text(plan: &Plan, figures: &Figures) -> String {
    let tables = [
        floors(figures),
        loads(figures),
        away(&figures.away),
        subscriptions(&figures.subscriptions),
        idle("Idle connections", &figures.idle),
        idle("Idle connections over TLS", &figures.idle_encrypted),
    ];
    let mut text = format!(
        "{} beside it; messages of {PAYLOAD} bytes; medians of {} rounds; {}; {} open files allowed.\n",
        host::version(&plan.mosquitto.to_string_lossy(), "-h"),
        plan.rounds,
        plan.cores.describe(),
        plan.open_files,
    );
    for table in tables {
        text.push('\n');
        text.push_str(&table);
    }
    text
}

fn floors(figures: &Figures) -> String {
    let mut text = table("Floors", &["what", "floor", "found", ""]);
    for floor in floors::all(figures) {
        let verdict = match floor.verdict() {
            Verdict::Met => "met",
            Verdict::Missed => "**missed**",
            Verdict::NotMeasured => "not measured",
        };
        row(
            &mut text,
            &[
                floor.what.clone(),
                floor.promised(),
                floor.found(),
                verdict.to_owned(),
            ],
        );
    }
    text
}

fn loads(figures: &Figures) -> String {
    let head = [
        "load",
        "broker",
        "delivered",
        "to mosquitto",
        "acknowledged",
        "p50",
        "p99",
        "broker's µs a delivery",
        "RSS",
        "generator",
    ];
    let mut text = table("Loads", &head);
    for (scenario, rounds) in &figures.loads {
        for contender in &rounds.contenders {
            let of = |figure: fn(&Run) -> f64| rounds.median(*contender, figure);
            let ratio = rounds.ratio(*contender, Contender::Mosquitto, |run| run.delivered.rate);
            let acknowledged = if scenario.qos == 0 {
                "—".to_owned()
            } else {
                figure(of(|run| run.published.rate), |rate| format!("{rate:.0}/s"))
            };
            row(
                &mut text,
                &[
                    scenario.name.to_owned(),
                    contender.name().to_owned(),
                    figure(of(|run| run.delivered.rate), |rate| format!("{rate:.0}/s")),
                    figure(ratio, |ratio| format!("×{ratio:.2}")),
                    acknowledged,
                    figure(of(|run| run.delivered.p50), |time| format!("{time:.1} ms")),
                    figure(of(|run| run.delivered.p99), |time| format!("{time:.1} ms")),
                    figure(of(|run| run.delivered.broker_cpu), |time| format!("{time:.1}")),
                    figure(of(|run| run.delivered.broker_rss as f64), bytes),
                    figure(of(|run| run.delivered.load.max(run.published.load)), |load| {
                        format!("{load:.2}")
                    }),
                ],
            );
        }
    }
    text
}

fn away(rounds: &Rounds<away::Run>) -> String {
    let head = [
        "broker",
        "taken in",
        "to ours in memory",
        "broker's µs a message",
        "RSS",
        "given back",
    ];
    let mut text = table(away::NAME, &head);
    for contender in &rounds.contenders {
        let of = |figure: fn(&away::Run) -> f64| rounds.median(*contender, figure);
        let ratio = rounds.ratio(*contender, Contender::Memory, |run| run.published.rate);
        row(
            &mut text,
            &[
                contender.name().to_owned(),
                figure(of(|run| run.published.rate), |rate| format!("{rate:.0}/s")),
                figure(ratio, |ratio| format!("×{ratio:.2}")),
                figure(of(|run| run.published.broker_cpu), |time| format!("{time:.1}")),
                figure(of(|run| run.published.broker_rss as f64), bytes),
                figure(of(|run| run.taken.rate), |rate| format!("{rate:.0}/s")),
            ],
        );
    }
    text
}

fn subscriptions(rounds: &Rounds<crowd::Subscribed>) -> String {
    let head = ["broker", "delivered without", "with", "share", "RSS with"];
    let mut text = table(crowd::SUBSCRIPTIONS_NAME, &head);
    for contender in &rounds.contenders {
        let of = |figure: fn(&crowd::Subscribed) -> f64| rounds.median(*contender, figure);
        row(
            &mut text,
            &[
                contender.name().to_owned(),
                figure(of(|run| run.without), |rate| format!("{rate:.0}/s")),
                figure(of(|run| run.with), |rate| format!("{rate:.0}/s")),
                figure(of(crowd::Subscribed::kept), |share| format!("{share:.2}")),
                figure(of(|run| run.resident as f64), bytes),
            ],
        );
    }
    text
}

fn idle(title: &str, rounds: &Rounds<crowd::Idle>) -> String {
    let head = [
        "broker",
        "connections",
        "connected in",
        "RSS before",
        "after",
        "bytes of each",
    ];
    let mut text = table(title, &head);
    for contender in &rounds.contenders {
        let of = |figure: fn(&crowd::Idle) -> f64| rounds.median(*contender, figure);
        row(
            &mut text,
            &[
                contender.name().to_owned(),
                figure(of(|idle| idle.connections as f64), |count| format!("{count:.0}")),
                figure(of(|idle| idle.took), |took| format!("{took:.1} s")),
                figure(of(|idle| idle.before as f64), bytes),
                figure(of(|idle| idle.after as f64), bytes),
                figure(of(crowd::Idle::of_each), |each| format!("{each:.0}")),
            ],
        );
    }
    text
}

/// A figure as text, if there is one: a broker of others may have failed.
fn figure(figure: f64, text: impl Fn(f64) -> String) -> String {
    if figure.is_nan() {
        "failed".to_owned()
    } else {
        text(figure)
    }
}

fn bytes(bytes: f64) -> String {
    mib(bytes as u64)
}
