//! Reads the environment variables that torchrun and other launchers set for the processes of a
//! run.

use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vlm_torch::GroupOptions;

use crate::TrainError;

/// The rank of this process, the number of processes, and the address at which they connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchEnv {
    /// `RANK`: number of this process, from 0.
    pub rank: usize,
    /// `WORLD_SIZE`: number of processes of the run.
    pub world_size: usize,
    /// `LOCAL_RANK`: number of this process among those on its machine, from 0; 0 when it is not
    /// set.
    pub local_rank: usize,
    /// `LOCAL_WORLD_SIZE`: number of processes on this machine; 1 when it is not set.
    pub local_world_size: usize,
    /// `MASTER_ADDR`: host of the store that the ranks connect to.
    pub master_addr: String,
    /// `MASTER_PORT`: port of that store.
    pub master_port: u16,
    /// Whether the launcher runs the store (`TORCHELASTIC_USE_AGENT_STORE`). Otherwise rank 0 does.
    pub agent_store: bool,
    /// `TORCHELASTIC_RUN_ID`: name of the run; `none`, as with torchrun, when it is not set. It is
    /// part of the keys in the store, so that ranks of another run that use the same port cannot
    /// join.
    pub run_id: String,
    /// `TORCHELASTIC_RESTART_COUNT`: number of restarts so far. It is part of the keys in the
    /// store, because a launcher's store outlives the processes.
    pub attempt: u64,
}

