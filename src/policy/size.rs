//! How long a candidate's file is, to the byte.

use crate::policy::Choice;

/// The size of a file without the data of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSize {
    /// The header, with the padding up to the data. It does not depend on the types.
    pub header: u64,
    /// Every tensor is padded to a multiple of this.
    pub alignment: u64,
}

impl FileSize {
    /// Returns what a tensor of this length takes, padding included.
    pub fn padded(&self, bytes: u64) -> u64 {
        bytes
            .checked_next_multiple_of(self.alignment.max(1))
            .unwrap_or(u64::MAX)
    }

    /// Returns the length of the file of these choices.
    pub fn of(&self, choices: &[Choice]) -> u64 {
        let data = choices.iter().map(|choice| self.padded(choice.bytes));
        data.fold(self.header, u64::saturating_add)
    }
}

/// What a file may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Bytes of the file.
    Bytes(u64),
    /// Millionths of bits per weight, of the whole file.
    MillionthsOfBits(u64),
}

impl Budget {
    /// Returns the most bytes for a model of this many weights. A fraction of a byte is dropped: a budget is never exceeded.
    pub fn bytes(self, elements: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::MillionthsOfBits(rate) => {
                let bits = u128::from(rate) * u128::from(elements) / 8_000_000;
                u64::try_from(bits).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_bytes_rounded_down() {
        assert_eq!(Budget::Bytes(5).bytes(1000), 5);
        assert_eq!(Budget::MillionthsOfBits(4_500_000).bytes(1001), 563);
        assert_eq!(Budget::MillionthsOfBits(u64::MAX).bytes(u64::MAX), u64::MAX);
        let size = FileSize {
            header: 64,
            alignment: 32,
        };
        assert_eq!(
            (size.padded(33), size.padded(0), size.padded(u64::MAX)),
            (64, 0, u64::MAX)
        );
    }
}
