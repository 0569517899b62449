//! The command `vlm`.
fn main() {}
