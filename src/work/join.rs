//! An imatrix compared with a model: which tensors have data, which have none or of the wrong length, and which experts saw
//! too few rows.

use std::collections::BTreeMap;
use std::collections::HashSet;

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::documents::decode;
use super::documents::encode;
use super::imatrix;
use super::model_documents::Shape;
use super::model_documents::facts_of;
use crate::action::Join;
use crate::digest::BlobDigest;
use crate::imatrix::Entry;
use crate::policy;
use crate::prose;
use crate::store::Store;
use crate::vocab::Severity;

/// The version of the documents below.
const SCHEMA: u32 = 1;

/// A tensor whose data fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matched {
    /// The rows that its matrix saw: of all experts the fewest and the most.
    pub rows: (u64, u64),
    /// Experts that saw fewer rows than asked for, by number.
    pub unrouted: Vec<usize>,
}

/// A tensor whose data do not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongLength {
    /// How many values the imatrix has.
    pub found: u64,
    /// How many the tensor takes.
    pub expected: u64,
    /// How many of the imatrix's values belong to one count. Not stored: a join that finds such a tensor fails.
    #[serde(skip)]
    pub found_columns: u64,
    /// How many values a row of the tensor has.
    #[serde(skip)]
    pub expected_columns: u64,
}

impl WrongLength {
    /// Returns what the imatrix has and what the tensor takes. Where the values are as many, the counts are not.
    fn sides(&self) -> (String, String) {
        let side = |values: u64, columns: u64| match values.checked_div(columns) {
            Some(counts) if self.found == self.expected => format!("{counts} x {columns} values"),
            _ => format!("{values} values"),
        };
        (
            side(self.found, self.found_columns),
            side(self.expected, self.expected_columns),
        )
    }
}

/// The report: output `join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form.
    pub schema: u32,
    /// Tensors whose data fit.
    pub matched: BTreeMap<String, Matched>,
    /// Quantizable tensors without data.
    pub missing: Vec<String>,
    /// Tensors whose data do not fit.
    pub wrong_length: BTreeMap<String, WrongLength>,
    /// Entries of the imatrix that the model has no tensor for.
    pub unknown: Vec<String>,
}

/// Which tensors have data: output `coverage`, all that a policy depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The version of this form.
    pub schema: u32,
    /// Their names, sorted.
    pub tensors: Vec<String>,
}

/// The digest of each tensor's importances: output `slices`, what the keys of tensors are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slices {
    /// The version of this form.
    pub schema: u32,
    /// The digest of the importances, as 32-bit floats, by tensor.
    pub tensors: BTreeMap<String, BlobDigest>,
}

impl Default for Slices {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            tensors: BTreeMap::new(),
        }
    }
}

/// Returns the bytes of importances whose digest stands in [`Slices`].
pub fn slice_bytes(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
}

impl Work for Join {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let imatrix = imatrix::load(store, self.imatrix)?;
        let shape: Shape = decode(store, "shape", self.shape)?;
        let (report, slices) = compare(store, self, &shape, &imatrix)?;
        report_problems(context, self, &report)?;
        let coverage = Coverage {
            schema: SCHEMA,
            tensors: report.matched.keys().cloned().collect(),
        };
        let unrouted: usize = report.matched.values().map(|matched| matched.unrouted.len()).sum();
        let mut made = ActionOutputs::default();
        made.output(Self::COVERAGE, store.put(&encode(&coverage)?)?);
        made.output(Self::SLICES, store.put(&encode(&slices)?)?);
        made.output(Self::IMATRIX, self.imatrix);
        made.output(Self::REPORT, store.put(&encode(&report)?)?);
        made.fact(Self::MATCHED, report.matched.len());
        made.fact(Self::MISSING, report.missing.len());
        made.fact(Self::WRONG_LENGTH, report.wrong_length.len());
        made.fact(Self::UNROUTED, unrouted);
        made.fact(Self::ENTRIES, imatrix.entries.len());
        made.fact(Self::CHUNKS, imatrix.chunk_count);
        made.fact(Self::DATASET, imatrix.datasets.first().map_or("", String::as_str));
        Ok(made)
    }
}

