//! The wheel: the program, a small launcher in Python, and the demo's starting weights. It depends
//! on torch, whose libtorch the program loads.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::URL_SAFE_NO_PAD;
use digest::Digest;
use sha2::Sha256;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::package::{Package, VERSION, require_linux_x86_64};
use crate::libtorch;

const LAUNCHER: &str = include_str!("launcher.py");

/// Writes the wheel to `out_dir` and returns its path.
///
/// # Errors
/// Another machine than Linux on x86_64; a failure of the file system.
pub(super) fn write(package: &Package, out_dir: &Path) -> Result<PathBuf> {
    require_linux_x86_64()?;
    let platform = format!("manylinux_2_{}_x86_64", package.glibc_minor);
    let path = out_dir.join(format!("vlm-{VERSION}-py3-none-{platform}.whl"));
    let file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
    let wheel = Wheel { zip: ZipWriter::new(file), record: String::new() };
    wheel.fill(package, &platform).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

struct Wheel {
    zip: ZipWriter<File>,
    /// The contents of the file `RECORD`: name, hash and size of every other file.
    record: String,
}

impl Wheel {
    fn fill(mut self, package: &Package, platform: &str) -> Result<()> {
        let launcher = LAUNCHER.replace("TORCH_VERSION", libtorch::VERSION);
        self.add("vlm/__init__.py", launcher.as_bytes(), 0o644)?;
        self.add("vlm/__main__.py", b"from vlm import main\n\nmain()\n", 0o644)?;
        self.add("vlm/bin/vlm", &read(&package.program)?, 0o755)?;
        for (path, relative) in package.data_files()? {
            let name = format!("vlm/data/{}", relative.display());
            self.add(&name, &read(&path)?, 0o644)?;
        }
        let info = format!("vlm-{VERSION}.dist-info");
        for (path, name) in package.licenses() {
            self.add(&format!("{info}/licenses/{name}"), &read(&path)?, 0o644)?;
        }
        self.add(&format!("{info}/METADATA"), metadata().as_bytes(), 0o644)?;
        let wheel = format!(
            "Wheel-Version: 1.0\nGenerator: xtask\nRoot-Is-Purelib: false\nTag: \
             py3-none-{platform}\n"
        );
        self.add(&format!("{info}/WHEEL"), wheel.as_bytes(), 0o644)?;
        let scripts = b"[console_scripts]\nvlm = vlm:main\n";
        self.add(&format!("{info}/entry_points.txt"), scripts, 0o644)?;
        let record = format!("{}{info}/RECORD,,\n", self.record);
        self.add(&format!("{info}/RECORD"), record.as_bytes(), 0o644)?;
        self.zip.finish()?.sync_all()?;
        Ok(())
    }

    /// Adds a file with the permissions `mode`, which pip keeps.
    fn add(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .unix_permissions(mode);
        self.zip.start_file(name, options)?;
        self.zip.write_all(content)?;
        let hash = base64::encode_config(Sha256::digest(content), URL_SAFE_NO_PAD);
        self.record += &format!("{name},sha256={hash},{}\n", content.len());
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn metadata() -> String {
    format!(
        "Metadata-Version: 2.4\nName: vlm\nVersion: {VERSION}\nSummary: Pretrains small \
         vision-language models\nLicense-Expression: MIT OR Apache-2.0\nLicense-File: \
         LICENSE-MIT\nLicense-File: LICENSE-APACHE\nRequires-Python: >=3.9\nRequires-Dist: \
         torch=={}\n\n`vlm pretrain` trains a demo, `vlm --help` lists the commands.\n",
        libtorch::VERSION
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::workspace::Workspace;

    #[test]
    fn the_wheel_pins_the_version_of_torch_that_the_program_was_built_with() {
        assert!(metadata().contains(&format!("\nRequires-Dist: torch=={}\n", libtorch::VERSION)));
        assert!(LAUNCHER.contains("torch==TORCH_VERSION"));
    }

    #[test]
    fn the_wheel_lists_its_files_and_the_program_is_executable() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "abc").unwrap();
        let workspace = &Workspace::locate();
        let package = Package { workspace, program, glibc_minor: 31 };
        let path = write(&package, folder.path()).unwrap();
        assert!(path.ends_with(format!("vlm-{VERSION}-py3-none-manylinux_2_31_x86_64.whl")));
        let mut zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
        let program = zip.by_name("vlm/bin/vlm").unwrap();
        assert_eq!(program.unix_mode().unwrap() & 0o777, 0o755);
        drop(program);
        let names: Vec<String> = zip.file_names().map(str::to_owned).collect();
        let mut record = String::new();
        let name = format!("vlm-{VERSION}.dist-info/RECORD");
        zip.by_name(&name).unwrap().read_to_string(&mut record).unwrap();
        // The SHA-256 of "abc" in FIPS 180-2, appendix B.1, in base64.
        let line = "vlm/bin/vlm,sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3\n";
        assert!(record.contains(line), "{record}");
        assert_eq!(record.lines().count(), names.len());
        assert!(names.iter().any(|name| name == "vlm/data/demo-lm/lm.safetensors"), "{names:?}");
    }
}
