//! `method = "measured"`: the loss of each group of tensors in each type is measured on the model, and the best choice within the
//! budget is solved exactly.
//!
//! All options are measured on a few chunks, and those that could be part of the best choice on all. Choices by these losses and by
//! squared errors are measured as a whole, and the search starts from the best of them: changes of single groups are measured, with
//! all other groups as in the choice, and a new choice is taken only if its measured loss is smaller. Whole choices are evaluated on
//! other chunks than those that were used to choose types.

mod refine;
mod scan;

use std::collections::BTreeSet;

use crate::method::Chosen;
use crate::method::Limits;
use crate::method::Solving;
use crate::method::chosen;
use crate::method::measured::Document;
use crate::policy;
use crate::policy::Probe;
use crate::prose;
use crate::work::Context;
use crate::work::StepError;
use crate::work::blocks::BlockOptions;
use crate::work::blocks::TokenizedCorpus;
use crate::work::join::Slices;
use crate::work::probe::ProbeRunner;
use crate::work::references::Reference;
use crate::work::tensors::Tensors;

use super::error::compare;
use super::stored::Stored;

use scan::Scan;

/// Measures, and chooses.
pub(super) fn choose(stored: Stored<'_, '_>, method: &Document, slices: Slices) -> Result<Chosen, StepError> {
    let Stored { context, facts, has } = stored;
    let solving = Solving::of(facts, has, &method.constraints)?;
    let devices = &method.constraints.devices;
    let limits = solving.limits(&stored, &method.header, method.budget, devices, method.states)?;
    let probes = worth_probing(stored, &solving, &limits, method.max_probes)?;
    let located = context.located();
    let model = located.model(&method.model)?;
    let load = |slices| Tensors::of_model(context, model, slices, method.imatrix, method.quantizer);
    let plain = load(slices.clone())?;
    let mut tensors = load(slices)?;
    tensors.refine(context.store(), method.rounding)?;
    let tokenized = TokenizedCorpus {
        corpus: method.corpus,
        tokenizer: method.tokenizer,
        engine: method.evaluator,
    };
    let layout = BlockOptions::spread(method.context, method.chunks, method.block).with_held_out();
    let blocks = tokenized.blocks(context, layout)?;
    let reference = Reference {
        model: method.model,
        tokenizer: method.tokenizer,
        context: method.context,
        engine: method.evaluator,
    };
    let runner = ProbeRunner::new(context, reference, model.hyperparameters, &tensors, &blocks)?;
    let mut scan = Scan::new(stored, &solving, limits, runner, (method.chunks, method.screen))?;
    let first = scan.screen(&probes)?;
    let probed: BTreeSet<&Probe> = probes.iter().collect();
    let mut options = solving.options();
    options.retain(|(group, ty)| probed.contains(&(group.name.clone(), *ty)));
    // Refining makes the errors of outputs smaller, and with that those of single weights larger.
    let errors = compare(context, options, &plain)?;
    let errors = errors
        .into_iter()
        .map(|known| ((known.group.name.clone(), known.ty), known.error));
    let mut incumbent = scan.second_opinions(first, &errors.collect())?;
    let predicted = incumbent.predicted;
    incumbent = scan.refine(incumbent, method.refine)?;
    report(context, &scan, &incumbent, predicted);
    let mut table = incumbent.prepared.table(&incumbent.answer);
    table.predicted_loss = Some(format!("{:e}", incumbent.predicted));
    table.probed_loss = Some(policy::Probed {
        mean: format!("{:e}", policy::mean(&incumbent.validation)),
        deviation: format!("{:e}", policy::variance(&incumbent.validation).sqrt()),
        chunks: u32::try_from(incumbent.validation.len()).unwrap_or(u32::MAX),
        context: method.context,
    });
    Ok(chosen(
        &incumbent.prepared,
        &incumbent.answer,
        incumbent.base.as_ref(),
        table,
    )?)
}

/// Returns at most `most` probes, those that are most likely to be chosen by estimated losses. If nothing fits the budget, this fails
/// before anything is measured.
fn worth_probing(
    stored: Stored<'_, '_>,
    solving: &Solving<'_>,
    limits: &Limits,
    most: Option<u64>,
) -> Result<Vec<Probe>, StepError> {
    let guessed = policy::prior(stored.facts, &solving.groups, &solving.types);
    let (prepared, answer) = solving.solve(&stored, &guessed, limits)?;
    let most = most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    let options = solving.options();
    let probes = options.iter().map(|(group, ty)| (group.name.clone(), *ty));
    if options.len() <= most {
        return Ok(probes.collect());
    }
    let probes: BTreeSet<Probe> = probes.collect();
    let mut ranked: Vec<(bool, f64, Probe)> = Vec::new();
    for (group, options) in prepared.priced(&answer) {
        for option in options {
            let probe = (group.clone(), option.ty);
            if probes.contains(&probe) {
                ranked.push((!option.chosen, option.cost, probe));
            }
        }
    }
    // The choice by estimated losses comes first, so that a choice within the budget exists.
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    let least = ranked.iter().filter(|(not_chosen, ..)| !not_chosen).count();
    if most < least {
        return Err(StepError::input_hint(
            format!("`max_probes` is {most}, but a choice within the budget needs at least {least} probes"),
            "raise `max_probes`, or fuse tensors into fewer groups",
        ));
    }
    stored.context.note(format!(
        "measuring {most} of {}: the types that are most likely to be chosen, by estimated losses",
        prose::count(probes.len() as u64, "possible probe")
    ));
    ranked.truncate(most);
    let mut worth: Vec<Probe> = ranked.into_iter().map(|(_, _, probe)| probe).collect();
    worth.sort();
    Ok(worth)
}

/// Prints the measured loss of the choice, and the loss predicted from single groups.
fn report(context: &Context<'_>, scan: &Scan<'_, '_>, incumbent: &scan::Incumbent, alone: f64) {
    let together = incumbent.lost;
    let chunks = if scan.has_validation_chunks() {
        "chunks that were not used to choose types"
    } else {
        "the same chunks that were used to choose types"
    };
    let first = if incumbent.round > 0 {
        format!(
            " (before {} of refinement: {:.6})",
            prose::count(u64::from(incumbent.round), "round"),
            scan.first_loss()
        )
    } else {
        String::new()
    };
    context.note(format!(
            "measured loss of the complete choice: {together:.6}{first}, on {chunks}; predicted from the losses of single groups: {alone:.6}"
        ));
}
