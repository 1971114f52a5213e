//! llama.cpp, linked in, as an [`Engine`].

use std::io::Write;
use std::sync::Arc;

use super::compare;
use super::gradient_model::GradientModel;
use super::identity;
use super::model::LoadedModel;
use super::probe_model::ProbeModel;
use super::quantize;
use super::refine;
use super::sys;
use super::vocabulary::Vocabulary;
use crate::engine::Cancel;
use crate::engine::Capability;
use crate::engine::CollectOptions;
use crate::engine::Collector;
use crate::engine::EachGradient;
use crate::engine::EachLogits;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::GradientOptions;
use crate::engine::Gradients;
use crate::engine::Identity;
use crate::engine::Isolation;
use crate::engine::Labels;
use crate::engine::Loss;
use crate::engine::MatrixError;
use crate::engine::MatrixRefinement;
use crate::engine::Model;
use crate::engine::ModelFiles;
use crate::engine::MomentsOf;
use crate::engine::Options;
use crate::engine::Prober;
use crate::engine::QuantizeJob;
use crate::engine::Quantizer;
use crate::engine::ReadAt;
use crate::engine::Refiner;
use crate::engine::Role;
use crate::engine::Scorer;
use crate::engine::Setting;
use crate::engine::SettingKind;
use crate::engine::SharedBytes;
use crate::engine::SumsOfRows;
use crate::engine::Tokenizer;
use crate::engine::Values;
use crate::engine::WeightInput;
use crate::fisher::InputRounding;
use crate::imatrix::Imatrix;
use crate::moments::Accumulator;
use crate::tensor_type::TensorType;

/// The engine's settings.
pub(in crate::engine) const SETTINGS: &[Setting] = &[
    Setting {
        key: "threads",
        kind: SettingKind::Integer { least: 1, most: 4096 },
    },
    Setting {
        key: "worker",
        kind: SettingKind::Boolean,
    },
];

/// Makes the engine.
pub(in crate::engine) fn new(threads: usize, settings: &Values) -> Arc<dyn Engine> {
    Arc::new(Embedded {
        options: Options { threads },
        worker: settings.boolean("worker").unwrap_or(true),
    })
}

/// llama.cpp, linked in.
#[derive(Debug)]
struct Embedded {
    options: Options,
    /// Whether models are loaded in a worker process.
    worker: bool,
}

impl Engine for Embedded {
    fn name(&self) -> &str {
        identity::NAME
    }

    fn capabilities(&self) -> &[Capability] {
        &[
            Capability::Tokenize,
            Capability::Collect,
            Capability::Moments,
            Capability::Score,
            Capability::Probe,
            Capability::Gradients,
            Capability::Quantize,
            Capability::Compare,
            Capability::Refine,
        ]
    }

    fn identity(&self, role: Role) -> Identity {
        match role {
            Role::Quantizer => identity::quantizer(),
            Role::Evaluator => identity::evaluator(),
        }
    }

    fn quick_identity(&self) -> String {
        let quantizer = identity::quantizer().fingerprint();
        // Without devices, what quantizes and what evaluates depend on the same facts.
        if identity::has_devices() {
            format!("{quantizer} {}", identity::evaluator().fingerprint())
        } else {
            quantizer.to_string()
        }
    }

    fn isolation(&self) -> Isolation {
        if self.worker {
            Isolation::Worker
        } else {
            Isolation::SameProcess
        }
    }

    fn check(&self) -> Result<(), EngineError> {
        identity::check_cpu()
    }

    fn tokenizer(&self, files: &ModelFiles) -> Result<Box<dyn Tokenizer>, EngineError> {
        Ok(Box::new(Vocabulary::open(files)?))
    }

    fn model(&self, files: ModelFiles, context: u32) -> Result<Box<dyn Model>, EngineError> {
        Ok(Box::new(LoadedModel::open(files, &self.options, context)?))
    }

    fn prober(&self, files: ModelFiles, context: u32, cancel: &Cancel) -> Result<Box<dyn Prober>, EngineError> {
        Ok(Box::new(ProbeModel::open(files, &self.options, context, cancel)?))
    }

    fn gradients(
        &self,
        files: ModelFiles,
        context: u32,
        options: GradientOptions,
        cancel: &Cancel,
    ) -> Result<Box<dyn Gradients>, EngineError> {
        Ok(Box::new(GradientModel::open(
            files,
            &self.options,
            context,
            options,
            cancel,
        )?))
    }

