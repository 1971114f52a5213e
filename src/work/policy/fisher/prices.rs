//! The losses of groups in types, predicted from gradients; or, for a model without gradients, from squared errors and a measurement of
//! each group.

use std::collections::BTreeMap;

use crate::action::Gradients;
use crate::digest::BlobDigest;
use crate::fisher::Measured;
use crate::fisher::Routing;
use crate::method::Solving;
use crate::method::fisher::Document;
use crate::observer::Phase;
use crate::observer::Unit;
use crate::policy;
use crate::policy::Loss;
use crate::policy::Probe;
use crate::policy::Role;
use crate::policy::Sensitivity;
use crate::policy::TensorGroup;
use crate::prose;
use crate::tensor_type::TensorType;
use crate::work::GradientsIndex;
use crate::work::MomentsIndex;
use crate::work::StepError;
use crate::work::blocks::Block;
use crate::work::blocks::BlockOptions;
use crate::work::blocks::TokenizedCorpus;
use crate::work::documents::decode;
use crate::work::join::Slices;
use crate::work::perform::fact_of;
use crate::work::probe::ProbeRunner;
use crate::work::probe::Variant;
use crate::work::references::Reference;
use crate::work::tensors::Tensors;

use super::super::stored::Stored;

/// How estimates become losses.
enum Scale {
    /// They are losses.
    Nats,
    /// They are losses, and the decisions of routers that change come on top.
    Routed(Routing),
    /// They are squared errors: what one of a group costs.
    Sensitivities(BTreeMap<String, Sensitivity>),
}

/// Prices options.
pub(super) struct Prices<'s, 't> {
    stored: Stored<'s, 't>,
    method: &'s Document,
    /// The chunks that gradients are of.
    blocks: Vec<Block>,
    groups: BTreeMap<&'s str, &'s TensorGroup>,
    plain: Tensors,
    refined: Option<Tensors>,
    gradients: Option<GradientsIndex>,
    moments: Option<MomentsIndex>,
    scale: Scale,
    /// The estimates of options with the quantizer's own bytes.
    estimates: BTreeMap<Probe, f64>,
    /// Those of options with refined codes.
    of_refined: BTreeMap<Probe, f64>,
    /// What losses are multiplied with, by kind of tensor.
    factors: BTreeMap<Role, f64>,
}

impl<'s, 't> Prices<'s, 't> {
    /// Collects gradients.
    pub(super) fn new(
        stored: Stored<'s, 't>,
        method: &'s Document,
        solving: &'s Solving<'_>,
        slices: Slices,
    ) -> Result<Self, StepError> {
        let context = stored.context;
        let store = context.store();
        let located = context.located();
        let model = located.model(&method.model)?;
        let tensors = |slices: Slices| Tensors::of_model(context, model, slices, method.imatrix, method.quantizer);
        let refined = match method.rounding {
            Some(rounding) => {
                let mut refined = tensors(slices.clone())?;
                refined.refine(store, Some(rounding))?;
                Some(refined)
            }
            None => None,
        };
        let plain = tensors(slices)?;
        let tokenized = TokenizedCorpus {
            corpus: method.corpus,
            tokenizer: method.tokenizer,
            engine: method.evaluator,
        };
        let layout = BlockOptions::spread(method.context, method.chunks, method.block);
        let blocks = tokenized.blocks(context, layout)?;
        let chunks: usize = blocks.iter().map(|block| block.chunks.len()).sum();
        let action = method.gradients();
        if context.may_run(&action)? {
            let what = format!("gradients of {}", prose::count(chunks as u64, "chunk"));
            context.begin_phase(Phase::Gradients, what, (chunks as u64, chunks as f64), true);
            context.weigh_chunks(1.0);
        }
        let collected = context.perform_part("gradients", &action)?;
        let gradients = match fact_of::<String>(&collected.result, Gradients::MISSING) {
            Ok(reason) => {
                context.warn(format!(
                    "no gradients of this model: {reason}; its losses are squared errors, scaled by one measurement of each group"
                ));
                None
            }
            Err(_) => Some(decode(
                store,
                "index of gradients",
                collected.output(Gradients::INDEX)?,
            )?),
        };
        let moments = method
            .rounding
            .map(|rounding| decode(store, "index of second moments", rounding.moments));
        Ok(Self {
            stored,
            method,
            blocks,
            groups: solving
                .groups
                .iter()
                .map(|group| (group.name.as_str(), group))
                .collect(),
            plain,
            refined,
            gradients,
            moments: moments.transpose()?,
            scale: Scale::Nats,
            estimates: BTreeMap::new(),
            of_refined: BTreeMap::new(),
            factors: BTreeMap::new(),
        })
    }

