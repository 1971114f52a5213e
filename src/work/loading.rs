//! Working with models: each is loaded when it is first needed, and found loaded after that.

use std::collections::BTreeMap;

use super::Context;
use super::LocatedModel;
use super::StepError;
use super::locked;
use super::models::Batch;
use super::models::Probing;
use super::models::take;
use crate::digest::Fingerprint;
use crate::engine::EngineError;
use crate::engine::GradientOptions;
use crate::engine::Gradients;
use crate::engine::Model;
use crate::engine::ModelFiles;
use crate::engine::Prober;
use crate::engine::Role;
use crate::engine::Tokenizer;
use crate::fs;
use crate::prose;

/// Why a model has no gradients.
#[derive(Debug)]
pub(super) struct NoGradients(pub(super) String);

/// Opens the files of a model, which must be those whose digests were taken.
fn files_of(model: &LocatedModel) -> Result<ModelFiles, StepError> {
    let files = model.files.iter().map(|file| Ok((file.path.clone(), file.open()?)));
    let files = files.collect::<Result<Vec<_>, StepError>>()?;
    ModelFiles::new(files).map_err(StepError::engine("loading a model"))
}

impl Context<'_> {
    /// Works with the vocabulary of a model.
    pub(super) fn with_tokenizer<T>(
        &self,
        engine: Fingerprint,
        model: &LocatedModel,
        work: impl FnOnce(&dyn Tokenizer) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let key = (engine, model.tokenizer, 0);
        let models = self.machine.models;
        let tokenizer = match take(&models.tokenizer, &key) {
            Some(tokenizer) => tokenizer,
            None => self
                .machine
                .engine(Role::Evaluator, &engine)?
                .tokenizer(&files_of(model)?)
                .map_err(StepError::engine("reading the model's vocabulary"))?,
        };
        let done = work(tokenizer.as_ref());
        *locked(&models.tokenizer) = Some((key, tokenizer));
        done
    }

    /// Works with a model that is loaded for chunks of `context` tokens.
    pub(super) fn with_model<T>(
        &self,
        engine: Fingerprint,
        model: &LocatedModel,
        context: u32,
        work: impl FnOnce(&mut dyn Model) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let key = (engine, model.compute, context);
        let models = self.machine.models;
        let mut loaded = if let Some(loaded) = take(&models.model, &key) {
            loaded
        } else {
            models.release_all();
            let files = files_of(model)?;
            let what = format!("loading `{}`", files.path().display());
            let engine = self.machine.engine(Role::Evaluator, &engine)?;
            engine.model(files, context).map_err(StepError::engine(what))?
        };
        // A model whose work failed is not used again: what state it is in is not known.
        let done = work(loaded.as_mut())?;
        *locked(&models.model) = Some((key, loaded));
        Ok(done)
    }

    /// Works with a model that is loaded for the gradients of chunks of `context` tokens. Returns why there are none if the model computes
    /// something that no gradient goes through.
    pub(super) fn with_gradients<T>(
        &self,
        engine: Fingerprint,
        model: &LocatedModel,
        context: u32,
        work: impl FnOnce(&mut dyn Gradients) -> Result<T, StepError>,
    ) -> Result<Result<T, NoGradients>, StepError> {
        let key = (engine, model.compute, context);
        let models = self.machine.models;
        let mut gradients = if let Some(gradients) = take(&models.gradients, &key) {
            gradients
        } else {
            models.release_all();
            let files = files_of(model)?;
            let what = format!("loading `{}`", files.path().display());
            let engine = self.machine.engine(Role::Evaluator, &engine)?;
            let memory = self.machine.memory();
            let options = GradientOptions { memory };
            match engine.gradients(files, context, options, &self.machine.cancel) {
                Ok(gradients) => gradients,
                Err(error @ EngineError::Gradient { .. }) => return Ok(Err(NoGradients(error.to_string()))),
                Err(EngineError::GradientMemory { needed, .. }) => {
                    return Err(StepError::input_hint(
                        format!(
                            "the gradients of a layer take {} of memory, and {} may be used",
                            prose::bytes(needed),
                            prose::bytes(memory)
                        ),
                        "raise `memory` in `[pools]` of forge.toml, or choose a smaller `context`",
                    ));
                }
                Err(error) => return Err(StepError::engine(what)(error)),
            }
        };
        let done = work(gradients.as_mut())?;
        *locked(&models.gradients) = Some((key, gradients));
        Ok(Ok(done))
    }

    /// Says whether a model is loaded to have tensors replaced.
    pub(super) fn probes(&self, model: &LocatedModel) -> bool {
        let probing = locked(&self.machine.models.probing);
        probing
            .as_ref()
            .is_some_and(|((_, compute, _), _)| *compute == model.compute)
    }

    /// Works with a model that is loaded into memory, for chunks of `context` tokens, to have tensors replaced.
    pub(super) fn with_prober<T>(
        &self,
        engine: Fingerprint,
        model: &LocatedModel,
        context: u32,
        work: impl FnOnce(&mut Probing) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let key = (engine, model.compute, context);
        let models = self.machine.models;
        let mut probing = if let Some(probing) = take(&models.probing, &key) {
            probing
        } else {
            models.release_all();
            Box::new(Probing {
                prober: self.load_prober(engine, model, context)?,
                replaced: BTreeMap::new(),
                compute: None,
                known: BTreeMap::new(),
                batch: Batch::default(),
            })
        };
        let done = work(&mut probing)?;
        *locked(&models.probing) = Some((key, probing));
        Ok(done)
    }

    fn load_prober(
        &self,
        engine: Fingerprint,
        model: &LocatedModel,
        context: u32,
    ) -> Result<Box<dyn Prober>, StepError> {
        let needed: u64 = model.files.iter().map(|file| file.digest.len).sum();
        if let Some(free) = fs::free_memory()
            && free < needed
        {
            return Err(StepError::input_hint(
                format!(
                    "measuring types needs the whole model in memory: {}, and {} are free",
                    prose::bytes(needed),
                    prose::bytes(free)
                ),
                "measure on a machine with more memory, or choose by `method = \"error\"` with `probes = 0`, which needs no model in memory",
            ));
        }
        let files = files_of(model)?;
        let what = format!("loading `{}`", files.path().display());
        let engine = self.machine.engine(Role::Evaluator, &engine)?;
        engine
            .prober(files, context, &self.machine.cancel)
            .map_err(StepError::engine(what))
    }
}
