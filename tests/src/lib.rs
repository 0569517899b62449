//! Whole runs through the real `vlm` binary live in `tests/tests`.