    /// Says whether codes are refined.
    pub(super) fn refines(&self) -> bool {
        self.refined.is_some()
    }

    /// Says whether losses are divergences in nats per token.
    pub(super) fn is_in_nats(&self) -> bool {
        !matches!(&self.scale, Scale::Sensitivities(found) if found.is_empty())
    }

    /// Prices options with the quantizer's own bytes, and measures some of them if gradients do not tell all.
    pub(super) fn plain(&mut self, options: &[Probe]) -> Result<(), StepError> {
        self.estimates = self.estimate(options, false)?;
        let routers = |group: &&TensorGroup| self.routers(group) > 0;
        self.scale = if self.gradients.is_none() {
            Scale::Sensitivities(self.sensitivities()?)
        } else if self.groups.values().any(routers) {
            self.routing()?.map_or(Scale::Nats, Scale::Routed)
        } else {
            Scale::Nats
        };
        Ok(())
    }

    /// Returns the loss of an option with the quantizer's own bytes.
    pub(super) fn of_plain(&self, probe: &Probe) -> Option<(Probe, Loss)> {
        let estimate = self.estimates.get(probe)?;
        Some((probe.clone(), self.loss(probe, *estimate)))
    }

    /// Refines options, and returns their losses.
    pub(super) fn refined(&mut self, options: &[Probe]) -> Result<Vec<(Probe, Loss)>, StepError> {
        let estimates = self.estimate(options, true)?;
        self.of_refined.extend(estimates.clone());
        let losses = estimates.into_iter().map(|(probe, estimate)| {
            let loss = self.loss(&probe, estimate);
            (probe, loss)
        });
        Ok(losses.collect())
    }

    /// Returns the losses of all options that were refined.
    pub(super) fn of_refined(&self) -> impl Iterator<Item = (Probe, Loss)> {
        let all = self.of_refined.iter();
        all.map(|(probe, estimate)| (probe.clone(), self.loss(probe, *estimate)))
    }

    /// Multiplies the losses of each kind of tensor with a factor.
    pub(super) fn correct(&mut self, factors: &BTreeMap<Role, f64>) {
        for (role, factor) in factors {
            *self.factors.entry(*role).or_insert(1.0) *= factor;
        }
    }

    /// Returns the tensors of a group.
    pub(super) fn members(&self, group: &str) -> &[usize] {
        self.groups.get(group).map_or(&[], |group| group.members.as_slice())
    }

    /// Returns the kind of a group's tensors.
    pub(super) fn role(&self, group: &str) -> Option<Role> {
        let first = self.members(group).first()?;
        Some(Role::of(&self.stored.facts.tensors[*first].name))
    }

    fn loss(&self, probe: &Probe, estimate: f64) -> Loss {
        let factor = self.role(&probe.0).and_then(|role| self.factors.get(&role));
        let loss = self.uncorrected(probe, estimate);
        let factor = factor.copied().unwrap_or(1.0);
        Loss {
            mean: loss.mean * factor,
            variance: loss.variance * factor * factor,
            ..loss
        }
    }

    fn uncorrected(&self, probe: &Probe, estimate: f64) -> Loss {
        match &self.scale {
            Scale::Nats => super::exactly(estimate),
            Scale::Routed(routing) => {
                let routers = self.groups.get(probe.0.as_str()).map_or(0, |group| self.routers(group));
                super::exactly(routing.loss(estimate, routers))
            }
            Scale::Sensitivities(found) => found.get(&probe.0).unwrap_or(&Sensitivity::ONE).loss(estimate),
        }
    }

