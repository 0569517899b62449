//! The phases of a training run, for messages that say in which phase a rank was.

/// A phase of a training run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everything before the first step.
    StartUp,
    /// Sending the weights of rank 0 to all ranks, for which GPUs connect.
    Connect,
    /// Waiting for the loader.
    Data,
    /// Exchanging the statistics of the step's batches between the ranks.
    SyncStep,
    /// Forward and backward pass, including the averaging of the gradients.
    ForwardBackward,
    /// Gradient clipping and the optimizer's step.
    Update,
    /// Collecting losses and counters for the log.
    Log,
    /// Evaluation by rank 0, for which the other ranks wait.
    Evaluate,
    /// Writing a checkpoint by rank 0, for which the other ranks wait.
    Save,
    /// Everything after the last step.
    End,
}

impl Phase {
    /// Whether a GPU may wait for other ranks in this phase.
    pub(super) fn uses_nccl(self) -> bool {
        matches!(self, Self::Connect | Self::ForwardBackward | Self::Update | Self::Log)
    }

    /// The phase's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::StartUp => "start-up",
            Self::Connect => "connecting the GPUs",
            Self::Data => "waiting for data",
            Self::SyncStep => "step synchronisation",
            Self::ForwardBackward => "forward and backward pass",
            Self::Update => "update",
            Self::Log => "collecting the log",
            Self::Evaluate => "evaluation by rank 0",
            Self::Save => "saving by rank 0",
            Self::End => "end of training",
        }
    }
}
