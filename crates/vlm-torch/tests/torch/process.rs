use tch::{Device, Kind, Tensor};
use vlm_torch::{deterministic_algorithms, load_cuda, peak_memory_bytes, reset_peak};

#[test]
fn cpu_peak_grows_with_the_memory_that_is_used() {
    reset_peak(Device::Cpu).unwrap();
    let before = peak_memory_bytes(Device::Cpu).unwrap();
    let large = Tensor::ones([64 << 20], (Kind::Uint8, Device::Cpu));
    let after = peak_memory_bytes(Device::Cpu).unwrap();
    // Other tests of this process may free memory meanwhile, but this does not lower the peak.
    assert!(after >= before + (32 << 20), "{before} → {after} with {} more", large.numel());
}

#[test]
fn cuda_is_loaded_if_it_is_installed_and_is_not_required() {
    let loaded = load_cuda().unwrap();
    assert!(loaded || !tch::Cuda::is_available());
    if !loaded {
        assert!(peak_memory_bytes(Device::Cuda(0)).is_err());
    }
}

#[test]
fn deterministic_algorithms_can_be_turned_on_and_off() {
    deterministic_algorithms(true).unwrap();
    deterministic_algorithms(false).unwrap();
}
