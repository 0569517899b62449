//! Whole runs through the real `vlm` binary.
