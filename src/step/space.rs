//! The disk space that steps need, as far as it is known before they run: estimates from the headers of models, and the size of a
//! reference's log-probabilities in the store.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;

use crate::action::Corpus;
use crate::action::InspectModel;
use crate::container;
use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Role;
use crate::figures;
use crate::graph::Graph;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::recipe::model::EngineRef;
use crate::recipe::model::ImatrixStep;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::StepError;
use crate::step::kind_of;
use crate::tensor_type::TensorType;
use crate::timing::Forward;
use crate::work::Block;
use crate::work::BlockOptions;
use crate::work::Reference;
use crate::work::TokenizedCorpus;
use crate::work::evaluation_failed;

/// More bytes than a token has on average, in any language and with any vocabulary. Before a corpus is tokenized, its length
/// divided by this is a lower bound of its number of tokens.
const BYTES_PER_TOKEN: u64 = 8;

/// What the header of a model says.
pub struct Header {
    /// The facts that policies need.
    pub facts: Option<ModelFacts>,
    /// All metadata.
    pub metadata: Metadata,
    /// The size of the vocabulary.
    pub vocabulary: Option<u64>,
    /// A digest of the names, types and dimensions of all tensors: models with the same shape take the same time.
    pub shape: String,
    /// The work of computing it.
    forward: Option<Rc<Forward>>,
}

/// The headers of source models. Each is read once; `None` if it cannot be read.
pub struct Headers<'g> {
    graph: &'g Graph,
    read: BTreeMap<PathBuf, Option<Header>>,
    bytes: BTreeMap<NodeId, u64>,
    choices: BTreeMap<StepId, Option<Rc<[TensorType]>>>,
}

impl<'g> Headers<'g> {
    /// Returns the headers of a recipe's models; none is read yet.
    pub fn new(graph: &'g Graph) -> Self {
        Self {
            graph,
            read: BTreeMap::new(),
            bytes: BTreeMap::new(),
            choices: BTreeMap::new(),
        }
    }