    fn quantizer(&self) -> Result<&dyn Quantizer, EngineError> {
        Ok(self)
    }

    fn refiner(&self) -> Result<&dyn Refiner, EngineError> {
        Ok(self)
    }
}

impl Quantizer for Embedded {
    fn quantize(
        &self,
        job: &QuantizeJob<'_>,
        read: &ReadAt<'_>,
        out: &mut (dyn Write + Send),
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<(), EngineError> {
        quantize::quantize(job, read, out, cancel, progress)
    }

    fn compare(
        &self,
        job: &QuantizeJob<'_>,
        read: &ReadAt<'_>,
        quantized: &[u8],
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<MatrixError>, EngineError> {
        compare::compare(job, read, quantized, cancel, progress)
    }

    fn sum_rows(
        &self,
        job: &QuantizeJob<'_>,
        matrix: u64,
        read: &ReadAt<'_>,
        quantized: &[u8],
        cancel: &Cancel,
        progress: &dyn Fn(u64),
        sums: &SumsOfRows<'_>,
    ) -> Result<Vec<f64>, EngineError> {
        compare::sum_rows(job, matrix, read, quantized, cancel, progress, sums)
    }

    fn input_rounding(&self, ty: TensorType) -> Option<InputRounding> {
        sys::input_rounding(ty)
    }
}

impl Refiner for Embedded {
    fn refine(
        &self,
        job: &QuantizeJob<'_>,
        moments: &mut MomentsOf<'_>,
        read: &ReadAt<'_>,
        quantized: &ReadAt<'_>,
        out: &mut (dyn Write + Send),
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<MatrixRefinement>, EngineError> {
        refine::refine(job, moments, read, quantized, out, cancel, progress)
    }
}

impl Tokenizer for Vocabulary {
    fn tokenize(&self, text: &str, parse_special: bool) -> Result<Vec<i32>, EngineError> {
        self.tokenize(text, parse_special)
    }

    fn first_token(&self) -> Option<i32> {
        self.add_bos().then(|| self.bos())
    }
}

impl Collector for LoadedModel {
    fn collect(
        &mut self,
        chunks: &[Vec<i32>],
        options: CollectOptions,
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<Imatrix, EngineError> {
        self.collect(chunks, options, cancel, progress)
    }

    fn inputs(&mut self, cancel: &Cancel) -> Result<Vec<WeightInput>, EngineError> {
        self.inputs(cancel)
    }

    fn moments(
        &mut self,
        chunks: &[Vec<i32>],
        inputs: &[WeightInput],
        cancel: &Cancel,
        progress: &dyn Fn(usize),
    ) -> Result<Vec<Accumulator>, EngineError> {
        self.moments(chunks, inputs, cancel, progress)
    }
}

impl Scorer for LoadedModel {
    fn vocabulary_size(&self) -> usize {
        self.vocabulary_size()
    }

    fn logits(
        &mut self,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        self.logits(chunk, first, cancel, each)
    }
}

impl Scorer for ProbeModel {
    fn vocabulary_size(&self) -> usize {
        self.vocabulary_size()
    }

    fn logits(
        &mut self,
        chunk: &[i32],
        first: usize,
        cancel: &Cancel,
        each: &mut EachLogits<'_>,
    ) -> Result<(), EngineError> {
        self.logits(chunk, first, cancel, each)
    }
}

/// Bytes behind a box, as what they are.
struct Boxed(SharedBytes);

impl std::ops::Deref for Boxed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Prober for ProbeModel {
    fn replace(&mut self, tensor: &str, ty: TensorType, bytes: SharedBytes) -> Result<(), EngineError> {
        self.replace(tensor, ty, Boxed(bytes))
    }

    fn restore(&mut self, tensor: &str) {
        self.restore(tensor);
    }

    fn place(&self, changed: &mut dyn Iterator<Item = &str>) -> usize {
        self.place(changed)
    }

    fn keep(
        &mut self,
        chunk: &[i32],
        first: usize,
        place: usize,
        limit: u64,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        self.keep(chunk, first, place, limit, cancel)
    }

    fn forget(&mut self) {
        self.forget();
    }
}

impl Gradients for GradientModel {
    fn gradients(
        &mut self,
        chunk: &[i32],
        first: usize,
        labels: Labels<'_>,
        cancel: &Cancel,
        each: &mut EachGradient<'_>,
    ) -> Result<Loss, EngineError> {
        self.gradients(chunk, first, labels, cancel, each)
    }

    fn memory(&self) -> u64 {
        self.memory()
    }
}
