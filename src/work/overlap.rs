//! What an evaluation's text has in common with a text that candidates were calibrated on.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::decode;
use super::documents::encode;
use super::perform::output_of;
use crate::action::Action;
use crate::action::ActionResult;
use crate::action::Overlap;
use crate::action::RowOverlap;
use crate::digest::BlobDigest;
use crate::fs;
use crate::overlap;
use crate::overlap::Common;
use crate::overlap::Side;
use crate::overlap::Texts;
use crate::overlap::words_of_chunk;
use crate::store::Store;

/// The version of [`Document`].
const SCHEMA: u32 = 1;

/// What two corpora have in common. Files are named by their places in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The version of this form.
    schema: u32,
    /// Files with the same bytes: of the evaluation, and of the other corpus.
    pub same: Vec<[u32; 2]>,
    /// What the texts have in common. Not compared, and all in common, if every file of the evaluation is one of the other's.
    pub common: Common,
}

/// Why two corpora overlap: the strongest reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Files with the same bytes: of the evaluation, and of the other corpus.
    SameFiles(Vec<[u32; 2]>),
    /// A large part of the evaluation's text stands in the other one.
    Share {
        /// The file of the evaluation with the largest part, and the file that has most of it.
        files: [u32; 2],
        /// The part, in thousandths.
        share: u32,
    },
    /// A passage as long as a chunk stands in both.
    Passage {
        /// The file of the evaluation, and the other one.
        files: [u32; 2],
        /// Its length.
        words: u64,
        /// Its first words.
        begins: String,
    },
}

impl Document {
    /// Returns why an evaluation with chunks of so many tokens is not on held-out text; `None` if it is.
    pub fn reason(&self, context: u32) -> Option<Reason> {
        if !self.same.is_empty() {
            return Some(Reason::SameFiles(self.same.clone()));
        }
        let least = words_of_chunk(context);
        let Common {
            share,
            words,
            files,
            passage,
        } = &self.common;
        if let Some(most) = files.iter().max_by_key(|file| file.words) {
            let named = [most.evaluation, most.calibration];
            let shares = [(most.share, most.words), (*share, *words)];
            let large = shares
                .into_iter()
                .find(|(share, words)| *share >= overlap::SHARE && *words >= least);
            if let Some((share, _)) = large {
                return Some(Reason::Share { files: named, share });
            }
        }
        let passage = passage.as_ref().filter(|passage| passage.words >= least)?;
        Some(Reason::Passage {
            files: [passage.evaluation, passage.calibration],
            words: passage.words,
            begins: passage.begins.clone(),
        })
    }

    /// Returns the mark of figures that were measured on this text nevertheless; `None` if the texts do not overlap.
    pub fn mark(&self, corpus: impl Into<String>, context: u32) -> Option<RowOverlap> {
        self.reason(context)?;
        Some(RowOverlap {
            corpus: corpus.into(),
            same_files: self.same.len() as u64,
            share: self.common.share,
            passage: self.common.passage.as_ref().map(|passage| passage.words),
        })
    }

    /// Compares corpora by their files. `check` is called before each file is read.
    ///
    /// # Errors
    ///
    /// Errors of reading, [`StepError::SourceChanged`], and those of `check`.
    pub fn compare(
        evaluation: &[SourceFile],
        calibration: &[SourceFile],
        check: &dyn Fn() -> Result<(), StepError>,
    ) -> Result<Self, StepError> {
        let place = |file: &SourceFile| calibration.iter().position(|other| other.digest == file.digest);
        let mut same = Vec::new();
        let mut others = false;
        for (at, file) in evaluation.iter().enumerate().filter(|(_, file)| file.digest.len > 0) {
            match place(file) {
                Some(other) => same.push([at as u32, other as u32]),
                None => others = true,
            }
        }
        let common = if !same.is_empty() && !others {
            Common {
                share: 1000,
                ..Common::default()
            }
        } else {
            let files = Files {
                evaluation,
                calibration,
                check,
            };
            let common = overlap::compare(&files)?;
            for file in evaluation.iter().chain(calibration) {
                file.check_unchanged()?;
            }
            common
        };
        Ok(Self {
            schema: SCHEMA,
            same,
            common,
        })
    }

    /// Keeps this as the result of an action, unless the store has one.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn keep(&self, store: &Store, action: &Action) -> Result<(), StepError> {
        let key = action.digest();
        if store.lookup(&key)?.is_none() {
            let output = store.put(&encode(self)?)?;
            let result = ActionResult {
                schema: ActionResult::SCHEMA,
                action: store.put(&action.document())?,
                outputs: BTreeMap::from([(Overlap::OVERLAP.as_str().to_owned(), output)]),
                cost_ms: 0,
                facts: BTreeMap::new(),
            };
            store.commit(&key, &result)?;
        }
        Ok(())
    }

    /// Returns the result of an action from the store, if it is there.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn known(store: &Store, action: &Action) -> Result<Option<Self>, StepError> {
        let Some(result) = store.lookup(&action.digest())? else {
            return Ok(None);
        };
        decode(store, "overlap", output_of(&result, Overlap::OVERLAP)?).map(Some)
    }
}

/// Returns the action that compares two corpora.
pub fn action_of(evaluation: &[SourceFile], calibration: &[SourceFile]) -> Action {
    let digests = |files: &[SourceFile]| files.iter().map(|file| file.digest).collect();
    Action::Overlap(Overlap {
        evaluation: digests(evaluation),
        calibration: digests(calibration),
        rules: overlap::RULES,
    })
}

struct Files<'a> {
    evaluation: &'a [SourceFile],
    calibration: &'a [SourceFile],
    check: &'a dyn Fn() -> Result<(), StepError>,
}

impl Files<'_> {
    fn of(&self, side: Side) -> &[SourceFile] {
        match side {
            Side::Evaluation => self.evaluation,
            Side::Calibration => self.calibration,
        }
    }
}

impl Texts for Files<'_> {
    type File = fs::File;
    type Error = StepError;

    fn lengths(&self, side: Side) -> Vec<u64> {
        self.of(side).iter().map(|file| file.digest.len).collect()
    }

    fn open(&self, side: Side, at: usize) -> Result<fs::File, StepError> {
        (self.check)()?;
        self.of(side)[at].open()
    }

    fn unreadable(&self, side: Side, at: usize, error: io::Error) -> StepError {
        fs::PathError::on(&self.of(side)[at].path, "read")(error).into()
    }
}

impl Overlap {
    fn files(&self, context: &Context<'_>) -> Result<[Vec<SourceFile>; 2], StepError> {
        let located = context.located();
        let find = |digests: &[BlobDigest]| -> Result<Vec<SourceFile>, StepError> {
            digests.iter().map(|digest| located.file(digest).cloned()).collect()
        };
        Ok([find(&self.evaluation)?, find(&self.calibration)?])
    }
}

impl Work for Overlap {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(self.files(context)?.concat())
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        if self.rules != overlap::RULES {
            return Err(StepError::input(format!(
                "this version of forge compares texts by rules {}, not {}",
                overlap::RULES,
                self.rules
            )));
        }
        let [evaluation, calibration] = self.files(context)?;
        let document = Document::compare(&evaluation, &calibration, &|| context.check_cancel())?;
        let mut made = ActionOutputs::default();
        made.output(Self::OVERLAP, context.store().put(&encode(&document)?)?);
        Ok(made)
    }
}
