use super::*;

#[test]
fn a_workload_counts_what_lies_between_its_marks() {
    let mut tally = Tally::default();
    let end = Event::End { workload: "sort".into(), result: "1".into() };
    for (instructions, event) in
        [(10, Event::Kernel), (1000, Event::Shell), (1500, Event::Begin("sort".into())), (1800, end)]
    {
        tally.add(instructions, event);
    }
    assert_eq!(tally.counts.boot, 1000);
    assert_eq!(tally.counts.workloads, BTreeMap::from([("sort".to_owned(), 300)]));
}
