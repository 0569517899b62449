use tch::Device;
use vlm_torch::{deterministic_algorithms, load_cuda, peak_memory_bytes};

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
