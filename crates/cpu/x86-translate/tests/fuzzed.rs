//! The fuzz target that compares the engines, from a fixed seed.

#[path = "../../../../fuzz/src/translated.rs"]
mod translated;

#[test]
fn any_bytes_end_alike() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..1000 {
        let mut bytes = vec![0; rng.usize(24..300)];
        rng.fill(&mut bytes);
        translated::run(&bytes);
    }
}
