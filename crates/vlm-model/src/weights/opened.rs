//! Opened weights files.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use super::error::{Refusal, WeightsError};
use super::open::{self, Content, Resolved};
use super::pth::PthFile;
use super::safetensors::SafetensorsFile;
use super::tensor_info::TensorInfo;
use super::transform::Transform;

/// The named tensors of an opened file or of several shards. Values are read when they are
/// requested.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    parts: Vec<Part>,
    pub(super) infos: Vec<TensorInfo>,
    /// The part of each tensor, and the tensor's index in it.
    pub(super) places: Vec<(usize, usize)>,
    /// What is done with each tensor after it is read, see `derive.rs`.
    pub(super) transforms: Vec<Vec<Transform>>,
    pub(super) by_name: HashMap<String, usize>,
    nested_under: Option<String>,
}

/// An opened file.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Pth(PthFile),
    Safetensors(SafetensorsFile),
}

/// A row of [`Weights::summary`].
#[derive(Debug, Clone, PartialEq)]
pub struct SummaryRow {
    /// The description of the tensor.
    pub info: TensorInfo,
    /// Sum of all elements, in float64.
    pub sum: f64,
}

impl Weights {
    /// Opens a `.pth` (`.pt`, `.ckpt`, `.bin`), a `.safetensors`, an index of shards, or a folder
    /// with one of these or with all shards of a model. The format is recognised by the content and
    /// not by the name.
    ///
    /// # Errors
    /// [`WeightsError::Refused`] if the content cannot be used, [`WeightsError::Io`] if it cannot
    /// be read.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let given = path;
        let (path, shards) = match open::resolve(path)? {
            Resolved::File(path) => (path, Vec::new()),
            Resolved::Shards(shards) => (given.to_owned(), shards),
        };
        let mut weights = Self {
            path: path.clone(),
            parts: Vec::new(),
            infos: Vec::new(),
            places: Vec::new(),
            transforms: Vec::new(),
            by_name: HashMap::new(),
            nested_under: None,
        };
        if !shards.is_empty() {
            tracing::warn!(
                "{}: there is no index of its {} shards; all of them are read",
                path.display(),
                shards.len()
            );
            for shard in shards {
                let content = open::sniff(&shard)?;
                weights.add(shard, content)?;
            }
            return Ok(weights);
        }
        let content = open::sniff(&path)?;
        if content != Content::Index {
            weights.add(path, content)?;
            return Ok(weights);
        }
        for (part, names) in open::parts(&path)? {
            let content = open::sniff(&part)?;
            weights.add(part.clone(), content)?;
            let found: HashSet<_> = weights.parts_names(weights.parts.len() - 1).collect();
            if let Some(name) = names.iter().find(|name| !found.contains(name.as_str())) {
                let message =
                    format!("the index lists tensor {name:?} in this file; it is not there");
                return Err(Refusal(message).in_file(&part));
            }
        }
        Ok(weights)
    }

    /// The file that was opened. Of several, it is their index, or their folder if there is no
    /// index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this file, for callers that check its content.
    pub fn refused(&self, message: impl Into<String>) -> WeightsError {
        Refusal(message.into()).in_file(&self.path)
    }

    /// The key of the file's top dict (`model`, `state_dict`) under which the tensors were found.
    pub fn nested_under(&self) -> Option<&str> {
        self.nested_under.as_deref()
    }

    /// All tensors, in the order of the file.
    pub fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// Names in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.infos.iter().map(|info| info.name.as_str())
    }

    /// The description of the tensor `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.infos[index])
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.find(name).map(|info| info.shape.as_slice())
    }

    /// The dtype in the file of the tensor `name`, if there is one.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.find(name).map(|info| info.kind)
    }

    /// Reads a tensor. It is on the CPU, contiguous, of the file's dtype, and shares memory with no
    /// other tensor.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`] if there is no tensor `name`. The data cannot be read.
    pub fn get(&self, name: &str) -> Result<Tensor, WeightsError> {
        let Some(&index) = self.by_name.get(name) else {
            return Err(WeightsError::NoTensor { path: self.path.clone(), name: name.to_owned() });
        };
        let (part, number) = self.places[index];
        let Part { path, reader } = &self.parts[part];
        let stored = match reader {
            Reader::Pth(file) => file.read(number, name),
            Reader::Safetensors(file) => file.read(number, path),
        }?;
        self.transforms[index]
            .iter()
            .try_fold(stored, |tensor, transform| transform.apply(&tensor))
            .map_err(WeightsError::tch(name))
    }

    /// Reads all tensors. Tied tensors share their memory, so that they stay tied when saved.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn all(&self) -> Result<Vec<(String, Tensor)>, WeightsError> {
        let mut read: HashMap<&str, Tensor> = HashMap::new();
        for info in &self.infos {
            let shared = info
                .shared_with
                .as_deref()
                .and_then(|first| read.get(first))
                .map(Tensor::shallow_clone);
            let tensor = shared.map_or_else(|| self.get(&info.name), Ok)?;
            read.insert(&info.name, tensor);
        }
        Ok(self
            .names()
            .filter_map(|name| Some((name.to_owned(), read.get(name)?.shallow_clone())))
            .collect())
    }

    /// The description and the sum of every tensor, for display.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn summary(&self) -> Result<Vec<SummaryRow>, WeightsError> {
        self.infos
            .iter()
            .map(|info| {
                let sum = self
                    .get(&info.name)?
                    .f_sum(Kind::Double)
                    .map_err(WeightsError::tch(&info.name))?;
                let sum = f64::try_from(&sum).map_err(WeightsError::tch(&info.name))?;
                Ok(SummaryRow { info: info.clone(), sum })
            })
            .collect()
    }

    fn add(&mut self, path: PathBuf, content: Content) -> Result<(), WeightsError> {
        let (reader, infos, nested_under) = match content {
            Content::Pth => {
                let (file, infos, nested_under) = PthFile::open(&path)?;
                (Reader::Pth(file), infos, nested_under)
            }
            Content::Safetensors => {
                let (file, infos) = SafetensorsFile::open(&path)?;
                (Reader::Safetensors(file), infos, None)
            }
            Content::Index => {
                return Err(
                    Refusal("it is an index of shards; expected weights".to_owned()).in_file(&path)
                );
            }
        };
        for (number, info) in infos.into_iter().enumerate() {
            if self.by_name.insert(info.name.clone(), self.infos.len()).is_some() {
                return Err(
                    Refusal(format!("tensor {:?} is in two shards", info.name)).in_file(&path)
                );
            }
            self.infos.push(info);
            self.places.push((self.parts.len(), number));
            self.transforms.push(Vec::new());
        }
        self.nested_under = self.nested_under.take().or(nested_under);
        self.parts.push(Part { path, reader });
        Ok(())
    }

    fn parts_names(&self, part: usize) -> impl Iterator<Item = &str> {
        self.names()
            .zip(&self.places)
            .filter(move |(_, place)| place.0 == part)
            .map(|(name, _)| name)
    }
}
