//! A table of tensor, type and why, chosen by one of the methods.

mod error;
mod fisher;
mod inspected;
mod measured;
mod stored;
mod warnings;

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::imatrix;
use super::join::Slices;
use super::join::slice_bytes;
use crate::action::Policy;
use crate::digest::BlobDigest;
use crate::method::Chosen;
use crate::method::MethodDocument;
use crate::prose;

pub use inspected::Inspected;
pub use stored::energies_of;
pub use stored::file_size_of;
pub use stored::file_size_of_header;

use stored::Stored;
use warnings::sentence;

impl Work for Policy {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let inspected = Inspected::load(self, store)?;
        let covered = |name: &str| inspected.covers(name);
        let stored = Stored {
            context,
            facts: &inspected.facts,
            has: inspected.has(&covered),
        };
        let slices = |imatrix: Option<BlobDigest>| slices_of(context, &inspected, imatrix);
        let Chosen {
            table,
            file_type,
            solved,
        } = match &self.method {
            MethodDocument::Measured(method) => measured::choose(stored, method, slices(method.imatrix)?)?,
            MethodDocument::Fisher(method) => fisher::choose(stored, method, slices(method.imatrix)?)?,
            MethodDocument::Error(method) => error::choose(stored, method, slices(method.imatrix)?)?,
            method => method.choose(&stored)?,
        };
        table
            .warnings
            .iter()
            .for_each(|warning| context.warn(sentence(warning)));
        if table.fallbacks() > 0 {
            let fallbacks = prose::count(table.fallbacks() as u64, "tensor");
            context.warn(format!(
                "{fallbacks} got a fallback type: their row lengths are not multiples of the block size"
            ));
        }
        let mut made = ActionOutputs::default();
        made.fact(Self::BYTES, table.bytes().unwrap_or(u64::MAX));
        let quantized = table.choices.iter().filter(|choice| choice.from != choice.to);
        made.fact(Self::QUANTIZED, quantized.count());
        made.fact(Self::TENSORS, table.choices.len());
        made.fact(
            Self::FILE_TYPE,
            file_type.map_or_else(|| "keep".to_owned(), |number| number.to_string()),
        );
        made.output(Self::POLICY, store.put(&encode(&table)?)?);
        if let Some(solved) = solved {
            made.output(Self::CERTIFICATE, store.put(solved.certificate.as_bytes())?);
            made.fact(Self::PROVED, if solved.optimal { "optimal" } else { "gap" });
        }
        Ok(made)
    }
}

/// Returns the digests of the importances of the tensors that an imatrix covers, like a join.
fn slices_of(context: &Context<'_>, inspected: &Inspected, imatrix: Option<BlobDigest>) -> Result<Slices, StepError> {
    let mut slices = Slices::default();
    if let Some(digest) = imatrix {
        let imatrix = imatrix::load(context.store(), digest)?;
        for (name, entry) in &imatrix.entries {
            if inspected.covers(name) {
                let weights = BlobDigest::of(&slice_bytes(&entry.weights()));
                slices.tensors.insert(name.clone(), weights);
            }
        }
    }
    Ok(slices)
}
