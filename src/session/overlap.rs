//! The guard between calibration and evaluation: whether candidates are evaluated on text that they were calibrated on, by the
//! content of the texts. Asked before the first step of a build runs, by plans, and by `forge check`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::Session;
use crate::action::Action;
use crate::action::RowOverlap;
use crate::graph::Graph;
use crate::graph::NodeId;
use crate::graph::Work;
use crate::manifest;
use crate::observer::Silent;
use crate::recipe::Calibration;
use crate::recipe::CalibrationUse;
use crate::recipe::EvalStep;
use crate::recipe::Place;
use crate::recipe::Recipe;
use crate::recipe::Step;
use crate::recipe::StepBody;
use crate::recipe::StepId;
use crate::step;
use crate::step::Env;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::corpus;
use crate::work::overlap;
use crate::work::overlap::Document;
use crate::work::overlap::Reason;

/// A corpus, and where the recipe declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
}

/// An evaluation on text that candidates were calibrated on, which the recipe does not allow.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlap {
    /// The evaluation.
    pub eval: Declared,
    /// The corpus of the evaluation.
    pub corpus: Declared,
    /// The corpus that the candidates were calibrated on.
    pub calibration: Declared,
    /// How it was used.
    pub uses: BTreeSet<CalibrationUse>,
    /// The candidates, in the recipe's order.
    pub candidates: Vec<String>,
    /// What the two have in common.
    pub what: CommonText,
}

/// What the texts of two corpora have in common. Paths are as the recipe's folder and its patterns give them: first the
/// evaluation's, then the other one.
#[derive(Debug, Clone, PartialEq)]
pub enum CommonText {
    /// They are one corpus.
    SameCorpus,
    /// Files with the same bytes.
    SameFiles(Vec<[PathBuf; 2]>),
    /// A large part of the evaluation's text.
    Share {
        /// The part, in thousandths.
        share: u32,
        /// The files with the largest part.
        files: [PathBuf; 2],
    },
    /// A passage as long as a chunk.
    Passage {
        /// Its length in words.
        words: u64,
        /// Its first words, in lower case.
        begins: String,
        /// The files.
        files: [PathBuf; 2],
    },
}

/// An evaluation and a corpus that candidates of it were calibrated on.
struct Pair<'r> {
    step: &'r Step,
    eval: &'r EvalStep,
    calibration: &'r StepId,
    uses: BTreeSet<CalibrationUse>,
    candidates: Vec<String>,
}

/// Returns the pairs of a graph's evaluations that must not overlap, in its order.
fn pairs<'r>(recipe: &'r Recipe, graph: &'r Graph) -> Vec<Pair<'r>> {
    let calibration = Calibration::of(recipe);
    let mut texts: BTreeMap<&StepId, BTreeMap<&StepId, BTreeSet<CalibrationUse>>> = BTreeMap::new();
    let mut at: BTreeMap<(&StepId, &StepId), usize> = BTreeMap::new();
    let mut pairs: Vec<Pair<'r>> = Vec::new();
    for node in graph.nodes() {
        let Work::Eval { step, candidate } = &node.work else {
            continue;
        };
        let StepBody::Eval(eval) = &step.body else { continue };
        if eval.allow_overlap {
            continue;
        }
        let texts = texts.entry(candidate).or_insert_with(|| calibration.texts(candidate));
        for (calibration, uses) in texts {
            let at = *at.entry((&step.id, calibration)).or_insert_with(|| {
                pairs.push(Pair {
                    step,
                    eval,
                    calibration,
                    uses: BTreeSet::new(),
                    candidates: Vec::new(),
                });
                pairs.len() - 1
            });
            pairs[at].uses.extend(uses.iter());
            pairs[at].candidates.push(candidate.label());
        }
    }
    pairs
}

/// Finds the files of a corpus, with their digests; `None` if they cannot be read now, which the corpus's own step reports.
type FilesOf<'a> = dyn FnMut(&StepId) -> Option<Vec<SourceFile>> + 'a;
/// Compares two corpora.
type Compare<'a> = dyn FnMut(&[SourceFile], &[SourceFile]) -> Result<Document, StepError> + 'a;

