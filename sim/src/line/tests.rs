use super::*;

fn run(seed: u64, steps: u32) -> (Line, Vec<Alarm>) {
    let mut line = Line::new(seed);
    let alarms = (0..steps).flat_map(|_| line.step()).collect();
    (line, alarms)
}

#[test]
fn the_same_seed_gives_the_same_plant() {
    let (first, first_alarms) = run(7, 20_000);
    let (second, second_alarms) = run(7, 20_000);
    assert_eq!(first_alarms, second_alarms);
    for kind in Kind::ALL {
        assert_eq!(first.machine(kind).count(), second.machine(kind).count());
        assert!(
            (first.machine(kind).temperature() - second.machine(kind).temperature()).abs() < f64::EPSILON
        );
    }
    let (_, other_alarms) = run(8, 20_000);
    assert_ne!(first_alarms, other_alarms);
}

#[test]
fn bottles_flow_and_none_appears_from_nowhere() {
    let (line, _) = run(1, 20_000);
    let counts = Kind::ALL.map(|kind| line.machine(kind).count());
    assert!(line.bottles() > 1_000, "{counts:?}");
    assert!(
        counts.is_sorted_by(|before, behind| before >= behind),
        "{counts:?}"
    );
}

#[test]
fn every_alarm_that_is_raised_goes_away_again() {
    let (_, alarms) = run(3, 60_000);
    for kind in Kind::ALL {
        let mut active = false;
        for alarm in alarms.iter().filter(|alarm| alarm.source == kind) {
            assert_ne!(alarm.active, active, "{alarm:?}");
            active = alarm.active;
        }
        assert!(
            alarms.iter().any(|alarm| alarm.source == kind),
            "{kind:?} never failed"
        );
    }
}

#[test]
fn a_stopped_line_stands_still_and_refuses_senseless_speeds() {
    let mut line = Line::new(5);
    (0..1_000).for_each(|_| drop(line.step()));
    line.stop();
    let before = line.bottles();
    (0..1_000).for_each(|_| drop(line.step()));
    assert_eq!(line.bottles(), before);
    let filler = line.machine_mut(Kind::Filler);
    assert!(!filler.set_speed(-1.0) && !filler.set_speed(1e6) && !filler.set_speed(f64::NAN));
    assert!(filler.set_speed(300.0));
}
