//! `[imatrix.NAME]`: collected block by block, merged, or read from a foreign file.

use crate::action;
use crate::action::Action;
use crate::action::ImatrixBlock;
use crate::action::ImatrixCollect;
use crate::action::ImatrixImport;
use crate::action::ImatrixMerge;
use crate::digest::BlobDigest;
use crate::engine::CollectOptions;
use crate::engine::LoadedModel;
use crate::engine::ModelFiles;
use crate::engine::Options;
use crate::fs;
use crate::graph::Node;
use crate::graph::Work;
use crate::imatrix;
use crate::imatrix::MergeMode;
use crate::imatrix::Weight;
use crate::observer::Event;
use crate::observer::Unit;
use crate::recipe::model::CollectImatrix;
use crate::recipe::model::ImatrixStep;
use crate::recipe::model::MergeMode as RecipeMode;
use crate::recipe::model::StepBody;
use crate::recipe::model::WeightedImatrix;
use crate::report::words;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Made;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::Task;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::source_file::SourceFile;
use crate::step::tokens;

/// No imatrix is longer than this: one with every expert of the largest models known is some GB.
const IMATRIX_CAP: u64 = 1 << 36;

/// How many tokens a chunk of a legacy file is taken to have had, for the file does not say: what `llama-imatrix` takes
/// where it is not told. A power of two, so that no importance changes; it matters only where imatrices are added up.
const LEGACY_CHUNK: u32 = 512;

/// An imatrix.
pub struct Imatrix;

fn imatrix_step(node: &Node) -> Result<&ImatrixStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Imatrix(imatrix) => Ok(imatrix),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

fn collect_action(collect: &CollectImatrix, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let model = inputs.source(&collect.model)?;
    Ok(Action::ImatrixCollect(ImatrixCollect {
        model: model.output("compute")?,
        tokenizer: model.output("tokenizer")?,
        corpus: inputs.step(&collect.corpus)?.output("corpus")?,
        dataset: collect.corpus.label(),
        context: collect.context,
        chunks: collect.chunks,
        block: collect.block,
        process_output: collect.process_output,
        engine: env.evaluator.fingerprint(),
    }))
}

fn merge_action(parts: &[WeightedImatrix], mode: RecipeMode, inputs: &Inputs) -> Result<Action, StepError> {
    let imatrices = parts.iter().map(|part| inputs.step(&part.imatrix)?.output("imatrix"));
    Ok(Action::ImatrixMerge(ImatrixMerge {
        imatrices: imatrices.collect::<Result<_, _>>()?,
        mode: match mode {
            RecipeMode::Sum => action::MergeMode::Sum,
            RecipeMode::Mean => action::MergeMode::Mean,
            RecipeMode::Max => action::MergeMode::Max,
        },
        weights: parts.iter().map(|part| part.weight.millionths()).collect(),
    }))
}

impl Kind for Imatrix {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(match imatrix_step(node)? {
            ImatrixStep::Collect(collect) => key_of(collect_action(collect, inputs, env)?),
            ImatrixStep::Merge { inputs: parts, mode } => key_of(merge_action(parts, *mode, inputs)?),
            ImatrixStep::Import { source } => {
                let source = inputs.source(source)?;
                let file = source
                    .files
                    .first()
                    .map(|file| file.digest)
                    .ok_or_else(|| misplaced(node))?;
                key_of(Action::ImatrixImport(ImatrixImport { file }))
            }
        })
    }

    fn pool(&self, node: &Node) -> Pool {
        match imatrix_step(node) {
            Ok(ImatrixStep::Collect(_)) => Pool::Model,
            _ => Pool::Light,
        }
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        match imatrix_step(node)? {
            ImatrixStep::Collect(collect) => run_collect(collect, inputs, task),
            ImatrixStep::Merge { inputs: parts, mode } => run_merge(parts, *mode, inputs, task),
            ImatrixStep::Import { source } => {
                let source = inputs.source(source)?;
                import(task, source.files.first().ok_or_else(|| misplaced(node))?)
            }
        }
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let entries = outcome.number("entries").unwrap_or_default();
        format!("{}, {} chunks", words::count(entries, "tensor"), outcome.fact("chunks"))
    }
}