impl LaunchEnv {
    /// Reads the environment. Returns `None` when `WORLD_SIZE` is not set: the process trains
    /// alone.
    ///
    /// # Errors
    /// `WORLD_SIZE` is set, but another variable is missing, is not a valid number or contradicts
    /// it.
    pub fn read() -> Result<Option<Self>, TrainError> {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, TrainError> {
        let Some(world_size) = number(get, "WORLD_SIZE")? else {
            return Ok(None);
        };
        let missing = |name: &str| {
            TrainError::Usage(format!(
                "WORLD_SIZE is {world_size} but {name} is not set: start the processes with \
                 `cargo xtask pretrain --nproc-per-node N`, torchrun or another launcher that sets \
                 RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE"
            ))
        };
        let rank = number(get, "RANK")?.ok_or_else(|| missing("RANK"))?;
        if rank >= world_size {
            return Err(TrainError::Usage(format!(
                "RANK is {rank} and WORLD_SIZE {world_size}: ranks count from 0"
            )));
        }
        let local_rank = number(get, "LOCAL_RANK")?.unwrap_or(0);
        let local_world_size = number(get, "LOCAL_WORLD_SIZE")?.unwrap_or(1);
        if local_rank >= local_world_size || local_world_size > world_size {
            return Err(TrainError::Usage(format!(
                "LOCAL_RANK is {local_rank}, LOCAL_WORLD_SIZE {local_world_size} and WORLD_SIZE \
                 {world_size}: expected LOCAL_RANK below LOCAL_WORLD_SIZE, and \
                 LOCAL_WORLD_SIZE at most WORLD_SIZE"
            )));
        }
        let port = number(get, "MASTER_PORT")?.ok_or_else(|| missing("MASTER_PORT"))?;
        let master_port = u16::try_from(port).map_err(|_| {
            TrainError::Usage(format!("MASTER_PORT is {port}; a port is at most 65535"))
        })?;
        let is_true = |value: String| value.eq_ignore_ascii_case("true") || value == "1";
        Ok(Some(Self {
            rank,
            world_size,
            local_rank,
            local_world_size,
            master_addr: get("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?,
            master_port,
            agent_store: get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(is_true),
            run_id: get("TORCHELASTIC_RUN_ID").unwrap_or_else(|| "none".to_owned()),
            attempt: number(get, "TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0) as u64,
        }))
    }

    /// When the run was started: when its launcher started, which says so in `VLM_LAUNCHED_AT`
    /// (seconds since 1970), so that a restart does not begin to count again; else when this process
    /// started.
    pub fn start_of_launch() -> Instant {
        let launched = || {
            let text = std::env::var("VLM_LAUNCHED_AT").ok()?;
            let launched = UNIX_EPOCH + Duration::from_secs(text.parse().ok()?);
            SystemTime::now().duration_since(launched).ok()
        };
        let elapsed = launched().or_else(age_of_process).unwrap_or_default();
        let now = Instant::now();
        now.checked_sub(elapsed).unwrap_or(now)
    }

    /// Number of CPU threads for this process: an equal part of the cores when several processes
    /// run on this machine. `None` leaves the choice to libtorch: for one process, or with
    /// `OMP_NUM_THREADS`.
    pub fn num_threads(&self) -> Option<i32> {
        if self.local_world_size == 1 || std::env::var_os("OMP_NUM_THREADS").is_some() {
            return None;
        }
        let cores = available_parallelism().map_or(1, usize::from);
        Some((cores / self.local_world_size).max(1) as i32)
    }

    /// Options to connect the process group with. `timeout` is that of its operations.
    pub fn group_options(&self, timeout: Duration) -> GroupOptions {
        GroupOptions {
            master_addr: self.master_addr.clone(),
            master_port: self.master_port,
            rank: self.rank,
            world_size: self.world_size,
            is_server: self.rank == 0 && !self.agent_store,
            timeout,
            is_on_one_machine: self.local_world_size == self.world_size,
            prefix: format!("vlm/{}/attempt_{}", self.run_id, self.attempt),
        }
    }
}

/// The value of the variable `name`; `None` when it is not set.
fn number(get: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>, TrainError> {
    get(name)
        .map(|text| {
            text.trim().parse().map_err(|_| {
                TrainError::Usage(format!(
                    "{name} is {text:?}; expected a whole number, at least 0"
                ))
            })
        })
        .transpose()
}

/// How long ago this process started; `None` where `/proc` does not say so.
fn age_of_process() -> Option<Duration> {
    // proc_pid_stat(5): field 22, in units that are hundredths of a second for every program. The
    // second field, the name in parentheses, may have spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse::<f64>().ok()? / 100.0;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime = uptime.split_whitespace().next()?.parse::<f64>().ok()?;
    Duration::try_from_secs_f64(uptime - start).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCHRUN: [(&str, &str); 9] = [
        ("RANK", "3"),
        ("LOCAL_RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RUN_ID", "night"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ];

    fn read(change: &[(&str, &str)]) -> Result<Option<LaunchEnv>, TrainError> {
        LaunchEnv::from_variables(&|name| {
            let all = change.iter().chain(&TORCHRUN);
            let (_, value) = all.into_iter().find(|(key, _)| *key == name)?;
            (!value.is_empty()).then(|| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_of_torchrun_is_read() {
        let env = read(&[]).unwrap().unwrap();
        assert_eq!((env.rank, env.local_rank, env.world_size, env.local_world_size), (3, 1, 4, 2));
        let options = env.group_options(Duration::from_secs(9));
        assert_eq!((options.master_addr.as_str(), options.master_port), ("node0", 29500));
        assert_eq!(options.prefix, "vlm/night/attempt_2");
        assert!(!options.is_server && !options.is_on_one_machine);
    }

    #[test]
    fn rank_zero_runs_the_store_unless_the_launcher_does() {
        let is_server = |store| {
            let changed =
                [("RANK", "0"), ("LOCAL_RANK", "0"), ("TORCHELASTIC_USE_AGENT_STORE", store)];
            read(&changed).unwrap().unwrap().group_options(Duration::ZERO).is_server
        };
        assert!(is_server("") && is_server("False") && !is_server("True"));
    }

    #[test]
    fn without_world_size_the_process_is_single() {
        assert_eq!(read(&[("WORLD_SIZE", "")]).unwrap(), None);
    }

    #[test]
    fn a_missing_or_invalid_variable_is_named() {
        let message = |change| read(&[change]).unwrap_err().to_string();
        assert!(message(("MASTER_ADDR", "")).contains("MASTER_ADDR is not set"));
        assert!(message(("RANK", "one")).contains("RANK is \"one\""));
        assert!(message(("RANK", "4")).contains("ranks count from 0"));
        assert!(message(("LOCAL_RANK", "2")).contains("LOCAL_RANK is 2"));
        assert!(message(("MASTER_PORT", "70000")).contains("at most 65535"));
    }
}
