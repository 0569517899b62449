//! Tests of complete runs with the real `vlm` binary.

mod acceptance;
mod bad_input;
mod command_line;
mod configuration;
mod convert;
mod encoders;
mod end_of_turn;
mod families;
mod generation;
mod launching;
mod loading;
mod overfit;
mod parallel;
mod planning;
mod prepare;
mod reference_runs;
mod resuming;
mod saved_files;
mod stages;
mod stopping;
mod support;
mod survival;
mod two_machines;
mod waiting;
mod whole_models;