/// Reads an imatrix from the store.
pub fn load(env: &Env<'_>, digest: BlobDigest) -> Result<imatrix::Imatrix, StepError> {
    let bytes = env.store.read(&digest, IMATRIX_CAP)?;
    imatrix::Imatrix::parse(&bytes).map_err(|error| StepError::Document {
        what: "imatrix",
        problem: error.to_string(),
    })
}

/// Puts an imatrix into the store. One of zeros is refused here too, whether it was imported, merged or collected.
fn save(task: &Task<'_>, made: &mut Made, imatrix: &imatrix::Imatrix) -> Result<(), StepError> {
    let bytes = imatrix
        .to_gguf()
        .map_err(|error| StepError::input(format!("the imatrix cannot be written: {error}")))?;
    made.output("imatrix", task.env.store.put(&bytes)?);
    made.fact("entries", imatrix.entries.len());
    made.fact("chunks", imatrix.chunk_count);
    made.fact("dataset", imatrix.datasets.first().map_or("", String::as_str));
    Ok(())
}

/// Reads a foreign imatrix, of either form.
pub fn import(task: &Task<'_>, file: &SourceFile) -> Result<Outcome, StepError> {
    let action = Action::ImatrixImport(ImatrixImport { file: file.digest });
    let performed = task.perform(&action, std::slice::from_ref(file), |made| {
        let bytes = fs::read_open(&file.open()?, &file.path, IMATRIX_CAP)?;
        let imatrix = imatrix::Imatrix::parse(&bytes).map_err(|error| {
            let what = format!("`{}`: {error}", file.path.display());
            if error.is_no_memory() {
                StepError::NoMemory { what }
            } else {
                StepError::input(what)
            }
        })?;
        if imatrix.chunk_size == 0 {
            let message = format!(
                "`{}` does not say how many tokens its chunks had; they count as {LEGACY_CHUNK} each",
                file.path.display()
            );
            task.tell(Event::Note {
                step: task.step.clone(),
                message,
            });
        }
        save(task, made, &imatrix.with_chunk_size(LEGACY_CHUNK))
    })?;
    Ok(Outcome::of(performed, vec![file.clone()]))
}

fn run_collect(collect: &CollectImatrix, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
    let env = task.env;
    let model = inputs.source(&collect.model)?;
    let corpus = inputs.step(&collect.corpus)?;
    let performed = task.perform(&collect_action(collect, inputs, env)?, &[], |made| {
        let cut = tokens::Cut {
            context: collect.context,
            chunks: collect.chunks,
            block: collect.block,
            take: tokens::Take::First,
        };
        let blocks = tokens::blocks(task, model, corpus, cut)?;
        let total: u64 = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        let mut loaded = None;
        let mut sum: Option<imatrix::Imatrix> = None;
        for (at, block) in blocks.iter().enumerate() {
            let action = Action::ImatrixBlock(ImatrixBlock {
                model: model.output("compute")?,
                tokens: block.digest,
                context: collect.context,
                process_output: collect.process_output,
                engine: env.evaluator.fingerprint(),
            });
            let part = format!("block {at}");
            let performed = task.perform_part(&part, &action, &model.files, |made| {
                let loaded = match &mut loaded {
                    Some(loaded) => loaded,
                    none => none.insert(load_model(env, model, collect.context)?),
                };
                let options = CollectOptions {
                    process_output: collect.process_output,
                };
                let part = loaded
                    .collect(&block.chunks, options, &env.cancel, &|_| {
                        task.advance(Unit::Chunks, 1, total);
                    })
                    .map_err(StepError::engine("collecting the imatrix"))?;
                save(task, made, &part)
            })?;
            if performed.outcome != crate::observer::ActionOutcome::Ran {
                task.advance(Unit::Chunks, block.chunks.len() as u64, total);
            }
            let part = load(env, Outcome::of(performed, Vec::new()).output("imatrix")?)?;
            sum = Some(match sum.take() {
                None => part,
                Some(sum) => add(&sum, &part)?,
            });
        }
        let mut imatrix = sum.ok_or_else(|| StepError::input("the corpus has no chunk"))?;
        imatrix.datasets = vec![collect.corpus.label()];
        imatrix.chunk_count = u32::try_from(total).unwrap_or(u32::MAX);
        imatrix.chunk_size = collect.context;
        save(task, made, &imatrix)
    })?;
    Ok(Outcome::of(performed, Vec::new()))
}

