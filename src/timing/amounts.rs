//! Kinds of work with a speed of their own, and amounts of them.

use std::collections::BTreeMap;
use std::fmt;

use crate::tensor_type::TensorType;

/// A kind of work. Its unit is what [`Amounts`] counts and speeds are given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Starting a worker process. Unit: a process.
    Start,
    /// Loading a model into memory. Unit: a byte.
    Load,
    /// Reading a file and hashing it. Unit: a byte.
    Hash,
    /// Writing a candidate, hashing it, and reading it again. Unit: a byte.
    Write,
    /// Looking for the result of an action and committing it. Unit: an action.
    Commit,
    /// Quantizing to a type. Unit: a weight.
    Quantize(TensorType),
    /// Building the tables that quantizing to a type needs, once in a process. Unit: the tables of a type.
    Tables(TensorType),
    /// Comparing a tensor with its values in a type, without quantizing it. Unit: a weight.
    Compare(TensorType),
    /// Multiplying weights of a type with activations. Unit: a multiply-add.
    Multiply(TensorType),
    /// Starting the nodes of a computation graph. Unit: a node.
    Node,
    /// Comparing the logits of two models. Unit: a logit.
    Score,
    /// Computing and storing log-probabilities of a reference. Unit: a logit.
    Encode,
    /// Summing the squared activations for an imatrix. Unit: an activation.
    Collect,
    /// Multiplying matrices of 32-bit floats, not in the engine: second moments, refined codes. Unit: a multiply-add.
    Product,
}

impl Operation {
    /// Returns all operations.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = [
            Self::Start,
            Self::Load,
            Self::Hash,
            Self::Write,
            Self::Commit,
            Self::Node,
            Self::Score,
            Self::Encode,
            Self::Collect,
            Self::Product,
        ];
        let of_types = TensorType::ALL.iter().flat_map(|&ty| {
            [
                Self::Quantize(ty),
                Self::Tables(ty),
                Self::Compare(ty),
                Self::Multiply(ty),
            ]
        });
        plain.into_iter().chain(of_types)
    }

    /// Returns the tensor type of an operation that has one.
    pub fn tensor_type(self) -> Option<TensorType> {
        match self {
            Self::Quantize(ty) | Self::Compare(ty) | Self::Multiply(ty) => Some(ty),
            _ => None,
        }
    }

    /// Returns the operation with a name, as it is displayed.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|operation| operation.to_string() == name)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Load => f.write_str("load"),
            Self::Hash => f.write_str("hash"),
            Self::Write => f.write_str("write"),
            Self::Commit => f.write_str("commit"),
            Self::Quantize(ty) => write!(f, "quantize {ty}"),
            Self::Tables(ty) => write!(f, "tables {ty}"),
            Self::Compare(ty) => write!(f, "compare {ty}"),
            Self::Multiply(ty) => write!(f, "multiply {ty}"),
            Self::Node => f.write_str("node"),
            Self::Score => f.write_str("score"),
            Self::Encode => f.write_str("encode"),
            Self::Collect => f.write_str("collect"),
            Self::Product => f.write_str("product"),
        }
    }
}

/// Amounts of work, in the units of the operations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Amounts(BTreeMap<Operation, f64>);

impl Amounts {
    /// Returns an amount of one operation.
    pub fn of(operation: Operation, amount: impl Into<Amount>) -> Self {
        let mut amounts = Self::default();
        amounts.add(operation, amount);
        amounts
    }

    /// Adds an amount of an operation.
    pub fn add(&mut self, operation: Operation, amount: impl Into<Amount>) {
        let Amount(amount) = amount.into();
        if amount > 0.0 {
            *self.0.entry(operation).or_default() += amount;
        }
    }

    /// Returns these amounts and others.
    #[must_use]
    pub fn and(mut self, others: &Self) -> Self {
        for (&operation, &amount) in &others.0 {
            self.add(operation, amount);
        }
        self
    }

    /// Returns the amounts of doing all of it so many times.
    #[must_use]
    pub fn times(&self, factor: impl Into<Amount>) -> Self {
        let Amount(factor) = factor.into();
        Self(
            self.0
                .iter()
                .map(|(&operation, amount)| (operation, amount * factor))
                .collect(),
        )
    }

    /// Returns the operations and their amounts.
    pub fn iter(&self) -> impl Iterator<Item = (Operation, f64)> + '_ {
        self.0.iter().map(|(&operation, &amount)| (operation, amount))
    }
}

/// A number of units.
#[derive(Debug, Clone, Copy)]
pub struct Amount(f64);

impl From<f64> for Amount {
    fn from(amount: f64) -> Self {
        Self(amount)
    }
}

impl From<u64> for Amount {
    fn from(amount: u64) -> Self {
        Self(amount as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_found_by_its_name() {
        for operation in Operation::all() {
            assert_eq!(Operation::from_name(&operation.to_string()), Some(operation));
        }
        assert_eq!(Operation::from_name("quantize Q4_L"), None);
    }

    #[test]
    fn amounts_add_up() {
        let read = Amounts::of(Operation::Hash, 10_u64);
        let both = read
            .times(2.5)
            .and(&Amounts::of(Operation::Hash, 5_u64))
            .and(&Amounts::of(Operation::Start, 1_u64));
        assert_eq!(
            both.iter().collect::<Vec<_>>(),
            [(Operation::Start, 1.0), (Operation::Hash, 30.0)]
        );
    }
}
