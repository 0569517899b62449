//! Named parameters: the tensors of a model under the names of its weights files.
//!
//! A model is built by asking a [`Scope`] for its parameters; the store keeps each under its full
//! dotted name, in the order of construction. It knows neither files nor optimizers.

use std::cell::RefCell;
use std::rc::Rc;

use tch::{Device, Kind, TchError, Tensor};

/// The initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Every element has this value.
    Const(f64),
    /// Normal distribution with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform distribution in `[-bound, bound]`.
    Uniform(f64),
}

/// A named parameter. The tensor shares its storage with the model's.
#[derive(Debug)]
pub struct Param {
    /// Full dotted name, as in the weights files: `layers.0.attention.wq.weight`.
    pub name: String,
    /// The values with which the model computes; `requires_grad` is set if they are trained.
    pub tensor: Tensor,
    /// The values of a parameter that is converted, see [`ParamStore::convert_frozen`].
    original: Option<Tensor>,
}

/// All parameters of one part of a model, in the order of construction.
#[derive(Debug)]
pub struct ParamStore {
    device: Device,
    params: Rc<RefCell<Vec<Param>>>,
}

impl ParamStore {
    /// An empty store whose parameters will be created on `device`, in float32.
    pub fn new(device: Device) -> Self {
        Self { device, params: Rc::default() }
    }

    /// The device that the parameters are on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The scope without a prefix.
    pub fn root(&self) -> Scope {
        Scope { device: self.device, params: Rc::clone(&self.params), prefix: String::new() }
    }

    /// The name and tensor of every parameter. The tensors share their storage with the model's,
    /// except while they are converted.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let named = |param: &Param| {
            let values = param.original.as_ref().unwrap_or(&param.tensor);
            (param.name.clone(), values.shallow_clone())
        };
        self.params.borrow().iter().map(named).collect()
    }

    /// As [`Self::named`], with the tensors with which the model computes.
    #[cfg(test)]
    pub(crate) fn computing(&self) -> Vec<(String, Tensor)> {
        self.params.borrow().iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
    }

    /// Another handle of the same parameters.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { device: self.device, params: Rc::clone(&self.params) }
    }

    /// Lets the model compute with the frozen parameters for which `is_factor(name)` holds
    /// converted to `kind`, until [`Self::restore`]. [`Self::named`] still gives the originals.
    ///
    /// # Errors
    /// There is no memory left; some parameters may be converted.
    pub(crate) fn convert_frozen(
        &self,
        kind: Kind,
        is_factor: impl Fn(&str) -> bool,
    ) -> Result<(), TchError> {
        for param in self.params.borrow_mut().iter_mut() {
            if param.tensor.requires_grad() || param.original.is_some() || !is_factor(&param.name) {
                continue;
            }
            let (converted, original) = (param.tensor.f_to_kind(kind)?, param.tensor.f_detach()?);
            param.tensor.set_data(&converted);
            param.original = Some(original);
        }
        Ok(())
    }

    /// Lets the model compute with the original values of all parameters.
    pub(crate) fn restore(&self) {
        for param in self.params.borrow_mut().iter_mut() {
            if let Some(original) = param.original.take() {
                param.tensor.set_data(&original);
            }
        }
    }

    /// The parameters that are trained, in the order of construction.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.named().into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
    }

    /// Number of elements of all parameters.
    pub fn num_elements(&self) -> i64 {
        self.params.borrow().iter().map(|p| p.tensor.numel() as i64).sum()
    }

    /// Sets `requires_grad` of every parameter to `is_trained(name)`.
    pub fn set_trainable(&self, is_trained: impl Fn(&str) -> bool) {
        for param in self.params.borrow_mut().iter_mut() {
            let on = is_trained(&param.name);
            param.tensor = param.tensor.set_requires_grad(on);
        }
    }
}

/// A prefix of names, under which parameters are created.
#[derive(Debug, Clone)]
pub struct Scope {
    device: Device,
    params: Rc<RefCell<Vec<Param>>>,
    prefix: String,
}

impl Scope {
    /// The scope one level down.
    pub fn sub(&self, name: impl std::fmt::Display) -> Scope {
        Scope { prefix: self.full_name(&name.to_string()), ..self.clone() }
    }

    /// The device on which this scope creates its parameters.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Creates a float32 parameter of `shape`, which is frozen until [`ParamStore::set_trainable`]
    /// is called.
    pub fn param(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let options = (Kind::Float, self.device);
        let tensor = match init {
            Init::Const(value) => Tensor::full(shape, value, options),
            Init::Normal(std) => Tensor::randn(shape, options) * std,
            Init::Uniform(bound) => Tensor::rand(shape, options) * (2.0 * bound) - bound,
        };
        let (name, shared) = (self.full_name(name), tensor.shallow_clone());
        let param = Param { name, tensor: shared, original: None };
        self.params.borrow_mut().push(param);
        tensor
    }

    /// The parameters that have been created below this scope, in the order of construction.
    pub fn tensors(&self) -> Vec<Tensor> {
        let below = self.full_name("");
        let params = self.params.borrow();
        let own = params.iter().filter(|param| param.name.starts_with(&below));
        own.map(|param| param.tensor.shallow_clone()).collect()
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_their_full_name_and_share_storage_with_the_model() {
        let store = ParamStore::new(Device::Cpu);
        let weight = store.root().sub("layers").sub(3).param("weight", &[2], Init::Const(1.0));
        let (name, mut tensor) = store.named().remove(0);
        assert_eq!(name, "layers.3.weight");
        let _ = tensor.fill_(7.0);
        assert_eq!(Vec::<f32>::try_from(&weight).unwrap(), [7.0, 7.0]);
    }

    #[test]
    fn only_the_chosen_parameters_are_trained() {
        let store = ParamStore::new(Device::Cpu);
        let first = store.root().param("a", &[1], Init::Const(0.0));
        let _ = store.root().param("b", &[1], Init::Const(0.0));
        store.set_trainable(|name| name == "a");
        assert!(first.requires_grad());
        assert_eq!(store.trainable().len(), 1);
    }
}
