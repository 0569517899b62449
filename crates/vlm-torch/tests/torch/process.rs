use tch::{Device, Kind, Tensor};
use vlm_torch::{deterministic_algorithms, load_cuda, peak_memory_bytes, reset_peak};

#[test]
fn cpu_peak_grows_with_what_is_touched() {
    reset_peak(Device::Cpu).unwrap();
    let before = peak_memory_bytes(Device::Cpu).unwrap();
    let large = Tensor::ones([64 << 20], (Kind::Uint8, Device::Cpu));
    let after = peak_memory_bytes(Device::Cpu).unwrap();
    // Other tests of this process may free memory meanwhile, never lower the peak.
    assert!(after >= before + (32 << 20), "{before} → {after} with {} more", large.numel());
}

#[test]
fn cuda_is_loaded_where_there_is_one_and_absent_without_error() {
    let loaded = load_cuda().unwrap();
    assert!(loaded || !tch::Cuda::is_available());
    if !loaded {
        assert!(peak_memory_bytes(Device::Cuda(0)).is_err());
    }
}

#[test]
fn determinism_can_be_switched() {
    deterministic_algorithms(true).unwrap();
    deterministic_algorithms(false).unwrap();
}
