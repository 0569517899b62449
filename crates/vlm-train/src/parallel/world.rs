//! The processes of a run, with the collective operations of the training. A single process has the
//! same methods, without communication.
//!
//! An error of a group operation names the rank that reports it, its step and phase, and what is
//! known about the other ranks.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};
use vlm_torch::ProcessGroup;

use super::heartbeat::Heartbeat;
use super::launch_env::LaunchEnv;
use super::phase::Phase;
use super::rank_info;
use super::step_stats::{GlobalStepStats, LocalStepStats};
use super::timeout_budget::TimeoutBudget;
use crate::TrainError;
use crate::machine::host_name;
use crate::tensor_hash::hash_of_tensors;

/// All processes of a run. With a single process all methods return at once, without communication.
///
/// All methods that exchange data are collective: all ranks call them, in the same order. Unless a
/// method says otherwise, its only error is that another rank ended or hangs.
#[derive(Debug)]
pub struct World {
    ranks: Option<Ranks>,
}

/// The connection to the other processes.
#[derive(Debug)]
struct Ranks {
    // Dropped first, because the heartbeat uses the store, which the process group of rank 0 runs.
    heartbeat: Heartbeat,
    group: ProcessGroup,
    env: LaunchEnv,
    /// Number of calls of [`World::on_first_rank`]. It is the same on all ranks.
    num_tasks: AtomicU64,
}

impl World {
    /// A single process without a process group.
    pub fn single() -> Self {
        Self { ranks: None }
    }

    /// Connects the processes that the environment variables describe (see [`LaunchEnv`]). With
    /// `always_group`, a single process that is described there gets a process group, too.
    ///
    /// # Errors
    /// As [`LaunchEnv::read`] and [`Self::connect`].
    pub fn from_environment(always_group: bool, timeout: Duration) -> Result<Self, TrainError> {
        match LaunchEnv::read()?.filter(|env| env.world_size > 1 || always_group) {
            Some(env) => Self::connect(env, timeout),
            None => Ok(Self::single()),
        }
    }

    /// Connects to the other ranks. When a rank ends or hangs, later operations return an error
    /// within `timeout`.
    ///
    /// # Errors
    /// Ranks that do not connect within `timeout`.
    pub fn connect(env: LaunchEnv, timeout: Duration) -> Result<Self, TrainError> {
        let budget = TimeoutBudget::new(timeout);
        let options = env.group_options(budget.wait);
        let group = ProcessGroup::connect(&options).map_err(|error| {
            TrainError::Failed(format!(
                "{}. The ranks connect to MASTER_ADDR {}, MASTER_PORT {}: all {} must be started \
                 and must reach it within `timeout_secs` ({} s)",
                // Some of libtorch's own messages end with a full stop.
                error.to_string().trim_end_matches('.'),
                env.master_addr,
                env.master_port,
                env.world_size,
                timeout.as_secs()
            ))
        })?;
        let heartbeat = Heartbeat::start(&options, budget)?;
        Ok(Self { ranks: Some(Ranks { heartbeat, group, env, num_tasks: AtomicU64::new(0) }) })
    }

    /// What the launcher's environment variables describe, if there is a process group.
    pub fn launch_env(&self) -> Option<&LaunchEnv> {
        self.ranks.as_ref().map(|ranks| &ranks.env)
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.launch_env().map_or(0, |env| env.rank)
    }

    /// Number of processes.
    pub fn world_size(&self) -> usize {
        self.launch_env().map_or(1, |env| env.world_size)
    }

    /// Whether this is rank 0, the only process that writes files and reports.
    pub fn is_first_rank(&self) -> bool {
        self.rank() == 0
    }

    /// The process group, if there is one.
    pub(super) fn group(&self) -> Option<&ProcessGroup> {
        self.ranks.as_ref().map(|ranks| &ranks.group)
    }

    /// Makes `device` the current device, and adds NCCL to the process group if it is a GPU.
    /// Returns the version of NCCL if NCCL is used.
    ///
    /// # Errors
    /// NCCL is missing or finds no GPU; two ranks use the same GPU.
    pub fn use_device(&self, device: Device) -> Result<Option<String>, TrainError> {
        let Device::Cuda(index) = device else { return Ok(None) };
        self.refuse_shared_gpus(index)?;
        vlm_torch::set_cuda_device(index)?;
        let Some(ranks) = &self.ranks else { return Ok(None) };
        let version = ranks.group.add_nccl(index)?;
        if let Some(nccl) = ranks.group.nccl_abort()? {
            ranks.heartbeat.watch_nccl(nccl);
        }
        Ok(Some(version))
    }

