//! The processes of one run, as one of them sees them: collective operations whose errors say which
//! rank noticed what, at which step, and what is known of the others.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};
use vlm_torch::ProcessGroup;

use super::launch_env::LaunchEnv;
use super::patience::Patience;
use super::progress::{Phase, Progress};
use super::share::Share;
use crate::TrainError;
use crate::tensor_hash::hash_of_tensors;

/// All ranks of a run. Every operation but [`Self::reached`] and [`Self::explain`] is collective: all
/// ranks call it, in the same order.
#[derive(Debug)]
pub struct Team {
    // Dropped first: the reports end before the store does.
    progress: Progress,
    group: ProcessGroup,
    env: LaunchEnv,
    /// Works that rank 0 did alone, as all ranks count them.
    works: AtomicU64,
}

impl Team {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// Ranks that do not come within `timeout`. Every later operation has failed and said why before
    /// it is over.
    pub fn connect(env: LaunchEnv, timeout: Duration) -> Result<Self, TrainError> {
        let patience = Patience::of(timeout);
        let options = env.group_options(patience.wait);
        let group = ProcessGroup::connect(&options).map_err(|error| {
            TrainError::Failed(format!(
                "{}. The ranks meet at MASTER_ADDR {}, MASTER_PORT {}: all {} must be started, \
                 and reach it within --timeout-secs {}",
                // Some of libtorch's own messages end with a full stop.
                error.to_string().trim_end_matches('.'),
                env.master_addr,
                env.master_port,
                env.world_size,
                timeout.as_secs()
            ))
        })?;
        let progress = Progress::start(&options, patience)?;
        Ok(Self { progress, group, env, works: AtomicU64::new(0) })
    }

    /// The launch environment.
    pub fn env(&self) -> &LaunchEnv {
        &self.env
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.env.rank
    }

    /// How many processes there are.
    pub fn world_size(&self) -> usize {
        self.env.world_size
    }

    /// The group, for a reducer.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Makes the group exchange tensors of `device` too; NCCL's version for a CUDA device, none for
    /// the CPU, which needs nothing. All ranks call it.
    ///
    /// # Errors
    /// NCCL is not here, or sees no GPU.
    pub fn use_device(&self, device: Device) -> Result<Option<String>, TrainError> {
        let Device::Cuda(index) = device else { return Ok(None) };
        self.refuse_shared_gpus(index)?;
        vlm_torch::set_cuda_device(index)?;
        Ok(Some(self.group.add_nccl(index)?))
    }

