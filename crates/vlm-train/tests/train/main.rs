//! Tests of the public interface of this crate.

mod example;
mod golden_steps;