fn compare(
    store: &Store,
    join: &Join,
    shape: &Shape,
    imatrix: &crate::imatrix::Imatrix,
) -> Result<(Report, Slices), StepError> {
    let model = facts_of(store, shape)?;
    let mut report = Report {
        schema: SCHEMA,
        matched: BTreeMap::new(),
        missing: Vec::new(),
        wrong_length: BTreeMap::new(),
        unknown: Vec::new(),
    };
    let mut slices = Slices {
        schema: SCHEMA,
        tensors: BTreeMap::new(),
    };
    for tensor in &shape.tensors {
        let Some(entry) = imatrix.entries.get(&tensor.name) else {
            if policy::quantizable(&model, &tensor.name, &tensor.dims).is_ok() {
                report.missing.push(tensor.name.clone());
            }
            continue;
        };
        let dim = |index: usize| tensor.dims.get(index).copied().unwrap_or(1);
        let expected = dim(0) * dim(2) * dim(3);
        // A count for each matrix, or, as in legacy files, one for all of them.
        let columns = entry.columns as u64;
        if (columns != dim(0) && columns != expected) || entry.sums.len() as u64 != expected {
            report.wrong_length.insert(
                tensor.name.clone(),
                WrongLength {
                    found: entry.sums.len() as u64,
                    expected,
                    found_columns: columns,
                    expected_columns: dim(0),
                },
            );
            continue;
        }
        report
            .matched
            .insert(tensor.name.clone(), matched(entry, join.min_count));
        slices
            .tensors
            .insert(tensor.name.clone(), BlobDigest::of(&slice_bytes(&entry.weights())));
    }
    let known: HashSet<&str> = shape.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    report.unknown = imatrix
        .entries
        .keys()
        .filter(|name| !known.contains(name.as_str()))
        .cloned()
        .collect();
    Ok((report, slices))
}

fn matched(entry: &Entry, least: u64) -> Matched {
    let rows: Vec<u64> = entry.counts.iter().map(|count| count.round() as u64).collect();
    let below = |&(_, &rows): &(usize, &u64)| rows < least;
    Matched {
        rows: (
            rows.iter().copied().min().unwrap_or(0),
            rows.iter().copied().max().unwrap_or(0),
        ),
        unrouted: rows
            .iter()
            .enumerate()
            .filter(below)
            .map(|(expert, _)| expert)
            .collect(),
    }
}

fn report_problems(context: &Context<'_>, join: &Join, report: &Report) -> Result<(), StepError> {
    let mut problems = Vec::new();
    // No run of a model gives data for a token embedding: it is looked up, not multiplied.
    let missing: Vec<&String> = report
        .missing
        .iter()
        .filter(|name| *name != "token_embd.weight")
        .collect();
    if !missing.is_empty() {
        problems.push((
            join.missing,
            format!("the imatrix has no data for {}", prose::names(&missing, 5)),
        ));
    }
    for (tensor, wrong) in &report.wrong_length {
        let (found, expected) = wrong.sides();
        let what = format!(
            "the imatrix has {found} for `{tensor}`, which takes {expected}: it was made with a different model"
        );
        problems.push((Severity::Fail, what));
    }
    for (tensor, matched) in report
        .matched
        .iter()
        .filter(|(_, matched)| !matched.unrouted.is_empty())
    {
        let experts = matched
            .unrouted
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let least = join.min_count;
        let what = if tensor.contains("_exps.") {
            format!("experts {experts} of `{tensor}` saw fewer than {least} tokens; their weights count equally")
        } else {
            format!("`{tensor}` saw fewer than {least} tokens; its weights count equally")
        };
        problems.push((join.unrouted, what));
    }
    if report.matched.is_empty() {
        problems.push((Severity::Fail, "the imatrix fits no tensor of the model".to_owned()));
    }
    let failures: Vec<&str> = problems
        .iter()
        .filter(|(severity, _)| *severity == Severity::Fail)
        .map(|(_, what)| what.as_str())
        .collect();
    if !failures.is_empty() {
        return Err(StepError::input_hint(
            failures.join("; "),
            "collect the imatrix with this model and more text, or set `missing` and `unrouted` of the join to \"warn\"",
        ));
    }
    for (_, what) in problems {
        context.warn(what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_the_differences() {
        let wrong = |found, found_columns, expected, expected_columns| WrongLength {
            found,
            expected,
            found_columns,
            expected_columns,
        };
        let sides = |wrong: WrongLength| {
            let (found, expected) = wrong.sides();
            format!("{found}, {expected}")
        };
        assert_eq!(sides(wrong(512, 512, 256, 256)), "512 values, 256 values");
        // As many values, but four experts of 64 columns instead of one matrix of 256.
        assert_eq!(sides(wrong(256, 64, 256, 256)), "4 x 64 values, 1 x 256 values");
        assert_eq!(sides(wrong(256, 32, 256, 64)), "8 x 32 values, 4 x 64 values");
    }
}
