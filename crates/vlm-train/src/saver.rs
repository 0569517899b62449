//! Writes checkpoints in a thread while the training continues. One checkpoint at a time is
//! written: the next save waits for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vlm_torch::Heartbeat;

use crate::TrainError;
use crate::config::OnSaveError;
use crate::out_of_memory::panic_message;

/// Pause between two checks whether the thread makes progress.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Writes the checkpoints of a run, in a thread if asked. On ranks other than 0 it has nothing to
/// do.
#[derive(Debug)]
pub(crate) struct Saver {
    on_error: OnSaveError,
    in_flight: Option<InFlight>,
    last: Option<PathBuf>,
    /// Duration of the longest save.
    longest: Duration,
    /// Time that the training waited for saves.
    waited: Duration,
}

/// What came of a save.
#[derive(Debug)]
pub(crate) struct Saved {
    /// The checkpoint, if it was written. It may be the only one left, even if the weights files
    /// that belong to it could not be written.
    pub(crate) checkpoint: Option<PathBuf>,
    /// The first error.
    pub(crate) result: Result<(), TrainError>,
}

impl Saved {
    fn nothing(error: TrainError) -> Self {
        Self { checkpoint: None, result: Err(error) }
    }
}

/// A checkpoint that a thread is writing.
#[derive(Debug)]
struct InFlight {
    /// Returns how long it took.
    thread: JoinHandle<(Saved, Duration)>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
    /// Number of heartbeats of the thread.
    progress: Arc<AtomicU64>,
}

impl Saver {
    /// A saver without a checkpoint.
    pub(crate) fn new(on_error: OnSaveError) -> Self {
        let (longest, waited) = (Duration::ZERO, Duration::ZERO);
        Self { on_error, in_flight: None, last: None, longest, waited }
    }

    /// The newest complete checkpoint, which this run wrote or continues from.
    pub(crate) fn last(&self) -> Option<&Path> {
        self.last.as_deref()
    }

    /// Sets the checkpoint that the run continues from.
    pub(crate) fn continue_from(&mut self, checkpoint: Option<PathBuf>) {
        self.last = checkpoint;
    }

    /// Duration of the longest save so far.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    /// Time that the training waited for saves so far.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Adds time that the training waited for a save.
    pub(crate) fn add_wait(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Runs `write` in a thread.
    ///
    /// # Errors
    /// The thread cannot be started, and `on_save_error` is to stop.
    pub(crate) fn start(
        &mut self,
        write: impl FnOnce(Heartbeat) -> Saved + Send + 'static,
    ) -> Result<(), TrainError> {
        let progress = Arc::new(AtomicU64::new(0));
        let (ending, ended) = sync_channel(1);
        let beats = Arc::clone(&progress);
        let spawned = std::thread::Builder::new().name("save".into()).spawn(move || {
            let started = Instant::now();
            let written = write(Heartbeat(&|| _ = beats.fetch_add(1, Ordering::Relaxed)));
            drop(ending);
            (written, started.elapsed())
        });
        match spawned {
            Ok(thread) => {
                self.in_flight = Some(InFlight { thread, ended, progress });
                Ok(())
            }
            Err(error) => self.failed(TrainError::Failed(format!(
                "the checkpoint was not written, because its thread cannot be started: {error}; \
                 raise the limit on memory (`ulimit -v`) or on processes and threads \
                 (`ulimit -u`), or use `no_background_saves`, which needs no thread"
            ))),
        }
    }

    /// Runs `write` in this thread.
    ///
    /// # Errors
    /// The error of `write`, if `on_save_error` is to stop or this is the last save of the run.
    pub(crate) fn save(
        &mut self,
        is_last: bool,
        write: impl FnOnce() -> Saved,
    ) -> Result<(), TrainError> {
        let started = Instant::now();
        let saved = write();
        match saved.result {
            Err(error) if is_last => Err(error),
            _ => self.record(saved, started.elapsed()),
        }
    }

    /// Records the save of the thread if it has ended.
    ///
    /// # Errors
    /// The save failed, and `on_save_error` is to stop.
    pub(crate) fn poll(&mut self) -> Result<(), TrainError> {
        match self.in_flight.take_if(|save| save.thread.is_finished()) {
            Some(save) => self.join(save),
            None => Ok(()),
        }
    }

    /// Waits until no thread writes a checkpoint. Calls `report_progress` while the thread makes
    /// progress.
    ///
    /// # Errors
    /// The save failed, and `on_save_error` is to stop.
    pub(crate) fn wait(&mut self, report_progress: &dyn Fn()) -> Result<(), TrainError> {
        let Some(save) = self.in_flight.take() else { return Ok(()) };
        let mut seen = 0;
        while save.ended.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let progress = save.progress.load(Ordering::Relaxed);
            if progress != seen {
                report_progress();
                seen = progress;
            }
        }
        self.join(save)
    }

