//! The estimated work of refining codes.

use std::collections::BTreeSet;

use crate::observer::Phase;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::policy::likely_inputs;
use crate::rounding::Factor;
use crate::rounding::Rounding;
use crate::rounding::why_not_refined;
use crate::tensor_type::TensorType;
use crate::timing::Amounts;
use crate::timing::Operation;
use crate::timing::PhaseWork;
use crate::work::refining_memory;

/// Returns the memory that refining the codes of tensors in types takes, in bytes: one tensor is refined at a time.
pub(super) fn memory(facts: &ModelFacts, types: &[TensorType]) -> u64 {
    let inputs = likely_inputs(facts);
    let tensors = facts.tensors.iter().zip(types).enumerate();
    let refined = tensors.filter(|(at, (tensor, to))| {
        **to != tensor.ty && why_not_refined(**to).is_none() && inputs.iter().any(|input| input.tensors.contains(at))
    });
    let memory = refined.map(|(_, (tensor, to))| {
        let rows = tensor.dims.get(1).copied().unwrap_or(1);
        refining_memory(*to, tensor.columns(), Some(rows))
    });
    memory.max().unwrap_or_default()
}

/// Returns the phase of refining the codes of tensors, by their places, in types. Those without an input of their own are not refined.
pub(super) fn phase(facts: &ModelFacts, tensors: impl IntoIterator<Item = (usize, TensorType)>) -> PhaseWork {
    let inputs = likely_inputs(facts);
    let mut refining = Refining::default();
    for (at, to) in tensors {
        let input = inputs.iter().position(|input| input.tensors.contains(&at));
        if let (Some(input), Some(tensor)) = (input, facts.tensors.get(at)) {
            refining.add(tensor, to, input);
        }
    }
    PhaseWork::new(Phase::Codes, refining.bytes, refining.amounts)
}

/// The work of refining codes.
#[derive(Default)]
struct Refining {
    /// The bytes of tensors whose codes are refined.
    bytes: f64,
    /// The work.
    amounts: Amounts,
    /// The inputs whose factorizations are counted.
    inputs: BTreeSet<usize>,
}

impl Refining {
    /// Adds a tensor in a type; `input` says which tensors share a factorization.
    fn add(&mut self, tensor: &TensorFacts, to: TensorType, input: usize) {
        if why_not_refined(to).is_some() {
            return;
        }
        let weights = tensor.dims.iter().product::<u64>();
        let columns = tensor.columns();
        self.bytes += tensor.ty.tensor_bytes(&tensor.dims).unwrap_or_default() as f64;
        // The search of scales runs once more, on compensated columns.
        self.amounts.add(Operation::Quantize(to), weights);
        // Half of the operations are multiplications, and what is done between products takes as long as they. Most second moments have a
        // part for validation.
        let operations = Rounding::operations(to, columns, weights / columns.max(1), true);
        self.amounts.add(Operation::Product, operations);
        if self.inputs.insert(input) {
            let matrices: u64 = tensor.dims.iter().skip(2).product();
            // Of 64-bit floats, which take twice as long.
            self.amounts
                .add(Operation::Product, Factor::operations(columns) * matrices as f64);
        }
        self.amounts.add(Operation::Commit, 1_u64);
    }
}