    /// Returns an error if NCCL was aborted because another rank ended or hangs: the results of its
    /// operations are then undefined.
    ///
    /// # Errors
    /// NCCL was aborted; the message has the reason.
    pub(crate) fn check_not_aborted(&self) -> Result<(), TrainError> {
        let reason = self.ranks.as_ref().and_then(|ranks| ranks.heartbeat.abort_reason());
        match reason {
            Some(reason) => Err(self.with_rank_context(format!(
                "the exchange between the GPUs was aborted, because {reason}"
            ))),
            None => Ok(()),
        }
    }

    /// Returns an error if two ranks use the same GPU: NCCL would hang, or fail with a message that
    /// does not say so.
    fn refuse_shared_gpus(&self, index: usize) -> Result<(), TrainError> {
        let found = self
            .ranks
            .as_ref()
            .and_then(|_| vlm_torch::cuda_bus_id(index).map(|bus| (host_name(), bus)));
        let all: Vec<Option<(String, String)>> = self.gather(&found)?;
        for (rank, gpu) in all.iter().enumerate() {
            let Some((host, bus)) = gpu else { continue };
            if let Some(first) = all[..rank].iter().position(|other| other == gpu) {
                return Err(TrainError::Usage(format!(
                    "ranks {first} and {rank} both use GPU {bus} of {host}, but each rank needs \
                     its own: start at most as many processes as there are GPUs, and set \
                     CUDA_VISIBLE_DEVICES to all GPUs, or to another GPU for each process"
                )));
            }
        }
        Ok(())
    }

    /// Logs a line about this rank: host, device, driver, backend and versions. `nccl` is the
    /// version of NCCL if NCCL is used. A single process logs nothing.
    pub fn log_rank(&self, device: Device, nccl: Option<&str>) {
        if let Some(ranks) = &self.ranks {
            rank_info::log(&ranks.env, device, nccl);
        }
    }

    /// Records the step and phase of this rank, for the messages of all ranks. Not collective.
    pub fn set_phase(&self, step: u64, phase: Phase) {
        if let Some(ranks) = &self.ranks {
            ranks.heartbeat.set_phase(step, phase);
        }
    }

    /// Runs `work` on rank 0 and returns its result there. The other ranks wait, and get `None`.
    /// `work` may take longer than the timeout, but must call its argument at least once per
    /// timeout: this reports progress, and returns `false` as soon as any rank is asked to stop.
    ///
    /// # Errors
    /// On rank 0 the error of `work`; on the other ranks: rank 0 ended or made no progress.
    pub fn on_first_rank<T, E: From<TrainError>>(
        &self,
        step: u64,
        phase: Phase,
        stop_is_requested: &dyn Fn() -> bool,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let Some(Ranks { heartbeat, env, num_tasks, .. }) = &self.ranks else {
            return work(&|| !stop_is_requested()).map(Some);
        };
        let number = num_tasks.fetch_add(1, Ordering::Relaxed) + 1;
        heartbeat.set_phase(step, phase);
        if env.rank > 0 {
            heartbeat.wait_for_first_rank(number, stop_is_requested).map_err(|why| {
                self.with_rank_context(format!("this rank was waiting for rank 0, but {why}"))
            })?;
            return Ok(None);
        }
        heartbeat.listen_for_stop(true);
        let done = work(&|| {
            heartbeat.report_progress();
            !stop_is_requested() && !heartbeat.stop_is_requested()
        });
        heartbeat.listen_for_stop(false);
        let done = done?;
        heartbeat.publish_done(number);
        Ok(Some(done))
    }

    /// Adds to the error of a group operation the step and phase of this rank and what is known
    /// about the other ranks. With several processes this takes up to a few seconds.
    pub fn with_rank_context(&self, error: impl Display) -> TrainError {
        let Some(Ranks { heartbeat, env, .. }) = &self.ranks else {
            return TrainError::Failed(error.to_string());
        };
        TrainError::Failed(format!(
            "rank {} of {}, {}: {error}. Other ranks: {}",
            env.rank,
            env.world_size,
            heartbeat.position(),
            heartbeat.describe_peers()
        ))
    }

