//! The device of a rank, where several processes share a machine.

use tch::Device;
use vlm_infer::select_device;

use crate::TrainError;
use crate::parallel::LaunchEnv;

/// The device that `name` stands for on this rank. Of several processes on one machine each has the
/// CUDA device of its `local_rank`, unless the launcher lets it see a single one.
///
/// # Errors
/// As [`select_device`]; one device named for several processes, or fewer devices than processes.
pub(crate) fn select(name: &str, launch: Option<&LaunchEnv>) -> Result<Device, TrainError> {
    let device = select_device(name)?;
    let (Some(env), true) = (launch, device.is_cuda()) else { return Ok(device) };
    if name.starts_with("cuda:") {
        if env.local_world_size > 1 {
            return Err(TrainError::Usage(format!(
                "--device is {name}, but {} processes on this machine cannot share one device; give \
                 --device cuda, and each takes its own",
                env.local_world_size
            )));
        }
        return Ok(device);
    }
    match tch::Cuda::device_count() {
        1 => Ok(device),
        count if env.local_rank as i64 >= count => Err(TrainError::Usage(format!(
            "local rank {} has no CUDA device: there are {count} for {} processes on this machine; \
             start as many processes as there are devices",
            env.local_rank, env.local_world_size
        ))),
        _ => Ok(Device::Cuda(env.local_rank)),
    }
}
