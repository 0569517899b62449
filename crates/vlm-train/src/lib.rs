//! Configuration, trainer, optimizer, schedule, checkpoints, metrics.