    /// Returns the number of routers after a group's first tensor.
    fn routers(&self, group: &TensorGroup) -> u64 {
        let facts = self.stored.facts;
        let members = group.members.iter().map(|at| facts.tensors[*at].name.as_str());
        members
            .map(|name| policy::routers_after(facts, name))
            .max()
            .unwrap_or(0)
    }

    /// Estimates what options cost.
    fn estimate(&self, options: &[Probe], is_refined: bool) -> Result<BTreeMap<Probe, f64>, StepError> {
        let context = self.stored.context;
        let tensors = self.refined.as_ref().filter(|_| is_refined).unwrap_or(&self.plain);
        let known = options
            .iter()
            .filter_map(|probe| Some((probe, *self.groups.get(probe.0.as_str())?)));
        let known: Vec<(&Probe, &TensorGroup)> = known.collect();
        let (mut compared, mut refined) = (0, 0);
        for (probe, group) in &known {
            for at in &group.members {
                let tensor = tensors.get(*at)?;
                compared += tensor.bytes.len;
                if is_refined && tensors.moments_of(tensor, probe.1).is_some() {
                    refined += tensor.bytes.len;
                }
            }
        }
        context.expect(Unit::BytesCompared, compared);
        if refined > 0 {
            context.expect(Unit::BytesRefined, refined);
        }
        let mut found = BTreeMap::new();
        // Tensors with the same input follow each other and share its factorization.
        let mut order: Vec<(usize, &Probe, &TensorGroup)> = known
            .into_iter()
            .map(|(probe, group)| {
                let first = group.members.first().and_then(|at| self.plain.get(*at).ok());
                let place = first.and_then(|tensor| tensors.input_of(tensor)).unwrap_or(0);
                (place, probe, group)
            })
            .collect();
        order.sort_by_key(|(place, probe, _)| (*place, *probe));
        for (_, probe, group) in order {
            let mut sum = 0.0;
            for at in &group.members {
                context.check_cancel()?;
                sum += self.of_tensor(tensors, *at, probe.1)?;
            }
            found.insert(probe.clone(), sum);
        }
        Ok(found)
    }

    fn of_tensor(&self, tensors: &Tensors, at: usize, ty: TensorType) -> Result<f64, StepError> {
        let context = self.stored.context;
        let tensor = tensors.get(at)?;
        let moments = self.moments_of(&tensor.name, &tensor.dims);
        if let Some(gradients) = &self.gradients {
            // What no gradient reaches costs nothing.
            let Some(factors) = gradients.weights.get(&tensor.name) else {
                return Ok(0.0);
            };
            return Ok(tensors.loss(context, tensor, ty, Some(*factors), moments)?.total());
        }
        let errors = match moments {
            Some(moments) => tensors.loss(context, tensor, ty, None, Some(moments))?.products,
            None => tensors.errors(context, tensor, ty)?.errors,
        };
        let store = context.store();
        let counts = tensors.counts(store, &tensor.name)?;
        Ok(policy::squared_error(&errors, &counts, tensors.tokens(store)?))
    }

    /// Returns the second moments of a tensor's input: those of the chunks for validation, which refining did not see, if there are any.
    fn moments_of(&self, name: &str, dims: &[u64]) -> Option<BlobDigest> {
        let found = self.moments.as_ref()?.of_weight(name)?;
        let matrices: u64 = dims.iter().skip(2).product();
        let fits = Some(&found.input.columns) == dims.first() && found.input.matrices == matrices;
        fits.then(|| found.validation.unwrap_or(found.moments))
    }

    /// Measures options on the chunks that gradients are of, with the quantizer's own bytes.
    fn measure_options(&self, probes: &[&Probe]) -> Result<Vec<Vec<f64>>, StepError> {
        let variant = |probe: &&Probe| -> Variant {
            let members = self.members(&probe.0).iter();
            members.map(|at| (*at, probe.1)).collect()
        };
        let variants: Vec<Variant> = probes.iter().map(variant).collect();
        let what = format!("{} of single groups", prose::count(probes.len() as u64, "measurement"));
        self.measure_with(&self.plain, Phase::Screen, &what, &variants, &self.blocks)
    }