    /// Publishes the error that ends this rank, for the messages of the other ranks.
    pub fn publish_error(&self, error: &impl Display) {
        if let Some(Ranks { heartbeat, .. }) = &self.ranks {
            heartbeat.publish_error(&format!("{}: {error}", heartbeat.position()));
        }
    }

    /// Exchanges the statistics of `step` with the other ranks, and returns those of all ranks
    /// together.
    ///
    /// # Errors
    /// Ranks that are at different steps; see also [`World`].
    pub fn sync_step(&self, step: u64, own: LocalStepStats) -> Result<GlobalStepStats, TrainError> {
        let Some(Ranks { heartbeat, group, .. }) = &self.ranks else {
            return Ok(GlobalStepStats::of(&[own]));
        };
        heartbeat.set_phase(step, Phase::SyncStep);
        self.check_not_aborted()?;
        let mut numbers = vec![step as i64];
        numbers.extend(own.to_numbers());
        let gathered = group.all_gather(&Tensor::from_slice(&numbers));
        let gathered = gathered.map_err(|e| self.with_rank_context(e))?;
        let mut all = Vec::with_capacity(gathered.len());
        for (rank, tensor) in gathered.iter().enumerate() {
            let numbers = Vec::<i64>::try_from(tensor).map_err(|e| self.with_rank_context(e))?;
            let Some((&its_step, Ok(stats))) =
                numbers.split_first().map(|(step, rest)| (step, rest.try_into()))
            else {
                return Err(self.with_rank_context(format!(
                    "rank {rank} sent {} numbers, expected {}: it runs another version of the \
                     program",
                    numbers.len(),
                    1 + LocalStepStats::NUM_FIELDS
                )));
            };
            if its_step != step as i64 {
                return Err(self.with_rank_context(format!(
                    "rank {rank} is at step {its_step}, and this rank at step {step}"
                )));
            }
            all.push(LocalStepStats::from_numbers(stats));
        }
        Ok(GlobalStepStats::of(&all))
    }

    /// Whether the run stops after the current update. `agreed` is whether a rank was asked to stop
    /// according to [`Self::sync_step`], so that all ranks stop at the same step. A single process
    /// also stops when `stop` was set after that.
    pub fn stops(&self, agreed: bool, stop: &AtomicBool) -> bool {
        agreed || self.ranks.is_none() && stop.load(Ordering::Relaxed)
    }

    /// The values of all ranks, by rank.
    ///
    /// # Errors
    /// See [`World`].
    pub fn gather<T>(&self, own: &T) -> Result<Vec<T>, TrainError>
    where
        T: Clone + Serialize + DeserializeOwned,
    {
        let Some(Ranks { group, .. }) = &self.ranks else { return Ok(vec![own.clone()]) };
        let bytes = serde_json::to_vec(own).map_err(|e| self.with_rank_context(e))?;
        let gathered = group.all_gather_bytes(&bytes).map_err(|e| self.with_rank_context(e))?;
        gathered
            .iter()
            .map(|bytes| serde_json::from_slice(bytes).map_err(|e| self.with_rank_context(e)))
            .collect()
    }

    /// Rank 0's value. The values of the other ranks are not used.
    ///
    /// # Errors
    /// See [`World`].
    pub fn broadcast<T>(&self, own: T) -> Result<T, TrainError>
    where
        T: Serialize + DeserializeOwned,
    {
        let Some(Ranks { group, .. }) = &self.ranks else { return Ok(own) };
        let bytes = serde_json::to_vec(&own).map_err(|e| self.with_rank_context(e))?;
        let bytes = group.broadcast_bytes(&bytes, 0).map_err(|e| self.with_rank_context(e))?;
        serde_json::from_slice(&bytes).map_err(|e| self.with_rank_context(e))
    }

    /// Sums of the numbers over all ranks.
    ///
    /// # Errors
    /// See [`World`].
    pub fn sum<const N: usize>(&self, own: [f64; N]) -> Result<[f64; N], TrainError> {
        let Some(Ranks { group, .. }) = &self.ranks else { return Ok(own) };
        self.check_not_aborted()?;
        let mut tensor = Tensor::from_slice(&own);
        group.all_reduce_sum(&mut tensor).map_err(|e| self.with_rank_context(e))?;
        let mut sum = [0.0; N];
        tensor.f_copy_data(&mut sum, N).map_err(|e| self.with_rank_context(e))?;
        Ok(sum)
    }

