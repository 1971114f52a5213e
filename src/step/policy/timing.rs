//! The phases of policies that measure or compare.
//!
//! How many measurements a search needs depends on what it measures. The numbers here are what it needed for several models
//! (`docs/benchmarks.md`, "Estimated and measured times").

use std::collections::BTreeMap;

use crate::fisher::Shape;
use crate::method::Probing;
use crate::method::Solving;
use crate::observer::Phase;
use crate::policy::ModelFacts;
use crate::policy::routers_after;
use crate::recipe::model::PolicyStep;
use crate::step::Env;
use crate::step::refining;
use crate::step::space::Header;
use crate::step::space::Headers;
use crate::step::timing;
use crate::tensor_type::TensorType;
use crate::timing::Amounts;
use crate::timing::Forward;
use crate::timing::Operation;
use crate::timing::PhaseWork;
use crate::timing::Purpose;
use crate::work::BlockOptions;

use super::cost::Choice;
use super::cost::probed_of;
use super::document::keep_of;
use super::measures_on;
use super::preliminary::assumed_imatrix;
use super::preliminary::likely_types;

/// Measurements of undecided types, compared with the first measurements.
const UNDECIDED: f64 = 0.6;
/// Choices that are measured as a whole before the refinement.
const CHOICES: f64 = 4.0;
/// Rounds of refinement that a search needs.
const ROUNDS: f64 = 2.5;
/// Moves in a round, compared with the number of groups.
const MOVES: f64 = 1.8;
/// The time of a computation for gradients, compared with one for log-probabilities: attention is not fused, and values are copied.
const GRADIENT_PASSES: f64 = 1.5;
/// Kinds of tensors that a choice is measured without, with the choice itself.
const KINDS: f64 = 9.0;
/// Options that are refined, compared with the number of groups.
const NEAR: f64 = 2.5;
/// The share of the chunks that a move is measured on: half of them, and all if it could be made.
const OF_MOVE: f64 = 0.7;
/// The factor within which the number of these measurements is.
const SEARCH_SPREAD: f64 = 1.6;

