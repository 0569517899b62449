//! The tests of complete runs with the real `vlm` binary are in `tests/tests`.