    /// Replaces the values of a tensor by those of rank 0's tensor.
    ///
    /// # Errors
    /// See [`World`].
    pub fn send_to_all(&self, tensor: &Tensor) -> Result<(), TrainError> {
        let Some(Ranks { group, .. }) = &self.ranks else { return Ok(()) };
        let sent = group.broadcast(std::slice::from_ref(tensor), 0);
        sent.map_err(|e| self.with_rank_context(e))
    }

    /// Copies the values of rank 0's tensors to all ranks, and checks that the tensors are then
    /// equal.
    ///
    /// # Errors
    /// Tensors that differ between ranks after the broadcast; see also [`World`].
    pub fn broadcast_tensors(&self, named: &[(String, Tensor)]) -> Result<(), TrainError> {
        let Some(Ranks { group, .. }) = &self.ranks else { return Ok(()) };
        let tensors: Vec<Tensor> = named.iter().map(|(_, tensor)| tensor.detach()).collect();
        group.broadcast(&tensors, 0).map_err(|e| self.with_rank_context(e))?;
        self.check_not_aborted()?;
        let differing = self.ranks_that_differ(named)?;
        if differing.is_empty() {
            return Ok(());
        }
        Err(TrainError::Failed(format!(
            "after the broadcast the weights of ranks {differing:?} differ from those of rank 0: \
             the network or the memory of a machine corrupts data"
        )))
    }

    /// The ranks whose tensors are not bitwise equal to those of rank 0.
    ///
    /// # Errors
    /// See [`World`].
    pub fn ranks_that_differ(&self, named: &[(String, Tensor)]) -> Result<Vec<usize>, TrainError> {
        if self.ranks.is_none() {
            return Ok(Vec::new());
        }
        let hashes = self.gather(&hash_of_tensors(named)?)?;
        Ok((0..hashes.len()).filter(|&rank| hashes[rank] != hashes[0]).collect())
    }

    /// This rank's result, if all ranks succeeded.
    ///
    /// # Errors
    /// Any rank failed: each rank gets its own error, or that of the first rank that failed. See
    /// also [`World`].
    pub fn all_ready<T>(&self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        if self.ranks.is_none() {
            return own;
        }
        let failure = own.as_ref().err().map(|e| (e.is_usage(), e.to_string()));
        let all = self.gather(&failure)?;
        let own = own?;
        let failed = all.into_iter().enumerate().find_map(|(rank, failed)| Some((rank, failed?)));
        match failed {
            None => Ok(own),
            Some((rank, (true, error))) => Err(TrainError::Usage(format!("rank {rank}: {error}"))),
            Some((rank, (false, error))) => {
                Err(TrainError::Failed(format!("rank {rank}: {error}")))
            }
        }
    }

    /// Waits for all ranks at the end of the run, so that rank 0, which runs the store, does not
    /// end before the others.
    ///
    /// # Errors
    /// See [`World`].
    pub fn leave(&self) -> Result<(), TrainError> {
        let Some(Ranks { group, heartbeat, .. }) = &self.ranks else { return Ok(()) };
        group.barrier().map_err(|e| self.with_rank_context(e))?;
        heartbeat.end_watching_nccl();
        group.shutdown_nccl().map_err(|e| self.with_rank_context(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::Request;

    #[test]
    fn a_single_process_needs_no_communication() {
        let world = World::single();
        assert_eq!((world.rank(), world.world_size(), world.is_first_rank()), (0, 1, true));
        assert_eq!(world.gather(&7).unwrap(), [7]);
        assert_eq!(world.broadcast(7).unwrap(), 7);
        assert_eq!(world.sum([1.0, 2.0]).unwrap(), [1.0, 2.0]);
        assert_eq!(world.all_ready(Ok(7)).unwrap(), 7);
        let stats = LocalStepStats { rows: 3, request: Request::Stop, ..Default::default() };
        assert_eq!(world.sync_step(1, stats).unwrap(), GlobalStepStats::of(&[stats]));
        let may_continue = world.on_first_rank(1, Phase::Save, &|| true, |may_continue| {
            Ok::<_, TrainError>(may_continue())
        });
        assert_eq!(may_continue.unwrap(), Some(false), "the run was asked to stop");
        assert!(!world.stops(false, &AtomicBool::new(false)));
        assert!(world.stops(false, &AtomicBool::new(true)));
        assert_eq!(world.with_rank_context("no disk").to_string(), "no disk");
        world.leave().unwrap();
    }
}
