//! A loaded model whose gradients can be computed.
//!
//! llama.cpp computes the chunk, `trace` captures what the gradients need, and the code in `adjoint` goes back through the graph.
//! The context differs from that of an evaluation: a chunk is one batch, attention is made of products and a softmax instead of a
//! fused kernel, and the key-value cache is in F32, so that what is differentiated is what is computed. Roundings that remain (a
//! product with an F16 weight rounds its input, one with a quantized weight quantizes it) count as no change.
//!
//! Values of a part of the graph are in memory at a time. If the graph has several parts, llama.cpp first computes all of it, and
//! forge keeps what each part begins with. Each part but the last one is then computed once more from there.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Deref;
use std::ops::DerefMut;
use std::ptr::NonNull;

use llama_cpp_sys_2 as ffi;

use super::log::Capture;
use super::model::Form;
use super::model::LoadedModel;
use super::sys::Callback;
use super::sys::Context;
use super::trace::LoadedWeights;
use super::trace::Run;
use super::trace::Trace;
use crate::engine::Cancel;
use crate::engine::EachGradient;
use crate::engine::EngineError;
use crate::engine::GradientOptions;
use crate::engine::Labels;
use crate::engine::Loss;
use crate::engine::ModelFiles;
use crate::engine::Options;
use crate::engine::adjoint::backward::Backward;
use crate::engine::adjoint::graph::Graph;
use crate::engine::adjoint::graph::Node;
use crate::engine::adjoint::needs::Needs;
use crate::engine::adjoint::sampling;

/// llama.cpp's name of the node that computes the logits.
const LOGITS: &str = "result_output";

/// llama.cpp holds the pointer, so it is no box.
struct OwnedTrace(NonNull<Trace>);