/// Returns the overlaps that a recipe does not allow, as far as the files can be read.
fn overlaps(recipe: &Recipe, graph: &Graph, files: &mut FilesOf<'_>, compare: &mut Compare<'_>) -> Vec<Overlap> {
    let mut read: BTreeMap<&StepId, Option<Vec<SourceFile>>> = BTreeMap::new();
    let mut found = Vec::new();
    for pair in pairs(recipe, graph) {
        let declared = |id: &StepId| Declared {
            name: id.label(),
            place: recipe
                .step(id)
                .map_or_else(|| pair.step.origin.clone(), |step| step.origin.clone()),
        };
        let what = if pair.eval.corpus == *pair.calibration {
            Some(CommonText::SameCorpus)
        } else {
            for id in [&pair.eval.corpus, pair.calibration] {
                read.entry(id).or_insert_with(|| files(id));
            }
            let of = |id: &StepId| read.get(id)?.as_deref();
            match (of(&pair.eval.corpus), of(pair.calibration)) {
                (Some(evaluation), Some(calibration)) => compare(evaluation, calibration)
                    .ok()
                    .and_then(|document| document.reason(pair.eval.context))
                    .and_then(|reason| named(reason, evaluation, calibration)),
                _ => None,
            }
        };
        found.extend(what.map(|what| Overlap {
            eval: Declared {
                name: pair.step.id.label(),
                place: pair.step.origin.clone(),
            },
            corpus: declared(&pair.eval.corpus),
            calibration: declared(pair.calibration),
            uses: pair.uses,
            candidates: pair.candidates,
            what,
        }));
    }
    found
}

/// Returns a reason with the paths of its files.
fn named(reason: Reason, evaluation: &[SourceFile], calibration: &[SourceFile]) -> Option<CommonText> {
    let paths = |[at, other]: [u32; 2]| {
        let path = |files: &[SourceFile], at: u32| Some(files.get(at as usize)?.path.clone());
        Some([path(evaluation, at)?, path(calibration, other)?])
    };
    Some(match reason {
        Reason::SameFiles(same) => CommonText::SameFiles(same.into_iter().filter_map(paths).collect()),
        Reason::Share { files, share } => CommonText::Share {
            share,
            files: paths(files)?,
        },
        Reason::Passage { files, words, begins } => CommonText::Passage {
            words,
            begins,
            files: paths(files)?,
        },
    })
}

/// Returns the evaluations on the very corpus that candidates were calibrated on: these a recipe shows without its files.
pub fn of_recipe(recipe: &Recipe, graph: &Graph) -> Vec<Overlap> {
    overlaps(recipe, graph, &mut |_| None, &mut |_, _| Err(StepError::Stopped))
}

/// Asks, when the first step of a build is about to run, whether its evaluations are on held-out text.
pub(super) struct Guard<'s> {
    session: &'s Session,
    found: OnceLock<Vec<Overlap>>,
}

impl<'s> Guard<'s> {
    pub(super) fn new(session: &'s Session) -> Self {
        Self {
            session,
            found: OnceLock::new(),
        }
    }

    /// Returns whether the build may go on. The texts are compared when this is asked for the first time.
    pub(super) fn passes(&self) -> bool {
        let compare = || self.session.find_overlaps(Keep::Results);
        self.found.get_or_init(compare).is_empty()
    }

    /// Returns why the build was stopped, if it was.
    pub(super) fn refused(self) -> Option<Vec<Overlap>> {
        self.found.into_inner().filter(|found| !found.is_empty())
    }
}

/// What is kept of a comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The results of comparisons, in the store.
    Results,
    /// Nothing: nothing is written.
    Nothing,
}

impl Session {
    /// Returns the evaluations of this session on text that candidates were calibrated on, if the recipe does not allow it. Reads
    /// the texts unless the store has the result; writes nothing.
    pub fn overlaps(&self) -> Vec<Overlap> {
        self.find_overlaps(Keep::Nothing)
    }

    fn find_overlaps(&self, keep: Keep) -> Vec<Overlap> {
        // The guard is no step: it reports no actions.
        let env = self.env(&Silent);
        let mut compared: Vec<(Action, Document)> = Vec::new();
        let mut files = |id: &StepId| self.texts(&env, id, keep);
        let found = overlaps(&self.recipe, &self.graph, &mut files, &mut |evaluation, calibration| {
            let document = step::overlap::compare(&env, evaluation, calibration)?;
            compared.push((overlap::action_of(evaluation, calibration), document.clone()));
            Ok(document)
        });
        // A build that is refused leaves nothing in the store.
        if keep == Keep::Results && found.is_empty() {
            for (action, document) in compared {
                // The next build compares again what could not be kept.
                let _ = document.keep(env.store, &action);
            }
        }
        found
    }

