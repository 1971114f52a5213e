//! Measuring the speed of the machine with the engines of a recipe.

use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use super::StepError;
use crate::digest::Fingerprint;
use crate::engine::Cancel;
use crate::engine::Engine;
use crate::engine::Engines;
use crate::engine::Role;
use crate::tensor_type::TensorType;
use crate::timing::Speeds;
use crate::timing::calibration;

/// What the speed of a machine is measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureSpeeds {
    /// The engine that runs models.
    pub evaluator: Fingerprint,
    /// The engine that quantizes.
    pub quantizer: Fingerprint,
    /// The names of the tensor types to measure.
    pub types: Vec<String>,
    /// Whether what does not depend on a type is known already.
    pub has_rest: bool,
}

impl MeasureSpeeds {
    /// Measures in this process. `folder` is for temporary files.
    pub(super) fn measure_here(&self, engines: &Engines, folder: &Path, cancel: &Cancel) -> Result<Speeds, StepError> {
        let engine = |role: Role, fingerprint: Fingerprint| -> Result<&dyn Engine, StepError> {
            let found = engines.by_fingerprint(role, &fingerprint);
            found.ok_or(StepError::NoEngine { role, fingerprint })
        };
        let failed = |error: calibration::CalibrationError| {
            StepError::input(format!("the speed of the machine cannot be measured: {error}"))
        };
        let mut speeds = Speeds::assumed(rayon::current_num_threads());
        let types: Vec<TensorType> = self
            .types
            .iter()
            .filter_map(|name| TensorType::from_name(name))
            .collect();
        if !self.has_rest {
            calibration::measure_files(folder, &mut speeds).map_err(failed)?;
            calibration::measure_products(&mut speeds);
        }
        let quantizer = engine(Role::Quantizer, self.quantizer)?;
        calibration::measure_quantizer(quantizer, &types, &mut speeds, cancel).map_err(failed)?;
        let evaluator = engine(Role::Evaluator, self.evaluator)?;
        calibration::measure_evaluator(evaluator, folder, &types, &mut speeds, cancel).map_err(failed)?;
        Ok(speeds)
    }
}
