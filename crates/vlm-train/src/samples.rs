//! Writes `samples.jsonl`: some evaluation rows with the answers that the model generated for them,
//! for each evaluation, and the images of these rows to the folder `samples`.

use std::io::Write;
use std::path::Path;

use vlm_board::{SAMPLE_IMAGES, image_file_name};
use vlm_infer::evaluation::EvalSample;

use crate::TrainError;
use crate::events::{Event, EventSink};
use crate::out_dir::create_subfolder;
use crate::step_lines::StepLines;

/// Name of the file in a run's folder.
pub(crate) const FILE_NAME: &str = "samples.jsonl";

/// Appends the samples of the evaluations of a run to a file.
#[derive(Debug)]
pub(crate) struct SamplesFile(StepLines);

impl SamplesFile {
    /// Opens the file for a run that continues after `step`. Lines of later steps are removed,
    /// because the run repeats these steps.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub(crate) fn open_after(path: &Path, step: u64) -> Result<Self, TrainError> {
        StepLines::open_after(path, step).map(Self)
    }

    /// Writes the image of a sample, once in a run.
    fn write_image(&self, sample: &EvalSample) -> Result<(), TrainError> {
        let folder = self.0.path().with_file_name(SAMPLE_IMAGES);
        let path = folder.join(image_file_name(sample.row as u64));
        let Some(png) = sample.png.as_ref().filter(|_| !path.exists()) else { return Ok(()) };
        create_subfolder(&folder)?;
        vlm_torch::write_atomically(&path, |file| {
            file.write_all(png).map_err(|e| TrainError::at(&path, e))
        })
    }
}

impl EventSink for SamplesFile {
    /// Appends a line for each sample, and writes its image.
    ///
    /// # Errors
    /// A failure of the file system such as a full disk, with the path; the file was removed during
    /// the run.
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        let Event::Samples { step, samples } = event else { return Ok(()) };
        for sample in *samples {
            let mut line = serde_json::json!({ "step": step });
            let fields =
                serde_json::to_value(sample).map_err(|e| TrainError::at(self.0.path(), e))?;
            if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
                line.extend(fields.clone());
            }
            self.0.append(&line)?;
            self.write_image(sample)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_is_a_line_with_its_step_and_its_image_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let sample = EvalSample {
            row: 3,
            location: "a.jsonl:4".into(),
            question: "What?".into(),
            expected: "A dog.".into(),
            generated: "A cat.".into(),
            png: Some(b"png".into()),
        };
        let mut file = SamplesFile::open_after(&path, 0).unwrap();
        let samples = std::slice::from_ref(&sample);
        file.event(&Event::Samples { step: 7, samples }).unwrap();
        file.event(&Event::Ended).unwrap();
        let line = "{\"step\":7,\"row\":3,\"location\":\"a.jsonl:4\",\"question\":\"What?\",\
                    \"expected\":\"A dog.\",\"generated\":\"A cat.\"}\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line);
        assert_eq!(std::fs::read(folder.path().join("samples/3.png")).unwrap(), b"png");
    }
}