    /// Returns the name of the text that the imatrix of a join was collected on, which the header of a candidate says; of merged ones
    /// that of the first. `None` if a file has the imatrix.
    pub fn imatrix_text(&self, join: &StepId) -> Option<String> {
        let body = |id: &StepId| Some(&self.graph.node(&NodeId::Step(id.clone()))?.work.step()?.body);
        let StepBody::Join(join) = body(join)? else { return None };
        let mut imatrix = &join.imatrix;
        loop {
            match body(imatrix)? {
                StepBody::Imatrix(ImatrixStep::Collect(collect)) => return Some(collect.corpus.label()),
                StepBody::Imatrix(ImatrixStep::Merge { inputs, .. }) => imatrix = &inputs.first()?.imatrix,
                StepBody::Imatrix(ImatrixStep::Moments { moments, .. }) => match body(moments)? {
                    StepBody::Moments(moments) => return Some(moments.corpus.label()),
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    /// Returns the size of the files that a source or a corpus reads, all together; 0 if they cannot be found.
    pub fn file_bytes(&mut self, id: &NodeId, env: &Env<'_>) -> u64 {
        if let Some(&bytes) = self.bytes.get(id) {
            return bytes;
        }
        let node = self.graph.node(id);
        let files = node
            .and_then(|node| kind_of(node).files(node, env).ok())
            .unwrap_or_default();
        let stamps = files.iter().filter_map(|path| crate::fs::Stamp::of(path).ok());
        let bytes = stamps.map(|stamp| stamp.size).sum();
        self.bytes.insert(id.clone(), bytes);
        bytes
    }

    /// Returns what the header of a model says.
    pub fn of(&mut self, model: &SourceName, env: &Env<'_>) -> Option<&Header> {
        let node = self.graph.node(&NodeId::Source(model.as_str().to_owned()))?;
        let path = kind_of(node).files(node, env).ok()?.into_iter().next()?;
        let read = |path: &Path| {
            let model = container::open(path).ok()?;
            let tensors: Vec<TensorFacts> = model.tensors().iter().map(|tensor| (&tensor.info).into()).collect();
            let shape = tensors
                .iter()
                .map(|tensor| format!("{} {} {:?}\n", tensor.name, tensor.ty, tensor.dims));
            let shape = Fingerprint::of(shape.collect::<String>().as_bytes()).to_string();
            let facts = ModelFacts::from_metadata(model.metadata(), tensors).ok();
            Some(Header {
                forward: facts
                    .as_ref()
                    .map(|facts| Rc::new(Forward::new(facts, model.metadata()))),
                shape,
                facts,
                metadata: model.metadata().clone(),
                vocabulary: model.metadata().get_array_len("tokenizer.ggml.tokens"),
            })
        };
        self.read.entry(path).or_insert_with_key(|path| read(path)).as_ref()
    }
}

impl<'g> Headers<'g> {
    /// Returns the work of computing a model.
    pub fn forward(&mut self, model: &SourceName, env: &Env<'_>) -> Option<Rc<Forward>> {
        self.of(model, env)?.forward.clone()
    }

    /// Returns the types that the header of its model gives a policy, in the order of the model's file; `find` is called once for each
    /// policy.
    pub(super) fn types(
        &mut self,
        policy: &StepId,
        env: &Env<'_>,
        find: impl FnOnce(&PolicyStep, &Header) -> Option<Rc<[TensorType]>>,
    ) -> Option<Rc<[TensorType]>> {
        if let Some(known) = self.choices.get(policy) {
            return known.clone();
        }
        let StepBody::Policy(step) = self.step(policy)? else {
            return None;
        };
        let found = self.of(&step.model, env).and_then(|header| find(step, header));
        self.choices.insert(policy.clone(), found.clone());
        found
    }

    /// Returns what a step does.
    pub(super) fn step(&self, step: &StepId) -> Option<&'g StepBody> {
        let node = self.graph.node(&NodeId::Step(step.clone()))?;
        Some(&node.work.step()?.body)
    }
}

/// What is compared with a reference's log-probabilities.
pub struct Comparison<'n> {
    /// The reference.
    pub reference: &'n SourceName,
    /// The texts.
    pub corpus: &'n StepId,
    /// The chunks of them.
    pub cut: BlockOptions,
    /// The digest of everything that determines what the measured model computes; `None` if that is not known yet.
    pub compute: Option<BlobDigest>,
    /// The engine that runs the models.
    pub engine: &'n EngineRef,
}

/// Corpora as blocks, each read once for all comparisons; `None` if it is not tokenized yet.
pub type Corpora<'n> = BTreeMap<(&'n SourceName, &'n StepId, BlockOptions, Fingerprint), Option<Vec<Block>>>;

/// A block of a reference's log-probabilities that is not in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingBlock {
    /// Its name: the same for all comparisons that share it.
    pub name: String,
    /// The number of chunks.
    pub chunks: u64,
    /// The bytes in the store.
    pub bytes: u64,
    /// Whether it stands for all blocks of a text that is not tokenized yet, and the numbers are lower bounds.
    pub is_least: bool,
}

/// Returns the blocks of the reference's log-probabilities that a comparison must still compute. If the model does not exist yet, every
/// block counts. If the corpus is not tokenized yet, one entry with lower bounds stands for all its blocks.
/// `vocabulary` is the number of tokens in the vocabulary, `texts` is the node of the corpus.
///
/// # Errors
///
/// The errors of the step.
pub fn missing_reference_blocks<'n>(
    comparison: &Comparison<'n>,
    known: &Inputs,
    env: &Env<'_>,
    vocabulary: u64,
    texts: &Node,
    corpora: &mut Corpora<'n>,
) -> Result<Vec<MissingBlock>, StepError> {
    let Comparison {
        reference: model,
        corpus,
        cut,
        compute,
        engine,
    } = *comparison;
    let engine = env.fingerprint(engine, Role::Evaluator)?;
    let positions = figures::scored_positions(cut.context as usize)
        .map_err(evaluation_failed)?
        .len() as u64;
    let size = |chunks: u64| figures::size_of_reference(vocabulary, positions.saturating_mul(chunks));
    let outcome = known.source(model);
    let blocks = match corpora.entry((model, corpus, cut, engine)) {
        Entry::Occupied(read) => read.into_mut(),
        Entry::Vacant(free) => free.insert(match (&outcome, known.step(corpus)) {
            (Ok(model), Ok(corpus)) => {
                let reading = TokenizedCorpus {
                    corpus: corpus.output(Corpus::CORPUS)?,
                    tokenizer: model.output(InspectModel::TOKENIZER)?,
                    engine,
                };
                reading.known_blocks(env.store, cut)?
            }
            _ => None,
        }),
    };
    let (Ok(outcome), Some(blocks)) = (outcome, blocks) else {
        let files = kind_of(texts).files(texts, env)?;
        let bytes: u64 = files
            .iter()
            .filter_map(|path| crate::fs::Stamp::of(path).ok())
            .map(|stamp| stamp.size)
            .sum();
        let chunks = bytes / BYTES_PER_TOKEN / u64::from(cut.context.max(1));
        let chunks = cut.chunks.map_or(chunks, |most| most.min(chunks));
        let name = format!("{model} {corpus} {}", cut.context);
        return Ok(if chunks == 0 {
            Vec::new()
        } else {
            vec![MissingBlock {
                name,
                chunks,
                bytes: size(chunks),
                is_least: true,
            }]
        });
    };
    let reference = Reference {
        model: outcome.output(InspectModel::COMPUTE)?,
        tokenizer: outcome.output(InspectModel::TOKENIZER)?,
        context: cut.context,
        engine,
    };
    let mut needed = Vec::new();
    for block in blocks.iter() {
        let is_known = match compute {
            Some(compute) => {
                let action = reference.block_action(compute, block, true);
                env.store.lookup(&action.digest())?.is_some()
            }
            None => false,
        };
        let key = reference.action(block).digest();
        if !is_known && env.store.lookup(&key)?.is_none() {
            let chunks = block.chunks.len() as u64;
            needed.push(MissingBlock {
                name: key.to_string(),
                chunks,
                bytes: size(chunks),
                is_least: false,
            });
        }
    }
    Ok(needed)
}