    fn join(&mut self, save: InFlight) -> Result<(), TrainError> {
        let (saved, took) = save.thread.join().unwrap_or_else(|panic| {
            let why = panic_message(&*panic).unwrap_or("internal error");
            let error = TrainError::Failed(format!("the checkpoint was not written: {why}"));
            (Saved::nothing(error), Duration::ZERO)
        });
        self.record(saved, took)
    }

    fn record(&mut self, saved: Saved, took: Duration) -> Result<(), TrainError> {
        self.longest = self.longest.max(took);
        if let Some(path) = saved.checkpoint {
            tracing::debug!("{} was written in {:.2} s", path.display(), took.as_secs_f64());
            self.last = Some(path);
        }
        saved.result.or_else(|error| self.failed(error))
    }

    /// Handles a save that failed.
    fn failed(&self, error: TrainError) -> Result<(), TrainError> {
        match self.on_error {
            OnSaveError::Stop => Err(error),
            OnSaveError::Continue => {
                tracing::warn!(
                    "{error}. The run continues, because `on_save_error` is continue; it ends with \
                     an error if its last checkpoint cannot be written"
                );
                Ok(())
            }
        }
    }
}

impl Drop for Saver {
    /// Waits for the thread, so that a run that ends with an error keeps the checkpoint that was
    /// being written.
    fn drop(&mut self) {
        if let Err(error) = self.wait(&|| ()) {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn failing(_: Heartbeat) -> Saved {
        Saved::nothing(TrainError::Failed("disk full".into()))
    }

    #[test]
    fn a_save_runs_beside_the_training_and_is_recorded_when_it_has_ended() {
        let mut saver = Saver::new(OnSaveError::Stop);
        let (finish, finished) = channel();
        saver
            .start(move |Heartbeat(beat)| {
                beat();
                let () = finished.recv().unwrap();
                Saved { checkpoint: Some("step-1".into()), result: Ok(()) }
            })
            .unwrap();
        saver.poll().unwrap();
        assert_eq!(saver.last(), None, "the thread has not ended");
        finish.send(()).unwrap();
        saver.wait(&|| ()).unwrap();
        assert_eq!(saver.last(), Some(Path::new("step-1")));
    }

    #[test]
    fn a_failed_save_ends_the_run_or_keeps_the_earlier_checkpoint() {
        for (on_error, continues) in [(OnSaveError::Stop, false), (OnSaveError::Continue, true)] {
            let mut saver = Saver::new(on_error);
            saver.continue_from(Some("step-1".into()));
            saver.start(failing).unwrap();
            let ended = saver.wait(&|| ());
            assert_eq!(ended.is_ok(), continues, "{on_error:?}");
            if let Err(error) = ended {
                assert_eq!(error.to_string(), "disk full");
            }
            assert_eq!(saver.last(), Some(Path::new("step-1")));
            // The last save of a run is an error in both cases.
            let last = saver.save(true, || failing(Heartbeat(&|| ())));
            assert_eq!(last.unwrap_err().to_string(), "disk full");
        }
    }

    #[test]
    fn a_checkpoint_whose_weights_files_failed_is_the_last_one() {
        let mut saver = Saver::new(OnSaveError::Continue);
        saver.continue_from(Some("step-1".into()));
        saver
            .start(|heartbeat| Saved { checkpoint: Some("step-2".into()), ..failing(heartbeat) })
            .unwrap();
        saver.wait(&|| ()).unwrap();
        assert_eq!(saver.last(), Some(Path::new("step-2")));
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error_with_its_message() {
        let mut saver = Saver::new(OnSaveError::Stop);
        saver.start(|_| panic!("can't allocate memory: you tried to allocate 9 bytes")).unwrap();
        let error = saver.wait(&|| ()).unwrap_err().to_string();
        assert!(error.contains("you tried to allocate 9 bytes"), "{error}");
    }
}
