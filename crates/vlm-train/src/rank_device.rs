//! The device of a rank. On a machine with several processes each process has its own GPU.

use tch::Device;
use vlm_infer::select_device;

use crate::TrainError;
use crate::parallel::LaunchEnv;

/// The device that the setting `device` names on this rank. Where several processes run on one machine,
/// each gets the CUDA device with the number of its `local_rank`, unless the launcher lets it see one
/// device only.
///
/// # Errors
/// As [`select_device`]; one device for several processes, or fewer devices than processes.
pub(crate) fn select(name: &str, launch: Option<&LaunchEnv>) -> Result<Device, TrainError> {
    let device = select_device(name)?;
    let (Some(env), true) = (launch, device.is_cuda()) else { return Ok(device) };
    if name.starts_with("cuda:") {
        if env.local_world_size > 1 {
            return Err(TrainError::Usage(format!(
                "`device` is {name}, but the {} processes on this machine cannot share one GPU; with \
                 `device = cuda` each process takes its own",
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
