//! The environment that torchrun sets for its processes, and every other launcher likewise.

use std::time::Duration;

use vlm_torch::GroupOptions;

use crate::TrainError;

/// Who this process is among which others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchEnv {
    /// `RANK`, from 0.
    pub rank: usize,
    /// `WORLD_SIZE`.
    pub world_size: usize,
    /// `LOCAL_RANK`: which of the processes on this machine; 0 when it is not set.
    pub local_rank: usize,
    /// `LOCAL_WORLD_SIZE`: how many there are on this machine; 1 when it is not set.
    pub local_world_size: usize,
    /// `MASTER_ADDR`: where the ranks meet.
    pub master_addr: String,
    /// `MASTER_PORT`.
    pub master_port: u16,
    /// Whether the launcher keeps the store itself (`TORCHELASTIC_USE_AGENT_STORE`); else rank 0 does.
    pub agent_store: bool,
    /// `TORCHELASTIC_RUN_ID`: of which run; `none`, as torchrun has it, when it is not set. Ranks of
    /// another run that come to this one's port are left waiting, instead of taking part.
    pub run_id: String,
    /// `TORCHELASTIC_RESTART_COUNT`: which attempt this is; a launcher's store outlives the processes.
    pub attempt: u64,
}

impl LaunchEnv {
    /// Reads the environment; `None` for a process that nobody launched as one of several.
    ///
    /// # Errors
    /// A variable that is missing beside others, or is not the number it must be; its name is told.
    pub fn read() -> Result<Option<Self>, TrainError> {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, TrainError> {
        let Some(world_size) = number(get, "WORLD_SIZE")? else {
            return Ok(None);
        };
        // One process needs to meet nobody; a launcher may still have said where.
        let needed = |name: &str| {
            TrainError::Usage(format!(
                "WORLD_SIZE is {world_size} but {name} is not set: start the processes with \
                 `cargo xtask pretrain --nproc-per-node N`, torchrun or another launcher that sets \
                 RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE"
            ))
        };
        let rank = number(get, "RANK")?.ok_or_else(|| needed("RANK"))?;
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
                 {world_size}: each must be below or within the next"
            )));
        }
        let port = number(get, "MASTER_PORT")?.ok_or_else(|| needed("MASTER_PORT"))?;
        let master_port = u16::try_from(port).map_err(|_| {
            TrainError::Usage(format!("MASTER_PORT is {port}; a port is at most 65535"))
        })?;
        let is_true = |value: String| value.eq_ignore_ascii_case("true") || value == "1";
        Ok(Some(Self {
            rank,
            world_size,
            local_rank,
            local_world_size,
            master_addr: get("MASTER_ADDR").ok_or_else(|| needed("MASTER_ADDR"))?,
            master_port,
            agent_store: get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(is_true),
            run_id: get("TORCHELASTIC_RUN_ID").unwrap_or_else(|| "none".to_owned()),
            attempt: number(get, "TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0) as u64,
        }))
    }

    /// What the process group is connected with.
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

fn number(get: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>, TrainError> {
    get(name)
        .map(|text| {
            text.trim().parse().map_err(|_| {
                TrainError::Usage(format!("{name} is {text:?}; expected a number from 0 on"))
            })
        })
        .transpose()
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
    fn torchruns_environment_is_understood() {
        let env = read(&[]).unwrap().unwrap();
        assert_eq!((env.rank, env.local_rank, env.world_size, env.local_world_size), (3, 1, 4, 2));
        let options = env.group_options(Duration::from_secs(9));
        assert_eq!((options.master_addr.as_str(), options.master_port), ("node0", 29500));
        assert_eq!(options.prefix, "vlm/night/attempt_2");
        assert!(!options.is_server && !options.is_on_one_machine);
    }

    #[test]
    fn rank_zero_keeps_the_store_unless_the_launcher_does() {
        let is_server = |store| {
            let changed =
                [("RANK", "0"), ("LOCAL_RANK", "0"), ("TORCHELASTIC_USE_AGENT_STORE", store)];
            read(&changed).unwrap().unwrap().group_options(Duration::ZERO).is_server
        };
        assert!(is_server("") && is_server("False") && !is_server("True"));
    }

    #[test]
    fn a_process_that_nobody_launched_is_alone() {
        assert_eq!(read(&[("WORLD_SIZE", "")]).unwrap(), None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let message = |change| read(&[change]).unwrap_err().to_string();
        assert!(message(("MASTER_ADDR", "")).contains("MASTER_ADDR is not set"));
        assert!(message(("RANK", "one")).contains("RANK is \"one\""));
        assert!(message(("RANK", "4")).contains("ranks count from 0"));
        assert!(message(("LOCAL_RANK", "2")).contains("LOCAL_RANK is 2"));
        assert!(message(("MASTER_PORT", "70000")).contains("at most 65535"));
    }
}
