//! Fuzz targets: a function for every reader of files that come from outside. A target must return,
//! for any bytes; what it returns is not looked at. The driver (`main.rs`) calls the
//! targets with mutated seeds on stable Rust, and the binaries in `fuzz_targets` give them to
//! libFuzzer.
//!
//! Seeds are made by code, or are files of the tests.

pub mod mutate;
mod scratch;
mod targets;

/// A reader that is fuzzed.
pub struct Target {
    /// Name on the command line, and of the corpus.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
    /// Valid inputs, from which the mutated ones are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Texts that are put into inputs: names and numbers that the reader treats specially.
    pub dictionary: &'static [&'static str],
}

/// All targets.
pub fn targets() -> Vec<Target> {
    targets::all()
}

/// The function of the target `name`.
///
/// # Panics
/// There is no such target.
pub fn target(name: &str) -> fn(&[u8]) {
    let found = targets().into_iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("no target {name}")).run
}
