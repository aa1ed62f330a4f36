use super::super::report::Row;
use super::*;

#[test]
fn an_axis_begins_and_ends_at_round_numbers_around_its_values() {
    let axis = Axis::holding([23.0, 870.0].into_iter());
    assert_eq!((axis.from, axis.to), (10.0, 1000.0));
    assert_eq!(axis.ticks(), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
}

#[test]
fn each_tenfold_takes_the_same_room() {
    let axis = Axis { from: 1.0, to: 100.0 };
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(
        near(axis.at(1.0), LEFT)
            && near(axis.at(10.0), f64::midpoint(LEFT, RIGHT))
            && near(axis.at(100.0), RIGHT)
    );
}

#[test]
fn values_off_the_axis_stay_in_the_picture() {
    let axis = Axis { from: 1.0, to: 100.0 };
    assert_eq!((axis.at(0.0), axis.at(1e9)), (LEFT, RIGHT));
}

#[test]
fn a_panel_shows_every_number_and_a_dash_for_what_failed() {
    let spread = Spread { least: 40.0, median: 42.0, most: 44.0 };
    let row = Row::of("a < b", vec![Some(spread), None]);
    let table = Table { title: "Seconds", more_is_better: false, limit: Some(64.0), rows: vec![row] };
    let mut out = String::new();
    panel(&mut out, &table, 2, 0.0);
    assert!(out.contains(">42.0<") && out.contains(">–<") && out.contains("a &lt; b"), "{out}");
}