fn add(sum: &imatrix::Imatrix, part: &imatrix::Imatrix) -> Result<imatrix::Imatrix, StepError> {
    let merged = imatrix::Imatrix::merge(&[(sum, Weight::ONE), (part, Weight::ONE)], MergeMode::Sum);
    merged
        .map(|merged| merged.imatrix)
        .map_err(|error| StepError::input(error.to_string()))
}

fn run_merge(
    parts: &[WeightedImatrix],
    mode: RecipeMode,
    inputs: &Inputs,
    task: &Task<'_>,
) -> Result<Outcome, StepError> {
    let action = merge_action(parts, mode, inputs)?;
    let performed = task.perform(&action, &[], |made| {
        let mut imatrices = Vec::with_capacity(parts.len());
        for part in parts {
            imatrices.push(load(task.env, inputs.step(&part.imatrix)?.output("imatrix")?)?);
        }
        let weight = |part: &WeightedImatrix| {
            u32::try_from(part.weight.millionths())
                .ok()
                .and_then(Weight::from_millionths)
                .ok_or_else(|| {
                    StepError::input(format!(
                        "the weight of `{}` must be above 0 and below 4294",
                        part.imatrix
                    ))
                })
        };
        let weighted: Vec<(&imatrix::Imatrix, Weight)> = imatrices
            .iter()
            .zip(parts)
            .map(|(imatrix, part)| Ok((imatrix, weight(part)?)))
            .collect::<Result<_, StepError>>()?;
        let mode = match mode {
            RecipeMode::Sum => MergeMode::Sum,
            RecipeMode::Mean => MergeMode::Mean,
            RecipeMode::Max => MergeMode::Max,
        };
        let merged = imatrix::Imatrix::merge(&weighted, mode).map_err(|error| StepError::input(error.to_string()))?;
        for partial in &merged.partial {
            let lacking: Vec<String> = partial
                .missing_in
                .iter()
                .filter_map(|&at| parts.get(at))
                .map(|part| part.imatrix.to_string())
                .collect();
            task.warn(format!(
                "{} has no data for `{}`",
                words::names(&lacking, 3),
                partial.name
            ));
        }
        save(task, made, &merged.imatrix)
    })?;
    Ok(Outcome::of(performed, Vec::new()))
}

/// Loads a model for chunks of `context` tokens.
pub fn load_model(env: &Env<'_>, model: &Outcome, context: u32) -> Result<LoadedModel, StepError> {
    let files = model_files(model)?;
    let what = format!("loading `{}`", files.path().display());
    LoadedModel::open(files, &Options { threads: env.threads }, context).map_err(StepError::engine(what))
}

/// Opens the files of a model, which must be those whose digests were taken.
pub fn model_files(model: &Outcome) -> Result<ModelFiles, StepError> {
    let files = model.files.iter().map(|file| Ok((file.path.clone(), file.open()?)));
    let files = files.collect::<Result<Vec<_>, StepError>>()?;
    ModelFiles::new(files).map_err(StepError::engine("loading a model"))
}
