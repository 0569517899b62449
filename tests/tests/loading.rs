//! The loading of data does not change a run: number of workers, prefetching, precomputed features
//! instead of images.

use std::fs;
use std::path::Path;

use crate::parallel::{end, start};
use crate::support::{Ended, Trial, golden, json_lines, row, vlm};

fn losses(trial: &Trial) -> Vec<f64> {
    trial.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

/// Runs `vlm cache-features` on the rows of a trial, with the folder `name` as output, and returns
/// what it printed.
fn cache(trial: &Trial, name: &str, dtype: &str) -> Ended {
    let ended = try_to_cache(trial, name, dtype);
    ended.assert_success();
    assert!(ended.stdout.contains("at most 8 distinct"), "{}", ended.stdout);
    ended
}

fn try_to_cache(trial: &Trial, name: &str, dtype: &str) -> Ended {
    let path = |name: &str| trial.path(name).display().to_string();
    vlm(&[
        "cache-features",
        "--data-path",
        &path("rows.jsonl"),
        "--images-path",
        &path("images"),
        "--vision",
        &golden("vision_tower").display().to_string(),
        "--output",
        &path(name),
        "--features-dtype",
        dtype,
        "--device",
        "cpu",
    ])
}

#[test]
fn losses_do_not_depend_on_workers_and_prefetching() {
    let trial = Trial::new();
    let run = |workers: &str, prefetch: &str| {
        let out = trial.path(&format!("out-{workers}-{prefetch}"));
        let flags = ["--batch-size", "3", "--epochs", "2", "--bucket-window", "6"];
        let out_flag = ["--out-dir", out.to_str().unwrap()];
        let loading = ["--num-workers", workers, "--prefetch-batches", prefetch];
        trial.pretrain(&[&flags[..], &out_flag, &loading].concat()).assert_success();
        let lines = json_lines(&out.join("metrics.jsonl"));
        lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let expected = run("1", "1");
    assert_eq!(expected.len(), 6);
    assert_eq!(run("2", "4"), expected);
    assert_eq!(run("4", "2"), expected);
}

#[test]
fn cached_float32_features_give_exactly_the_losses_of_the_encoder() {
    let (with_encoder, with_cache) = (Trial::new(), Trial::new());
    with_encoder.pretrain(&["--epochs", "3"]).assert_success();
    cache(&with_cache, "features", "float32");
    let features = with_cache.path("features").display().to_string();
    with_cache.pretrain(&["--epochs", "3", "--features", &features]).assert_success();
    assert_eq!(losses(&with_cache), losses(&with_encoder));
    // The weights files are equal too.
    let weights = |trial: &Trial| fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    assert!(weights(&with_cache) == weights(&with_encoder));
}

#[test]
fn sixteen_bit_features_change_losses_by_less_than_half_a_percent() {
    let trial = Trial::new();
    trial.pretrain(&["--epochs", "5"]).assert_success();
    let exact = losses(&trial);
    for dtype in ["bfloat16", "float16"] {
        cache(&trial, dtype, dtype);
        let (features, out) = (trial.path(dtype), trial.path(&format!("out-{dtype}")));
        let flags = ["--features", features.to_str().unwrap(), "--out-dir", out.to_str().unwrap()];
        trial.pretrain(&[&["--epochs", "5"][..], &flags].concat()).assert_success();
        let lines = json_lines(&out.join("metrics.jsonl"));
        for (line, exact) in lines.iter().zip(&exact) {
            let loss = line["loss"].as_f64().unwrap();
            assert!((loss - exact).abs() < 5e-3 * exact, "{dtype}: {loss}, expected {exact}");
        }
    }
}

#[test]
fn row_with_an_image_that_is_not_cached_is_rejected_by_name() {
    let trial = Trial::new();
    cache(&trial, "features", "bfloat16");
    let image = image::RgbImage::from_pixel(40, 40, image::Rgb([1, 2, 3]));
    image.save(trial.path("images/new.png")).unwrap();
    let rows = fs::read_to_string(trial.path("rows.jsonl")).unwrap();
    let rows: Vec<String> =
        rows.lines().map(str::to_owned).chain([row("new.png", "A new circle.")]).collect();
    trial.write_rows(&rows);
    let features = trial.path("features").display().to_string();
    let flags = ["--features", &features, "--max-rejected-fraction", "0.2"];
    trial.pretrain(&flags).assert_success();
    let rejected = json_lines(&trial.path("out/rejected.jsonl"));
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0]["reason"], "not-in-feature-cache");
    assert!(rejected[0]["detail"].as_str().unwrap().contains("new.png"));
}

#[test]
fn damaged_features_end_the_run_by_name_and_only_they_are_computed_again() {
    let trial = Trial::new();
    cache(&trial, "features", "float32");
    let file = trial.path("features/features.bin");
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 8 * 3 + 5] ^= 16;
    fs::write(&file, damaged).unwrap();
    let features = trial.path("features").display().to_string();
    let flags = ["--features", &features];
    trial.pretrain(&flags).assert_error(
        2,
        &["features.bin", "image 3 of the cache", "run the same `vlm cache-features` again"],
    );
    let ended = cache(&trial, "features", "float32");
    assert!(ended.stderr.contains("the features of 1 image are damaged"), "{}", ended.stderr);
    assert!(ended.stdout.contains("8 images in"), "{}", ended.stdout);
    assert!(ended.stdout.contains("1 of them new"), "{}", ended.stdout);
    assert!(fs::read(&file).unwrap() == whole, "the same features at the same place");
    // The run that was refused may have written its out-dir.
    let out = trial.path("repaired");
    trial.pretrain(&[&flags[..], &["--out-dir", out.to_str().unwrap()]].concat()).assert_success();
    let ended = cache(&trial, "features", "float32");
    assert!(ended.stdout.contains("0 of them new"), "{}", ended.stdout);
    assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
}