/// Returns the phases of a policy, without the log-probabilities of the model itself: nothing of policies that neither measure nor
/// compare, and if the recipe does not fit the model. What the store has of it is not considered.
pub(super) fn phases(step: &PolicyStep, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
    if step.method.needs().is_empty() {
        return Vec::new();
    }
    let Some(forward) = headers.forward(&step.model, env) else {
        return Vec::new();
    };
    let chunks = measures_on(step).map(|(corpus, cut)| {
        let measured = BlockOptions {
            sample: crate::work::ChunkSample::Spread,
            ..cut
        };
        let all = timing::chunks_of(corpus, &step.model, cut, env, headers);
        (timing::chunks_of(corpus, &step.model, measured, env, headers), all, cut)
    });
    let Some(header) = headers.of(&step.model, env) else {
        return Vec::new();
    };
    let types = likely_types(step, header);
    let shape = chunks.and_then(|(.., cut)| shape_of(header, cut.context));
    let Some(facts) = header.facts.as_ref() else {
        return Vec::new();
    };
    let Some(constraints) = step.method.constraints() else {
        return Vec::new();
    };
    let Ok(solving) = Solving::of(facts, assumed_imatrix(step), &constraints.document(keep_of(step))) else {
        return Vec::new();
    };
    let options = solving.options();
    let probing = step.method.probing();
    let kept = match probing {
        Probing::All { most: Some(most), .. } => (most as f64 / options.len().max(1) as f64).min(1.0),
        _ => 1.0,
    };
    let mut phases = of_tensors(facts, &options, kept);
    let Some((measured, all, cut)) = chunks else {
        return phases;
    };
    // Of `count` variants, each on a number of chunks: the shares of the model that are computed, added up.
    let work = |phase: Phase, (shares, count): (f64, f64), chunks: f64| {
        let weight = count * forward.weight(shares / count.max(1.0), cut.context);
        // The search changes single groups of a choice, and the measurements before it single groups of the model.
        let types = types
            .as_deref()
            .filter(|_| matches!(phase, Phase::Choices | Phase::Refine));
        let amounts = forward.variants(types, shares * chunks, count * chunks, cut.context);
        PhaseWork::new(
            phase,
            weight * chunks,
            amounts.and(&timing::actions(count * chunks, cut.block)),
        )
    };
    let whole = (1.0, 1.0);
    let probed = probed_of(probing, &options);
    let count = probed.iter().filter(|probed| **probed).count() as f64 * kept;
    let probes = (shares(&forward, facts, &options, &probed) * kept, count);
    let mut unchanged = work(Phase::Unchanged, whole, all);
    unchanged.amounts = unchanged.amounts.and(&forward.load(None));
    if !matches!(probing, Probing::Gradients { .. }) {
        phases.push(unchanged);
    }
    let is_measured = !matches!(probing, Probing::None | Probing::Gradients { .. });
    if is_measured && step.rounding.is_some() {
        let probed = options.iter().zip(&probed).filter(|(_, probed)| **probed);
        let members = probed.flat_map(|((group, ty), _)| group.members.iter().map(|at| (*at, *ty)));
        phases.push(refining::phase(facts, members).times(kept));
    }
    match probing {
        Probing::None => {}
        Probing::Gradients { probes, corrections } => {
            let computed = gradients(&forward, shape, env.machine.memory(), cut, measured);
            phases.push(computed);
            if step.rounding.is_some() {
                let likely = facts.tensors.iter().zip(types.as_deref().unwrap_or_default());
                let changed = likely.enumerate().filter(|(_, (tensor, to))| tensor.ty != **to);
                let codes = refining::phase(facts, changed.map(|(at, (_, to))| (at, *to)));
                phases.push(codes.times(NEAR).spread(SEARCH_SPREAD));
            }
            let is_mixture = solving
                .groups
                .iter()
                .flat_map(|group| &group.members)
                .any(|at| routers_after(facts, &facts.tensors[*at].name) > 0);
            let groups = (solving.groups.len() as f64).min(f64::from(probes));
            if is_mixture && groups > 0.0 {
                // And the model itself.
                phases.push(work(Phase::Screen, (0.5 * groups + 1.0, groups + 1.0), measured));
            }
            if corrections > 0 {
                // The choice without each kind of tensor, and on other chunks before and after, each time with the model itself.
                let wholes = (
                    f64::from(corrections) * KINDS + 4.0,
                    f64::from(corrections) * KINDS + 4.0,
                );
                phases.push(work(Phase::Choices, wholes, measured));
            }
        }
        Probing::OfEachGroup(_) => phases.push(work(Phase::Screen, probes, measured)),
        Probing::All { screen, rounds, .. } => {
            let block = f64::from(cut.block.max(1));
            let screened = ((screen as f64 / block).ceil() * block).min(measured);
            let groups = solving.groups.len() as f64;
            let rounds = ROUNDS.min(f64::from(rounds));
            let validation = if all > measured { all - measured } else { measured };
            phases.push(work(Phase::Screen, probes, screened));
            let again = work(Phase::Undecided, probes, UNDECIDED * screened);
            phases.push(again.spread(SEARCH_SPREAD));
            phases.push(work(Phase::Choices, whole, CHOICES * validation));
            // In each round, the moves and the whole choice; a group is as likely to be at the beginning of the model as at its end.
            let moves = rounds * MOVES * groups;
            let mut refining = work(Phase::Refine, (0.5 * moves, moves), OF_MOVE * measured);
            let wholes = work(Phase::Refine, whole, rounds * (measured + validation));
            refining.total += wholes.total;
            refining.amounts = refining.amounts.and(&wholes.amounts);
            phases.push(refining.spread(SEARCH_SPREAD));
        }
    }
    phases
}

/// Returns the phase of gradients: the model is computed once, and nearly once more where its values do not fit into memory, and each
/// weight is multiplied with once more, in forge's own products.
fn gradients(forward: &Forward, shape: Option<Shape>, limit: u64, cut: BlockOptions, chunks: f64) -> PhaseWork {
    let passes = shape.map_or(2.0, |shape| shape.forward_passes(limit));
    let mut computing = timing::computing(
        Phase::Gradients,
        (forward, None),
        GRADIENT_PASSES * passes * chunks,
        cut,
        Purpose::Reference,
    );
    let products = forward.multiply_adds(cut.context) * chunks;
    computing.amounts.add(Operation::Product, products);
    computing.total = chunks;
    computing
}

