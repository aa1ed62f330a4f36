//! Whatever bytes a guest carries out, in whatever mode, the interpreter survives it and comes to an end.
//!
//! The guests are those of the fuzz target `instructions`; here they come from a fixed seed and end.

#[path = "../../../../fuzz/src/instructions.rs"]
mod instructions;

#[test]
fn random_bytes_in_every_mode() {
    let mut rng = fastrand::Rng::with_seed(0x5eed);
    for _ in 0..4000 {
        let mut input = vec![0; rng.usize(..400)];
        rng.fill(&mut input);
        instructions::run(&input);
    }
}

#[test]
fn no_code_at_all() {
    instructions::run(&[]);
}
