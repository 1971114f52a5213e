//! The choice of a policy as far as the header of the model determines it: before the model is hashed, calibrated or measured. What is
//! wrong with it then is known before the first step runs.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Cancel;
use crate::method;
use crate::method::BudgetDocument;
use crate::method::HeaderDocument;
use crate::method::Inputs;
use crate::method::MethodError;
use crate::method::Solving;
use crate::method::check_feasible;
use crate::method::rounding::RoundingDocument;
use crate::policy::Choice;
use crate::policy::Energies;
use crate::policy::Energy;
use crate::policy::FileSize;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::Table;
use crate::policy::Why;
use crate::recipe::model::Budget;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepId;
use crate::step::StepError;
use crate::step::space::Header;
use crate::tensor_type::TensorType;
use crate::vocab::EngineRole;
use crate::work::policy::file_size_of_header;

use super::document::keep_of;

/// Returns a lower bound of the tensor bytes of a candidate of this policy. `None` if the policy would fail or needs more than the
/// header.
pub fn minimum_bytes(step: &PolicyStep, header: &Header) -> Option<u64> {
    preliminary_choice(step, header, None).ok()??.bytes()
}

/// Returns the type that each tensor is likely to have, in the order of the file: the choice as far as the header determines it, and
/// else, for a policy with a budget, types of about that size. `None` if the header tells nothing.
pub fn likely_types(step: &PolicyStep, header: &Header) -> Option<Rc<[TensorType]>> {
    let known = FromHeader::new(step, header, Some(""))?;
    if let Ok(Some(table)) = choose(step, &known) {
        return Some(table.choices.iter().map(|choice| choice.to).collect());
    }
    let constraints = step.method.constraints()?.document(keep_of(step));
    let budget = step.method.budget().and_then(|budget| known.budget(budget).ok());
    let solving = Solving::of(known.facts, known.has, &constraints).ok()?;
    let elements: u64 = known
        .facts
        .tensors
        .iter()
        .map(|tensor| tensor.dims.iter().product::<u64>())
        .sum();
    let bpw = match budget {
        Some(BudgetDocument::MillionthsOfBits { number }) => number as f64 / 1e6,
        Some(BudgetDocument::Bytes { number }) => number as f64 * 8.0 / elements as f64,
        // That of another candidate, which most often has about this size.
        None => 4.5,
    };
    let mut types: Vec<TensorType> = known.facts.tensors.iter().map(|tensor| tensor.ty).collect();
    for (group, ty) in solving.options() {
        for &at in &group.members {
            let away = |ty: TensorType| (ty.bpw() - bpw).abs();
            if away(ty) < away(types[at]) {
                types[at] = ty;
            }
        }
    }
    Some(types.into())
}

/// Returns the choice of a policy, if the header determines it; `None` if it depends on more. `dataset` is the name of the text of
/// its imatrix, if it has one and the recipe determines the name.
///
/// # Errors
///
/// The policy does not fit the model, whatever an imatrix or measurements say: a type that a tensor cannot have, a budget below the
/// smallest file, layers that the model does not have.
pub fn preliminary_choice(
    step: &PolicyStep,
    header: &Header,
    dataset: Option<&str>,
) -> Result<Option<Table>, StepError> {
    let Some(known) = FromHeader::new(step, header, dataset) else {
        return Ok(None);
    };
    match choose(step, &known) {
        Ok(table) => Ok(table.filter(|_| known.is_exact.get())),
        Err(Incomplete::Unknown) => Ok(None),
        Err(Incomplete::Failed(error)) => Err(*error),
    }
}

/// Returns the names of quantized tensors of the source that the policy quantizes again, or may quantize again, for it chooses by
/// more than the header. For a mix that changes no type, they are all quantized tensors: the candidate would be a copy of the source,
/// which only `COPY` asks for.
pub fn requantized(step: &PolicyStep, header: &Header) -> Vec<String> {
    let Some(known) = FromHeader::new(step, header, Some("")) else {
        return Vec::new();
    };
    let facts = known.facts;
    // Of most sources: then nothing has to be chosen.
    if !facts.tensors.iter().any(|tensor| tensor.ty.is_quantized()) {
        return Vec::new();
    }
    if let Some(constraints) = step.method.constraints() {
        // What is wrong with the policy is reported by its own check.
        let Ok(solving) = Solving::of(facts, known.has, &constraints.document(keep_of(step))) else {
            return Vec::new();
        };
        let options = solving.options();
        let members: BTreeSet<usize> = options.iter().flat_map(|(group, _)| group.members.clone()).collect();
        let tensors = members.into_iter().map(|at| &facts.tensors[at]);
        let quantized = tensors.filter(|tensor| tensor.ty.is_quantized());
        return quantized.map(|tensor| tensor.name.clone()).collect();
    }
    let Ok(Some(table)) = choose(step, &known) else {
        return Vec::new();
    };
    let is_copy = table.choices.iter().all(|choice| choice.from == choice.to);
    let of_mix = |choice: &&Choice| matches!(choice.why, Why::Mix { .. } | Why::Uniform);
    let quantized = table.choices.iter().filter(|choice| choice.from.is_quantized());
    let again = quantized.filter(|choice| choice.from != choice.to || (is_copy && of_mix(choice)));
    again.map(|choice| choice.tensor.clone()).collect()
}