impl Drop for OwnedTrace {
    fn drop(&mut self) {
        // SAFETY: it comes from a box, and the context that had it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Deref for OwnedTrace {
    type Target = Trace;

    fn deref(&self) -> &Trace {
        // SAFETY: it lives as long as this. llama.cpp changes it only while it computes, which takes the context, and with it
        // what holds both, borrowed mutably.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for OwnedTrace {
    fn deref_mut(&mut self) -> &mut Trace {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

/// A loaded model whose gradients can be computed: the embedded engine's [`Gradients`](crate::engine::Gradients).
pub struct GradientModel {
    /// Dropped before the trace and the model.
    context: Context,
    trace: OwnedTrace,
    // The weights lie in the model and are gone with it.
    model: LoadedModel,
    weights: BTreeMap<usize, NonNull<ffi::ggml_tensor>>,
    logits: usize,
}

// SAFETY: the pointers are into the model and to the trace, which are owned here and may move between threads; they are used
// only with the model borrowed mutably.
unsafe impl Send for GradientModel {}

impl GradientModel {
    /// Loads a GGUF model for chunks of `context` tokens, and learns its graph.
    ///
    /// # Errors
    ///
    /// As [`LoadedModel::open`]; [`EngineError::Gradient`] names a node that no gradient can be computed through;
    /// [`EngineError::GradientMemory`] if a part of the graph that cannot be cut takes more memory than is allowed;
    /// [`EngineError::Cancelled`].
    pub fn open(
        files: ModelFiles,
        options: &Options,
        context: u32,
        gradients: GradientOptions,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let model = LoadedModel::open_on_host(files, *options, context)?;
        let mut trace = OwnedTrace(NonNull::from(Box::leak(Box::default())));
        let callback: Callback = super::trace::receive;
        let data = trace.0.as_ptr().cast();
        let mut context = model.make_context(Form::Gradients, Some((callback, data)), &Capture::begin())?;
        trace.learn();
        model.visit(&mut context, cancel)?;
        let learned = trace.take_learned()?;
        let graph = learned.graph;
        let logits = logits_of(&graph, &model)?;
        let needs = Needs::new(&graph, gradients.memory).map_err(|missing| EngineError::Gradient {
            node: missing.node,
            what: format!("{} has no rule", missing.what),
        })?;
        if needs.flows[logits].is_none() {
            return Err(EngineError::Gradient {
                node: LOGITS.to_owned(),
                what: "it does not depend on a product with a weight".to_owned(),
            });
        }
        if needs.largest > gradients.memory {
            return Err(EngineError::GradientMemory {
                needed: needs.largest,
                limit: gradients.memory,
            });
        }
        trace.set(graph, needs);
        Ok(Self {
            context,
            trace,
            model,
            weights: learned.weights,
            logits,
        })
    }

    /// Returns the size of the vocabulary: logits per position.
    pub fn vocabulary_size(&self) -> usize {
        self.model.vocabulary_size()
    }

    /// Returns the memory that a chunk takes beside the model and its context, in bytes.
    pub fn memory(&self) -> u64 {
        let logits = u64::from(self.model.context()) * self.model.vocabulary_size() as u64 * 4;
        // The logits, and their gradient next to the gradient of what they were computed from.
        let values = self.trace.learned().map_or(0, |learned| learned.1.bytes);
        values + 2 * logits
    }

    /// Returns into how many parts the graph is cut.
    pub fn parts(&self) -> usize {
        self.trace.learned().map_or(0, |learned| learned.1.segments.len())
    }

    /// Computes a chunk and its gradients; see [`Gradients::gradients`](crate::engine::Gradients::gradients).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn gradients(
        &mut self,
        chunk: &[i32],
        first: usize,
        labels: Labels<'_>,
        cancel: &Cancel,
        each: &mut EachGradient<'_>,
    ) -> Result<Loss, EngineError> {
        self.model.check_chunk(0, chunk)?;
        let vocabulary = self.model.vocabulary_size();
        if let Labels::Given(labels) = labels {
            self.model.check_chunk(0, labels)?;
        }
        let learned = self.trace.learned().cloned().unwrap_or_default();
        let (graph, needs) = &*learned;
        let segments = &needs.segments;
        let mut logits = Vec::with_capacity(chunk.len() * vocabulary);
        self.trace.run(Run::first(segments));
        let computed = self
            .model
            .logits_in(&mut self.context, chunk, 0, cancel, &mut |_, rows| {
                logits.extend(rows.iter().copied().flatten());
                Ok(())
            });
        let mut run = finish(&mut self.trace, computed)?;
        let loss = sampling::to_gradient(&mut logits, vocabulary, chunk, first, labels);
        let loss = loss.ok_or_else(|| EngineError::Gradient {
            node: LOGITS.to_owned(),
            what: "there are not as many logits as positions".to_owned(),
        })?;
        let mut held = std::mem::take(&mut run.kept);
        let mut values = std::mem::take(&mut run.values);
        let at = graph.nodes[self.logits].output.clone();
        let mut backward = Backward::new(graph, needs, &at, logits);
        for (number, segment) in segments.iter().enumerate().rev() {
            if number + 1 < segments.len() {
                let from = held.remove(&segment.nodes.start).unwrap_or_default();
                self.trace.run(Run::again(segment, from));
                let computed = self.model.walk(&mut self.context, chunk, 0, cancel);
                values = finish(&mut self.trace, computed)?.values;
            }
            let weights = LoadedWeights(&self.weights);
            backward.go(segment.nodes.clone(), &values, &weights, cancel, each)?;
            values.clear();
        }
        Ok(loss)
    }
}

/// Ends a computation of llama.cpp. An error of the trace comes first: it ended the computation.
fn finish(trace: &mut Trace, computed: Result<(), EngineError>) -> Result<Run, EngineError> {
    match (trace.take_run(), computed) {
        (_, Err(EngineError::Cancelled)) => Err(EngineError::Cancelled),
        (Ok(run), Ok(())) => Ok(run),
        (Ok(_), Err(error)) | (Err(error), _) => Err(error),
    }
}

/// Returns the number of the node that computes the logits.
fn logits_of(graph: &Graph, model: &LoadedModel) -> Result<usize, EngineError> {
    let is_logits = |node: &Node| !node.is_idle && node.name == LOGITS;
    let at = graph.nodes.iter().rposition(is_logits);
    let shape = [model.vocabulary_size(), model.context() as usize, 1, 1];
    at.filter(|at| graph.nodes[*at].output.counts == shape)
        .ok_or_else(|| EngineError::Gradient {
            node: LOGITS.to_owned(),
            what: "the graph has no such node with logits of all positions".to_owned(),
        })
}

impl std::fmt::Debug for GradientModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradientModel")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
