//! Repository tasks: test, demo, bench, check-deps.
fn main() {}
