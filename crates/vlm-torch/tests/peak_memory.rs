//! The peak memory of a process, in a process of its own: other tests would free memory between the
//! two measurements.

use tch::{Device, Kind, Tensor};
use vlm_torch::{peak_memory_bytes, reset_peak};

#[test]
fn cpu_peak_grows_with_the_memory_that_is_used() {
    reset_peak(Device::Cpu).unwrap();
    let before = peak_memory_bytes(Device::Cpu).unwrap();
    let large = Tensor::ones([64 << 20], (Kind::Uint8, Device::Cpu));
    let after = peak_memory_bytes(Device::Cpu).unwrap();
    // libtorch may have freed memory of its start meanwhile.
    assert!(after >= before + (32 << 20), "{before} → {after} with {} more", large.numel());
}