    /// Measures variants on the model, with refined codes if they are refined: each chunk's divergence without that of the unchanged
    /// model, in nats per token.
    pub(super) fn measure(
        &self,
        phase: Phase,
        what: &str,
        variants: &[Variant],
        blocks: &[Block],
    ) -> Result<Vec<Vec<f64>>, StepError> {
        let tensors = self.refined.as_ref().unwrap_or(&self.plain);
        self.measure_with(tensors, phase, what, variants, blocks)
    }

    fn measure_with(
        &self,
        tensors: &Tensors,
        phase: Phase,
        what: &str,
        variants: &[Variant],
        blocks: &[Block],
    ) -> Result<Vec<Vec<f64>>, StepError> {
        let Self { stored, method, .. } = self;
        let context = stored.context;
        // The last one is the model itself.
        let variants: Vec<Variant> = variants.iter().cloned().chain([Variant::new()]).collect();
        let located = context.located();
        let model = located.model(&method.model)?;
        let reference = Reference {
            model: model.compute,
            tokenizer: method.tokenizer,
            context: method.context,
            engine: method.evaluator,
        };
        let mut runner = ProbeRunner::new(context, reference, model.hyperparameters, tensors, blocks)?;
        let mut found = runner.divergences(phase, what, &variants, 0..blocks.len())?;
        let null = found.pop().unwrap_or_default();
        for chunks in &mut found {
            chunks
                .iter_mut()
                .zip(&null)
                .for_each(|(with, without)| *with -= without);
        }
        Ok(found)
    }

    /// Measures one type of each group.
    fn sensitivities(&self) -> Result<BTreeMap<String, Sensitivity>, StepError> {
        let probes: Vec<&Probe> = self.middle_types(self.groups.keys().copied());
        let measured = self.measure_options(&probes)?;
        let mut found = BTreeMap::new();
        for (probe, chunks) in probes.iter().zip(measured) {
            let error = self.estimates.get(*probe).copied().unwrap_or(0.0);
            if let Some(sensitivity) = Sensitivity::of(&[(error, chunks)]) {
                found.insert(probe.0.clone(), sensitivity);
            }
        }
        policy::lift_sensitivities(&mut found);
        Ok(found)
    }

    /// Measures some groups of a mixture, spread over its layers.
    fn routing(&self) -> Result<Option<Routing>, StepError> {
        let mut routed: Vec<(usize, &str)> = self
            .groups
            .iter()
            .filter(|(_, group)| self.routers(group) > 0)
            .filter_map(|(name, group)| Some((*group.members.first()?, *name)))
            .collect();
        routed.sort_unstable();
        let count = (self.method.probes as usize).min(routed.len());
        if count == 0 {
            return Ok(None);
        }
        let spread = (0..count).map(|at| routed[(2 * at + 1) * routed.len() / (2 * count)].1);
        let probes = self.middle_types(spread);
        let measured = self.measure_options(&probes)?;
        let known: Vec<Measured> = probes
            .iter()
            .zip(measured)
            .filter_map(|(probe, chunks)| {
                Some(Measured {
                    estimate: *self.estimates.get(*probe)?,
                    loss: policy::mean(&chunks),
                    routers: self.routers(self.groups.get(probe.0.as_str())?),
                })
            })
            .collect();
        Ok(Routing::fit(&known))
    }

    /// Returns the middle type of each of some groups, of those with an estimate.
    fn middle_types<'g>(&self, groups: impl Iterator<Item = &'g str>) -> Vec<&Probe> {
        let middle = |group: &str| {
            let options = self
                .estimates
                .iter()
                .filter(|((name, _), estimate)| name == group && **estimate > 0.0);
            let types: Vec<TensorType> = options.map(|((_, ty), _)| *ty).collect();
            let ty = policy::probed_types(&types, 1).first().copied()?;
            self.estimates.keys().find(|(name, own)| name == group && *own == ty)
        };
        groups.filter_map(middle).collect()
    }
}
