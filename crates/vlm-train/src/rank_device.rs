//! Selects the device of a rank. On a machine with several processes each process has its own GPU.

use tch::Device;
use vlm_display::count;
use vlm_infer::select_device;

use crate::TrainError;
use crate::parallel::LaunchEnv;

/// The device of this rank for the setting `device`, which is `name`. When several processes run on
/// one machine, each gets the CUDA device with the number of its `local_rank`, unless the launcher
/// makes only one device visible to it.
///
/// # Errors
/// As [`select_device`]; a device that several processes would share, or fewer devices than
/// processes.
pub(crate) fn select(name: &str, launch: Option<&LaunchEnv>) -> Result<Device, TrainError> {
    let device = select_device(name)?;
    let (Some(env), true) = (launch, device.is_cuda()) else { return Ok(device) };
    if name.starts_with("cuda:") {
        if env.local_world_size > 1 {
            return Err(TrainError::Usage(format!(
                "`device` is {name}, but the {} processes on this machine cannot share one GPU; \
                 set `device = cuda` to give each process its own",
                env.local_world_size
            )));
        }
        return Ok(device);
    }
    match tch::Cuda::device_count() {
        1 => Ok(device),
        devices if env.local_rank as i64 >= devices => Err(TrainError::Usage(format!(
            "local rank {} has no CUDA device: this machine has {devices} for {}; start at most as \
             many processes as there are devices",
            env.local_rank,
            count(env.local_world_size, "process")
        ))),
        _ => Ok(Device::Cuda(env.local_rank)),
    }
}