#[test]
fn a_second_program_that_writes_to_a_feature_cache_is_refused() {
    let trial = Trial::new();
    cache(&trial, "features", "float32");
    let lock = fs::File::create(trial.path("features/.lock")).unwrap();
    lock.try_lock().unwrap();
    let ended = try_to_cache(&trial, "features", "float32");
    ended.assert_error(2, &["features", "another run is writing to it"]);
    drop(lock);
    cache(&trial, "features", "float32");
}

#[test]
fn a_stale_cache_is_refused_before_anything_is_written() {
    let trial = Trial::new();
    cache(&trial, "features", "float32");
    let vision = trial.path("vision");
    fs::create_dir(&vision).unwrap();
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        fs::copy(golden("vision_tower").join(name), vision.join(name)).unwrap();
    }
    let refused = |part: &str| {
        let features = trial.path("features").display().to_string();
        let vision = vision.display().to_string();
        let ended = trial.pretrain(&["--features", &features, "--vision", &vision]);
        ended.assert_error(2, &["features", part, "vlm cache-features"]);
        assert!(!trial.path("out").exists());
    };
    let settings = fs::read_to_string(vision.join("preprocessor_config.json")).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&settings).unwrap();
    other["resample"] = 2.into();
    fs::write(vision.join("preprocessor_config.json"), other.to_string()).unwrap();
    refused("preprocessed otherwise");
    fs::write(vision.join("preprocessor_config.json"), settings).unwrap();
    let mut weights = fs::read(vision.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(vision.join("model.safetensors"), weights).unwrap();
    refused("another vision encoder");
}

#[test]
fn features_of_another_dtype_are_refused_on_other_ranks_and_on_resume() {
    let trial = Trial::new();
    for dtype in ["float32", "bfloat16"] {
        cache(&trial, dtype, dtype);
    }
    let (float32, bfloat16) = (trial.path("float32"), trial.path("bfloat16"));
    let features = |folder: &Path| vec!["--features".to_owned(), folder.display().to_string()];
    let (float32_flags, bfloat16_flags) = (features(&float32), features(&bfloat16));
    let of_ranks = [&float32_flags, &bfloat16_flags];
    let of_ranks = of_ranks.map(|flags| flags.iter().map(String::as_str).collect::<Vec<_>>());
    for ended in end(start(&trial, "out", &of_ranks)) {
        ended.assert_error(2, &["features.dtype is \"float32\" on rank 0, \"bfloat16\" on rank 1"]);
    }
    assert!(!trial.path("out").exists(), "nothing was written");

    let run = |features: &[&str], more: &[&str]| trial.pretrain(&[features, more].concat());
    run(&of_ranks[0], &["--max-steps", "1"]).assert_success();
    let ended = run(&of_ranks[1], &["--resume", "auto"]);
    ended.assert_error(2, &["features.dtype was \"float32\" and is now \"bfloat16\""]);
    // The location of the features does not matter.
    let moved = trial.path("moved");
    fs::rename(&float32, &moved).unwrap();
    run(&["--features", moved.to_str().unwrap()], &["--resume", "auto"]).assert_success();
    assert_eq!(trial.summary()["steps"], 2);
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let trial = Trial::new();
    let ended = trial.pretrain(&["--no-shuffle", "--bucket-window", "64"]);
    ended.assert_error(2, &["--bucket-window 64", "--no-shuffle"]);
    let ended = trial.pretrain(&["--features", "nowhere", "--train-vision"]);
    ended.assert_error(2, &["--features", "--train-vision"]);
    trial.pretrain(&["--features", "nowhere"]).assert_error(2, &["nowhere"]);
}

#[test]
fn encoder_without_a_preprocessor_config_uses_the_defaults_of_its_class() {
    let trial = Trial::new();
    let vision = trial.path("vision");
    fs::create_dir(&vision).unwrap();
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        fs::copy(golden("vision_tower").join(name), vision.join(name)).unwrap();
    }
    let run = |out: &str| {
        let (vision, out) = (vision.display().to_string(), trial.path(out).display().to_string());
        let flags = ["--vision", &vision, "--out-dir", &out, "--train-vision", "--max-steps", "2"];
        let ended = trial.pretrain(&flags);
        ended.assert_success();
        let losses: Vec<_> = json_lines(&Path::new(&out).join("metrics.jsonl"))
            .iter()
            .filter_map(|line| line["loss"].as_f64())
            .collect();
        let settings = fs::read(Path::new(&out).join("vision/preprocessor_config.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
        (ended, losses, settings)
    };
    let (_, expected, settings) = run("with");
    let settings_file = vision.join("preprocessor_config.json");
    fs::remove_file(&settings_file).unwrap();
    let (ended, losses, written) = run("without");
    assert_eq!(losses, expected);
    assert!(ended.stderr.contains("the defaults of CLIPImageProcessor"), "{}", ended.stderr);
    assert_eq!(written["image_std"], settings["image_std"]);

    // The file of transformers 5, with other numbers.
    let mut other = settings;
    other["image_mean"] = serde_json::json!([0.5, 0.5, 0.5]);
    let within = serde_json::json!({"image_processor": other, "processor_class": "CLIPProcessor"});
    fs::write(vision.join("processor_config.json"), within.to_string()).unwrap();
    let (ended, losses, written) = run("within");
    assert_ne!(losses, expected);
    assert!(!ended.stderr.contains("the defaults of"), "{}", ended.stderr);
    assert_eq!(written["image_mean"], other["image_mean"]);
}
