//! Loads weights from a file into a model's parameters.

use std::collections::HashSet;

use tch::{Kind, Tensor};

use super::error::WeightsError;
use super::load_report::{LoadReport, Misshapen};
use super::opened::Weights;

impl Weights {
    /// Copies into each of `variables`, the named parameters of a model, the tensor with its name,
    /// converted to its dtype and device. Parameters for which `may_be_missing` returns true keep
    /// their values if the file does not have them. Names and shapes are compared before anything
    /// is copied.
    ///
    /// # Errors
    /// [`WeightsError::Misfit`] if a parameter is missing or has another shape.
    /// [`WeightsError::NotFinite`] if values are not finite in the parameter's dtype; some
    /// parameters may have been loaded then. The file cannot be read.
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

    /// The report of [`Self::load_into`].
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
        // A tied tensor is loaded if one of its names is.
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