    /// # Errors
    /// Two ranks found the same GPU: NCCL would hang or fail with a message of its own.
    fn refuse_shared_gpus(&self, index: usize) -> Result<(), TrainError> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let found = vlm_torch::cuda_bus_id(index).map(|bus| (host.trim().to_owned(), bus));
        let all: Vec<Option<(String, String)>> = self.gather(&found)?;
        for (rank, gpu) in all.iter().enumerate() {
            let Some((host, bus)) = gpu else { continue };
            if let Some(first) = all[..rank].iter().position(|other| other == gpu) {
                return Err(TrainError::Usage(format!(
                    "ranks {first} and {rank} both use GPU {bus} of {host}, and each needs one of its \
                     own: start as many processes as there are GPUs, and let each see all of them \
                     (CUDA_VISIBLE_DEVICES) or one that no other sees"
                )));
            }
        }
        Ok(())
    }

    /// Notes where this rank is, for the messages of all.
    pub fn reached(&self, step: u64, phase: Phase) {
        self.progress.reached(step, phase);
    }

    /// Lets rank 0 do work that may take longer than the timeout; the other ranks wait for as long
    /// as it gets on, and get `None`. The work is given a function to call once in a timeout at
    /// least, which notes that it gets on, and says `false` as soon as any rank is asked to stop.
    ///
    /// # Errors
    /// The work's, on rank 0; on the others that rank 0 ended, is gone, or does not get on.
    pub fn on_first_rank<T, E: From<TrainError>>(
        &self,
        step: u64,
        phase: Phase,
        is_asked_to_stop: &dyn Fn() -> bool,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let number = self.works.fetch_add(1, Ordering::Relaxed) + 1;
        self.reached(step, phase);
        if self.rank() == 0 {
            self.progress.listens(true);
            let done = work(&|| {
                self.progress.goes_on();
                !is_asked_to_stop() && !self.progress.another_is_asked_to_stop()
            });
            self.progress.listens(false);
            let done = done?;
            self.progress.is_done(number);
            return Ok(Some(done));
        }
        self.progress.await_done(number, is_asked_to_stop).map_err(|why| {
            self.explain(format!("rank 0 does this alone and was waited for, but {why}"))
        })?;
        Ok(None)
    }

    /// An error of an operation that other ranks take part in, with this rank's place and what is
    /// known of the others. Takes a second or two.
    pub fn explain(&self, error: impl Display) -> TrainError {
        let place =
            format!("rank {} of {}, {}", self.rank(), self.world_size(), self.progress.place());
        TrainError::Failed(format!(
            "{place}: {error}. Of the others: {}",
            self.progress.of_the_others()
        ))
    }

    /// Leaves word of why this rank ends early, for the messages of the others.
    pub fn leave_word(&self, error: &impl Display) {
        self.progress.leave_word(&format!("{}: {error}", self.progress.place()));
    }

    /// Tells the others what this rank brings to `step`, and learns what they bring, rank by rank.
    ///
    /// # Errors
    /// A rank that is gone or hangs; ranks at different steps.
    pub fn meet(&self, step: u64, share: Share) -> Result<Vec<Share>, TrainError> {
        let mut numbers = vec![step as i64];
        numbers.extend(share.to_numbers());
        let gathered = self.group.all_gather(&Tensor::from_slice(&numbers));
        let gathered = gathered.map_err(|e| self.explain(e))?;
        let mut shares = Vec::with_capacity(gathered.len());
        for (rank, tensor) in gathered.iter().enumerate() {
            let numbers = Vec::<i64>::try_from(tensor).map_err(|e| self.explain(e))?;
            let Some((&theirs, Ok(share))) =
                numbers.split_first().map(|(step, rest)| (step, rest.try_into()))
            else {
                return Err(
                    self.explain("a share of another length: another version of the program")
                );
            };
            if theirs != step as i64 {
                return Err(
                    self.explain(format!("rank {rank} is at step {theirs}, this one at {step}"))
                );
            }
            shares.push(Share::from_numbers(share));
        }
        Ok(shares)
    }

    /// Every rank's value, rank by rank.
    ///
    /// # Errors
    /// A rank that is gone or hangs.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<Vec<T>, TrainError> {
        let bytes = serde_json::to_vec(own).map_err(|e| self.explain(e))?;
        let gathered = self.group.all_gather_bytes(&bytes).map_err(|e| self.explain(e))?;
        gathered
            .iter()
            .map(|bytes| serde_json::from_slice(bytes).map_err(|e| self.explain(e)))
            .collect()
    }

    /// Rank 0's value; what the others give is not looked at.
    ///
    /// # Errors
    /// A rank that is gone or hangs.
    pub fn first_ranks<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<T, TrainError> {
        let bytes = serde_json::to_vec(own).map_err(|e| self.explain(e))?;
        let bytes = self.group.broadcast_bytes(&bytes, 0).map_err(|e| self.explain(e))?;
        serde_json::from_slice(&bytes).map_err(|e| self.explain(e))
    }

    /// Sums numbers over the ranks.
    ///
    /// # Errors
    /// A rank that is gone or hangs.
    pub fn sum<const N: usize>(&self, own: [f64; N]) -> Result<[f64; N], TrainError> {
        let mut tensor = Tensor::from_slice(&own);
        self.group.all_reduce_sum(&mut tensor).map_err(|e| self.explain(e))?;
        let mut sum = [0.0; N];
        tensor.f_copy_data(&mut sum, N).map_err(|e| self.explain(e))?;
        Ok(sum)
    }

    /// Rank 0's number, bit for bit.
    ///
    /// # Errors
    /// A rank that is gone or hangs.
    pub fn first_ranks_number(&self, own: f64) -> Result<f64, TrainError> {
        let tensor = Tensor::from_slice(&[own]);
        self.group.broadcast(std::slice::from_ref(&tensor), 0).map_err(|e| self.explain(e))?;
        f64::try_from(&tensor).map_err(|e| self.explain(e))
    }

    /// Gives all ranks the tensors of rank 0, and proves that they now have the same.
    ///
    /// # Errors
    /// A rank that is gone or hangs; tensors that differ between ranks all the same.
    pub fn share_tensors(&self, named: &[(String, Tensor)]) -> Result<(), TrainError> {
        let tensors: Vec<Tensor> = named.iter().map(|(_, tensor)| tensor.detach()).collect();
        self.group.broadcast(&tensors, 0).map_err(|e| self.explain(e))?;
        let differing = self.ranks_that_differ(named)?;
        if differing.is_empty() {
            return Ok(());
        }
        Err(TrainError::Failed(format!(
            "after the broadcast the weights of ranks {differing:?} are not those of rank 0: the \
             network or the memory of a machine corrupts data"
        )))
    }

    /// The ranks whose tensors are not, bit for bit, those of rank 0.
    ///
    /// # Errors
    /// A rank that is gone or hangs.
    pub fn ranks_that_differ(&self, named: &[(String, Tensor)]) -> Result<Vec<usize>, TrainError> {
        let hashes = self.gather(&hash_of_tensors(named)?)?;
        let differs = |rank: &usize| hashes[*rank] != hashes[0];
        Ok((0..self.world_size()).filter(differs).collect())
    }

    /// This rank's result, when all have one; otherwise every rank gets an error: its own, or that
    /// of the first rank that has one.
    ///
    /// # Errors
    /// As told; a rank that is gone or hangs.
    pub fn all_ready<T>(&self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        let told = own.as_ref().err().map(|e| (matches!(e, TrainError::Usage(_)), e.to_string()));
        let all = self.gather(&told)?;
        let own = own?;
        let failed = all.into_iter().enumerate().find_map(|(rank, told)| Some((rank, told?)));
        match failed {
            None => Ok(own),
            Some((rank, (true, error))) => Err(TrainError::Usage(format!("rank {rank}: {error}"))),
            Some((rank, (false, error))) => {
                Err(TrainError::Failed(format!("rank {rank}: {error}")))
            }
        }
    }

    /// Waits for all, so that nobody leaves while another still needs the store.
    ///
    /// # Errors
    /// A rank that is gone or hangs.
    pub fn part(&self) -> Result<(), TrainError> {
        self.group.barrier().map_err(|e| self.explain(e))?;
        self.group.shutdown_nccl().map_err(|e| self.explain(e))
    }
}