    /// Returns the files of a corpus with their digests; `None` if they cannot be read.
    fn texts(&self, env: &Env<'_>, id: &StepId, keep: Keep) -> Option<Vec<SourceFile>> {
        let paths = self.paths(env, id)?;
        let files = paths.iter().map(|path| {
            let known = match keep {
                Keep::Results => SourceFile::read(env.store, path, &|_| {}).ok(),
                Keep::Nothing => SourceFile::known(env.store, path).ok().flatten(),
            };
            known.or_else(|| SourceFile::hash(path).ok())
        });
        files.collect()
    }

    fn paths(&self, env: &Env<'_>, id: &StepId) -> Option<Vec<PathBuf>> {
        if let Some(node) = self.graph.node(&NodeId::Step(id.clone())) {
            return step::kind_of(node).files(node, env).ok();
        }
        // Not a part of this session, as the text of an evaluation if only a candidate is built.
        match &self.recipe.step(id)?.body {
            StepBody::Corpus(texts) => corpus::find(texts, &env.folder).ok(),
            _ => None,
        }
    }

    /// Returns the evaluations of the recipe that may use text that a candidate was calibrated on, and do. Reads texts only if
    /// `read` says so. `None` if that is not known of some.
    pub(super) fn allowed_overlaps(
        &self,
        env: &Env<'_>,
        candidate: &StepId,
        read: bool,
    ) -> Option<Vec<manifest::Overlap>> {
        let evals = self.recipe.steps.iter().filter_map(|step| match &step.body {
            StepBody::Eval(eval) if eval.allow_overlap && eval.candidates.contains(candidate) => Some((&step.id, eval)),
            _ => None,
        });
        let mut evals = evals.peekable();
        // Of most recipes.
        evals.peek()?;
        let texts = Calibration::of(&self.recipe).texts(candidate);
        let (mut found, mut all_known) = (Vec::new(), true);
        for (id, eval) in evals {
            for calibration in texts.keys() {
                let (eval_name, calibration_name) = (id.label(), calibration.label());
                if let Some(mark) = self.allowed_overlap(env, eval, calibration, read) {
                    found.extend(mark.map(|mark| manifest::Overlap {
                        eval: eval_name,
                        corpus: eval.corpus.label(),
                        calibration: calibration_name,
                        same_files: mark.same_files,
                        share: mark.share,
                        passage: mark.passage,
                    }));
                } else {
                    all_known = false;
                    let is_it =
                        |known: &&manifest::Overlap| known.eval == eval_name && known.calibration == calibration_name;
                    found.extend(self.known_overlaps.iter().find(is_it).cloned());
                }
            }
        }
        (all_known || read).then_some(found)
    }

    /// Returns the mark of an evaluation; `None` if it is not known.
    #[allow(clippy::option_option)] // Whether it is known, and whether there is one.
    fn allowed_overlap(
        &self,
        env: &Env<'_>,
        eval: &EvalStep,
        calibration: &StepId,
        read: bool,
    ) -> Option<Option<RowOverlap>> {
        let of = |id: &StepId| -> Option<Vec<SourceFile>> {
            if read {
                return self.texts(env, id, Keep::Nothing);
            }
            let paths = self.paths(env, id)?;
            paths
                .iter()
                .map(|path| SourceFile::known(env.store, path).ok()?)
                .collect()
        };
        let calibrated = of(calibration)?;
        let document = if eval.corpus == *calibration {
            Document::compare(&calibrated, &calibrated, &|| Ok(())).ok()?
        } else {
            let evaluated = of(&eval.corpus)?;
            if read {
                step::overlap::compare(env, &evaluated, &calibrated).ok()?
            } else {
                let action = overlap::action_of(&evaluated, &calibrated);
                Document::known(env.store, &action).ok()??
            }
        };
        Some(document.mark(calibration.label(), eval.context))
    }
}
