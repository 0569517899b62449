//! Filling a model's variables from a file.

use std::collections::HashSet;
use std::fmt;

use tch::{Kind, Tensor};

use super::{Weights, WeightsError};

/// A tensor whose shape in the file is not the model's.
#[derive(Debug, Clone, PartialEq)]
pub struct Misshapen {
    /// The tensor.
    pub name: String,
    /// The model's shape.
    pub expected: Vec<i64>,
    /// The file's shape.
    pub found: Vec<i64>,
}

/// How a file and a model fit each other, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadReport {
    /// How many variables were filled.
    pub num_loaded: usize,
    /// In the model, not in the file; after a successful load only those that were allowed to be.
    pub missing: Vec<String>,
    /// In the file, not in the model, and not another name of something loaded: worth a warning.
    pub surplus: Vec<String>,
    /// In both, with different shapes; empty after a successful load.
    pub misshapen: Vec<Misshapen>,
    /// Filled, but from another dtype: `(name, dtype in the file)`.
    pub converted: Vec<(String, Kind)>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Misshapen { name, expected, found } in &self.misshapen {
            write!(f, "\n  {name}: the model has shape {expected:?}, the file {found:?}")?;
        }
        for name in &self.missing {
            write!(f, "\n  {name}: not in the file")?;
        }
        if !self.surplus.is_empty() {
            write!(f, "\n  in the file alone: {}", self.surplus.join(", "))?;
        }
        Ok(())
    }
}

impl Weights {
    /// Copies every variable's values from the tensor of its name, converted to the variable's
    /// dtype and device. Variables for which `may_be_missing` says yes keep their values when the
    /// file has none. The names and shapes are compared before anything is copied.
    /// # Errors
    /// [`WeightsError::Misfit`] when a variable is missing or has another shape, naming each with
    /// the expected and the found shape; [`WeightsError::NotFinite`] for values that are not finite
    /// in the variable's dtype, after which some variables may be filled; files that cannot be read.
    pub fn load_into(
        &self,
        variables: &[(String, Tensor)],
        may_be_missing: impl Fn(&str) -> bool,
    ) -> Result<LoadReport, WeightsError> {
        let report = self.compare(variables);
        if !report.misshapen.is_empty() || report.missing.iter().any(|name| !may_be_missing(name)) {
            return Err(WeightsError::Misfit {
                path: self.path().to_owned(),
                report: Box::new(report),
            });
        }
        for (name, variable) in variables {
            if self.find(name).is_none() {
                continue;
            }
            let source = self.get(name)?;
            self.check_finite(name, &source.to_kind(variable.kind()))?;
            let mut target = variable.shallow_clone();
            tch::no_grad(|| target.f_copy_(&source)).map_err(WeightsError::tch(name))?;
        }
        Ok(report)
    }

    fn check_finite(&self, name: &str, values: &Tensor) -> Result<(), WeightsError> {
        let wrong = values.isfinite().logical_not();
        let count = wrong.sum(Kind::Int64).int64_value(&[]);
        if count == 0 {
            return Ok(());
        }
        let first = wrong.nonzero().select(0, 0);
        Err(WeightsError::NotFinite {
            path: self.path().to_owned(),
            name: name.to_owned(),
            count,
            numel: values.numel() as i64,
            first: Vec::try_from(first).map_err(WeightsError::tch(name))?,
        })
    }

    /// What [`Self::load_into`] would do.
    fn compare(&self, variables: &[(String, Tensor)]) -> LoadReport {
        let mut report = LoadReport::default();
        let mut wanted = HashSet::new();
        for (name, variable) in variables {
            wanted.insert(name.as_str());
            let Some(info) = self.find(name) else {
                report.missing.push(name.clone());
                continue;
            };
            let expected = variable.size();
            if info.shape != expected {
                report.misshapen.push(Misshapen {
                    name: name.clone(),
                    expected,
                    found: info.shape.clone(),
                });
                continue;
            }
            if info.kind != variable.kind() {
                report.converted.push((name.clone(), info.kind));
            }
            report.num_loaded += 1;
        }
        // A tied tensor is one tensor: whoever has one of its names has it all.
        let first_name =
            |name: &str, shared: &Option<String>| shared.clone().unwrap_or_else(|| name.to_owned());
        let loaded: HashSet<String> = self
            .infos()
            .iter()
            .filter(|info| wanted.contains(info.name.as_str()))
            .map(|info| first_name(&info.name, &info.shared_with))
            .collect();
        report.surplus = self
            .infos()
            .iter()
            .filter(|info| !wanted.contains(info.name.as_str()))
            .filter(|info| !loaded.contains(&first_name(&info.name, &info.shared_with)))
            .map(|info| info.name.clone())
            .collect();
        report
    }
}