/// Returns the sizes that decide on what the gradients of a chunk take. Of layers that differ, the widest.
fn shape_of(header: &Header, context: u32) -> Option<Shape> {
    let facts = header.facts.as_ref()?;
    let key = |name: &str| header.metadata.get_u64(&format!("{}.{name}", facts.architecture));
    let widest = |part: &str, dim: usize| {
        let named = facts.tensors.iter().filter(|tensor| tensor.name.contains(part));
        named
            .filter_map(|tensor| tensor.dims.get(dim))
            .max()
            .copied()
            .unwrap_or(0)
    };
    let used = key("expert_used_count").unwrap_or(1).max(1);
    let inner = widest("ffn_down.", 0).max(widest("ffn_down_shexp", 0)) + used * widest("ffn_down_exps", 0);
    Some(Shape {
        layers: u64::from(facts.layers),
        embedding: key("embedding_length")?,
        queries: widest("attn_output.", 0),
        keys_and_values: widest("attn_k.", 1) + widest("attn_v.", 1),
        heads: u64::from(facts.heads),
        inner,
        vocabulary: widest("token_embd.", 1),
        context: u64::from(context),
    })
}

/// Returns the memory that a policy takes beside the models that it loads.
pub(super) fn memory(step: &PolicyStep, env: &Env<'_>, headers: &mut Headers<'_>) -> u64 {
    let limit = env.machine.memory();
    let Some(header) = headers.of(&step.model, env) else {
        return 0;
    };
    let context = measures_on(step).map(|(_, cut)| cut.context);
    let shape = context.and_then(|context| shape_of(header, context));
    let gradients = match step.method.probing() {
        Probing::Gradients { .. } => shape.map_or(0, |shape| shape.bytes(limit)),
        _ => 0,
    };
    if step.rounding.is_none() || step.method.needs().is_empty() {
        return gradients;
    }
    let refining = header.facts.as_ref().zip(likely_types(step, header));
    gradients.max(refining.map_or(0, |(facts, types)| refining::memory(facts, &types)))
}

/// Returns the phases of quantizing and comparing tensors in all types that their groups may have.
fn of_tensors(facts: &ModelFacts, options: &[Choice<'_>], kept: f64) -> Vec<PhaseWork> {
    let (mut quantizing, mut comparing, mut bytes) = (Amounts::default(), Amounts::default(), 0.0);
    for (group, ty) in options {
        for tensor in group.members.iter().filter_map(|&at| facts.tensors.get(at)) {
            let weights = tensor.dims.iter().product::<u64>();
            bytes += tensor.ty.tensor_bytes(&tensor.dims).unwrap_or_default() as f64;
            quantizing.add(Operation::Quantize(*ty), weights);
            quantizing.add(Operation::Hash, ty.tensor_bytes(&tensor.dims).unwrap_or_default());
            quantizing.add(Operation::Commit, 1_u64);
            comparing.add(Operation::Compare(*ty), weights);
            comparing.add(Operation::Commit, 1_u64);
        }
    }
    vec![
        PhaseWork::new(Phase::Quantize, bytes * kept, quantizing.times(kept)),
        PhaseWork::new(Phase::Compare, bytes * kept, comparing.times(kept)),
    ]
}

/// Returns the sum, over the probes, of the share of the model that is computed for each.
fn shares(forward: &Forward, facts: &ModelFacts, options: &[Choice<'_>], probed: &[bool]) -> f64 {
    let variants: Vec<BTreeMap<usize, TensorType>> = options
        .iter()
        .zip(probed)
        .filter(|(_, probed)| **probed)
        .map(|((group, ty), _)| {
            let changed = group.members.iter().filter(|at| facts.tensors[**at].ty != *ty);
            changed.map(|at| (*at, *ty)).collect()
        })
        .collect();
    forward.shares(&variants).into_iter().sum()
}
