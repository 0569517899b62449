use std::time::Duration;

use tch::{Device, Kind};
use vlm_torch::matrix_rate;

#[test]
fn rate_is_that_of_the_fastest_product() {
    let time = Duration::from_millis(20);
    let rate = |products: &[[i64; 3]]| matrix_rate(Device::Cpu, Kind::Float, products, time);
    let both = rate(&[[1, 2, 1], [256, 256, 256]]).unwrap().unwrap();
    let tiny = rate(&[[1, 2, 1]]).unwrap().unwrap();
    // A product of 2 by 1 is all overhead.
    assert!(both > 10.0 * tiny, "{both:e} {tiny:e}");
    assert_eq!(rate(&[]).unwrap(), None);
}

#[test]
fn a_size_of_zero_is_an_error_that_names_it() {
    let time = Duration::from_millis(1);
    let error = matrix_rate(Device::Cpu, Kind::Float, &[[4, 0, 4]], time).unwrap_err();
    assert!(error.to_string().contains("[4, 0, 4]"), "{error}");
}
