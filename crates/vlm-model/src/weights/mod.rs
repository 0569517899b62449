//! Weights in and out: `.pth` as PyTorch writes it, `.safetensors`, whole or in parts.
//!
//! Files may come from strangers: nothing in them is executed, and what they claim about sizes is
//! checked before it is believed. Knows names, shapes and dtypes; not which model they make.

mod archive;
mod error;
mod foreign;
mod load;
mod open;
mod pickle;
mod pth;
mod rebuild;
mod rename;
mod safetensors;
mod shards;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use vlm_torch::Heartbeat;

pub use error::WeightsError;
pub use load::{LoadReport, Misshapen};
pub use shards::save_shards;

use error::Refusal;
use open::{Content, Resolved};
pub use open::{hub_name, require_there};
use pth::PthFile;
use safetensors::SafetensorsFile;

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Full dotted name.
    pub name: String,
    /// Lengths of its dimensions.
    pub shape: Vec<i64>,
    /// Dtype in the file.
    pub kind: Kind,
    /// The first name of the same tensor, when this is a further one (tied weights of a `.pth`, or
    /// of a `.safetensors` that was written here; the format itself has no such thing).
    pub shared_with: Option<String>,
}

/// A row of [`Weights::summary`].
#[derive(Debug, Clone, PartialEq)]
pub struct SummaryRow {
    /// Name, shape, dtype, and of what it is a further name.
    pub info: TensorInfo,
    /// Sum of all elements, added in f64.
    pub sum: f64,
}

/// The two formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A plain dict that `torch.load(path, weights_only=True)` reads; tied storage stays tied.
    Pth,
    /// Hugging Face's format; a tensor with two names is written twice, with a note that it is one.
    Safetensors,
}

impl Format {
    /// By the name of a file to be written.
    /// # Errors
    /// Another extension than `.pth`, `.pt`, `.bin` or `.safetensors`.
    pub fn of(path: &Path) -> Result<Self, WeightsError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pth" | "pt" | "bin") => Ok(Self::Pth),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => {
                Err(Refusal("its name should end in .pth or .safetensors".to_owned()).in_file(path))
            }
        }
    }
}

/// Named tensors of an opened file or set of files; their values stay on the disk until asked for.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    parts: Vec<Part>,
    infos: Vec<TensorInfo>,
    /// For each tensor, its part and its number there.
    places: Vec<(usize, usize)>,
    by_name: HashMap<String, usize>,
    nested_under: Option<String>,
}

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

impl Weights {
    /// Opens a `.pth` (`.pt`, `.ckpt`, `.bin`), a `.safetensors`, an index of parts, or a folder with
    /// one of these or with all shards of a model. The content decides, not the name.
    /// # Errors
    /// [`WeightsError::Refused`] with the reason; [`WeightsError::Io`].
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
            by_name: HashMap::new(),
            nested_under: None,
        };
        if !shards.is_empty() {
            tracing::warn!(
                "{}: no index of its {} shards; all of them are read",
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
                let message = format!("the index says that tensor {name:?} is here, but it is not");
                return Err(Refusal(message).in_file(&part));
            }
        }
        Ok(weights)
    }

    /// The file that was opened; of several, their index, or the folder of shards without one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this file, for who knows what it should hold.
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

    /// A tensor's description, `None` when there is none of this name.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.infos[index])
    }

    /// A tensor's shape, `None` when there is none of this name.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.find(name).map(|info| info.shape.as_slice())
    }

    /// A tensor's dtype in the file, `None` when there is none of this name.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.find(name).map(|info| info.kind)
    }

    /// Reads a tensor: on the CPU, contiguous, of the file's dtype, in memory of its own.
    /// # Errors
    /// [`WeightsError::NoTensor`]; data that cannot be read.
    pub fn get(&self, name: &str) -> Result<Tensor, WeightsError> {
        let Some(&index) = self.by_name.get(name) else {
            return Err(WeightsError::NoTensor { path: self.path.clone(), name: name.to_owned() });
        };
        let (part, number) = self.places[index];
        let Part { path, reader } = &self.parts[part];
        match reader {
            Reader::Pth(file) => file.read(number, name),
            Reader::Safetensors(file) => file.read(number, path),
        }
    }

    /// Every tensor; further names of a tied tensor share its memory, so that they stay tied when
    /// saved.
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

    /// Name, shape, dtype, sum and sharing of every tensor, for a person to look at.
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
                return Err(Refusal(
                    "it is an index of parts, where weights are expected".to_owned(),
                )
                .in_file(&path));
            }
        };
        for (number, info) in infos.into_iter().enumerate() {
            if self.by_name.insert(info.name.clone(), self.infos.len()).is_some() {
                return Err(
                    Refusal(format!("tensor {:?} is in two parts", info.name)).in_file(&path)
                );
            }
            self.infos.push(info);
            self.places.push((self.parts.len(), number));
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

/// What makes two tensors the same values in the same memory: address, shape and strides.
type View = (usize, Vec<i64>, Vec<i64>);

fn view_of(tensor: &Tensor) -> View {
    (tensor.data_ptr() as usize, tensor.size(), tensor.stride())
}

/// Writes named tensors to a file that appears whole or not at all (temporary name, fsync, rename).
/// # Errors
/// A name that occurs twice, a dtype that the format lacks, the file system's.
pub fn save(path: &Path, tensors: &[(String, Tensor)], format: Format) -> Result<(), WeightsError> {
    save_with(path, tensors, format, None)
}

/// As [`save`]; for `heartbeat` see [`vlm_torch::write_atomically_with`].
/// # Errors
/// As [`save`].
pub fn save_with(
    path: &Path,
    tensors: &[(String, Tensor)],
    format: Format,
    heartbeat: Option<Heartbeat>,
) -> Result<(), WeightsError> {
    if format == Format::Pth {
        return Ok(vlm_torch::save_pth_with(path, tensors, heartbeat)?);
    }
    let mut seen = HashSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(Refusal(format!("the name {name:?} occurs twice among the tensors to save"))
            .in_file(path));
    }
    vlm_torch::write_atomically_with(path, heartbeat, |file| {
        safetensors::write(file, tensors, path)
    })
}
