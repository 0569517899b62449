//! Whole runs through the real `vlm` binary, as a user starts it.

mod acceptance;
mod answer_end;
mod answers;
mod bad_input;
mod command_line;
mod configuration;
mod convert;
mod families;
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