fn choose(step: &PolicyStep, known: &FromHeader<'_>) -> Result<Option<Table>, Incomplete> {
    let keep = keep_of(step);
    if let (Some(constraints), Some(budget)) = (step.method.constraints(), step.method.budget()) {
        // The losses decide which choice is best, but not whether there is one.
        let budget = known.budget(budget)?;
        check_feasible(known, &constraints.document(keep), &known.header()?, budget)?;
        return Ok(None);
    }
    let document = step.method.document(keep, known)?;
    Ok(Some(document.choose(known)?.table))
}

/// Why the header does not give a choice.
enum Incomplete {
    /// It depends on more than the header.
    Unknown,
    /// The policy does not fit the model.
    Failed(Box<StepError>),
}

impl From<MethodError> for Incomplete {
    fn from(error: MethodError) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

impl From<StepError> for Incomplete {
    fn from(error: StepError) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// The header of a model, in place of all that a method may ask for.
struct FromHeader<'m> {
    facts: &'m ModelFacts,
    metadata: &'m Metadata,
    /// The name of the text of the imatrix.
    dataset: Option<&'m str>,
    has: HasImatrix<'m>,
    /// Whether nothing was asked for that is only assumed here.
    is_exact: Cell<bool>,
}

impl<'m> FromHeader<'m> {
    /// Returns `None` if the header does not have what policies need.
    fn new(step: &PolicyStep, header: &'m Header, dataset: Option<&'m str>) -> Option<Self> {
        Some(Self {
            facts: header.facts.as_ref()?,
            metadata: &header.metadata,
            dataset,
            has: assumed_imatrix(step),
            is_exact: Cell::new(true),
        })
    }

    /// Marks the choice as one that depends on more than the header.
    fn assume<T>(&self, value: T) -> T {
        self.is_exact.set(false);
        value
    }
}

/// Returns which tensors the imatrix of a policy is assumed to cover before it is collected: all, if the policy has one.
pub(super) fn assumed_imatrix(step: &PolicyStep) -> HasImatrix<'static> {
    step.join.is_some().then_some(&|_: &str| true)
}

/// A digest that names nothing.
fn nothing() -> BlobDigest {
    BlobDigest::of(b"")
}

impl method::Inputs for FromHeader<'_> {
    type Error = Incomplete;

    fn model(&self) -> Result<BlobDigest, Incomplete> {
        Err(Incomplete::Unknown)
    }

    fn tokenizer(&self) -> Result<BlobDigest, Incomplete> {
        Err(Incomplete::Unknown)
    }

    fn header(&self) -> Result<HeaderDocument, Incomplete> {
        // The name makes the header longer, and a budget counts every byte.
        if self.has.is_some() && self.dataset.is_none() {
            return Err(Incomplete::Unknown);
        }
        Ok(self.assume(HeaderDocument {
            metadata: nothing(),
            dataset: self.dataset.map(str::to_owned),
        }))
    }

    fn imatrix(&self) -> Result<Option<BlobDigest>, Incomplete> {
        Ok(self.assume(self.has.is_some().then(nothing)))
    }

    fn corpus(&self, _step: &StepId) -> Result<BlobDigest, Incomplete> {
        Err(Incomplete::Unknown)
    }

    fn imatrix_of(&self, _step: &StepId) -> Result<BlobDigest, Incomplete> {
        Err(Incomplete::Unknown)
    }

    fn budget(&self, budget: &Budget) -> Result<BudgetDocument, Incomplete> {
        super::budget::of_quantity(budget).ok_or(Incomplete::Unknown)
    }

    fn rounding(&self) -> Result<Option<RoundingDocument>, Incomplete> {
        Ok(self.assume(None))
    }

    fn engine(&self, _role: EngineRole) -> Result<Fingerprint, Incomplete> {
        Err(Incomplete::Unknown)
    }
}

impl method::Material for FromHeader<'_> {
    type Error = Incomplete;

    fn facts(&self) -> &ModelFacts {
        self.facts
    }

    fn has_imatrix(&self) -> HasImatrix<'_> {
        self.has
    }

    /// Equal energies: they decide which tensors are dearest, but not whether a choice fits.
    fn energies(&self, _imatrix: BlobDigest) -> Result<Energies, Incomplete> {
        let energy = |dims: &[u64]| Energy {
            mean: 1.0,
            experts: vec![1.0; dims.get(2).map_or(1, |experts| usize::try_from(*experts).unwrap_or(1))],
            columns: dims.first().copied().unwrap_or(1),
            tie: 0,
        };
        let tensors = self.facts.tensors.iter();
        let energies = tensors.map(|tensor| (tensor.name.clone(), energy(&tensor.dims)));
        Ok(self.assume(energies.collect()))
    }

    fn file_size(&self, header: &HeaderDocument) -> Result<FileSize, Incomplete> {
        let dataset = header.dataset.as_deref();
        Ok(file_size_of_header(self.metadata.clone(), self.facts, dataset)?)
    }

    fn metadata(&self, _header: &HeaderDocument) -> Result<Metadata, Incomplete> {
        Ok(self.metadata.clone())
    }

    fn check_stopped(&self) -> Result<(), Incomplete> {
        Ok(())
    }

    fn cancel(&self) -> Option<&Cancel> {
        None
    }
}
