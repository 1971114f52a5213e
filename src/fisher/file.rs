//! The bytes of factors: a magic text, numbers of 64 bits, and floats of 64 bits, all little-endian.

/// What is wrong with factors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactorsError {
    /// They are for a weight of another shape.
    #[error("the gradients are for a weight of another shape")]
    Shape,
    /// A sum is not finite.
    #[error("a gradient is not finite")]
    NotFinite,
    /// The bytes are something else.
    #[error("the file holds no such factors of gradients")]
    Magic,
    /// There are too few or too many bytes.
    #[error("the file of gradients has {found} bytes, {expected} were expected")]
    Length {
        /// The bytes that are there.
        found: u64,
        /// The bytes that the header asks for.
        expected: u64,
    },
}

/// Writes a file.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(magic: &[u8; 16]) -> Self {
        Self(magic.to_vec())
    }

    pub(super) fn count(&mut self, count: u64) {
        self.0.extend_from_slice(&count.to_le_bytes());
    }

    pub(super) fn number(&mut self, number: f64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// Writes bytes with their length before them; nothing is different from no bytes.
    pub(super) fn part(&mut self, bytes: Option<&[u8]>) {
        self.count(bytes.map_or(0, |bytes| bytes.len() as u64 + 1));
        self.0.extend_from_slice(bytes.unwrap_or_default());
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a file.
pub(super) struct Reader<'b> {
    len: u64,
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8], magic: &[u8; 16]) -> Result<Self, FactorsError> {
        let rest = bytes.strip_prefix(magic).ok_or(FactorsError::Magic)?;
        let len = bytes.len() as u64;
        Ok(Self { len, rest })
    }

    pub(super) fn count(&mut self) -> Result<u64, FactorsError> {
        let Some((first, rest)) = self.rest.split_first_chunk::<8>() else {
            return Err(FactorsError::Length {
                found: self.len,
                expected: self.len + 8 - self.rest.len() as u64,
            });
        };
        self.rest = rest;
        Ok(u64::from_le_bytes(*first))
    }

    /// Returns bytes with their length before them.
    pub(super) fn part(&mut self) -> Result<Option<&'b [u8]>, FactorsError> {
        let Some(len) = self.count()?.checked_sub(1) else {
            return Ok(None);
        };
        let found = self.rest.len() as u64;
        let Some((part, rest)) = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len))
        else {
            return Err(FactorsError::Length {
                found: self.len,
                expected: self.len.saturating_add(len - found),
            });
        };
        self.rest = rest;
        Ok(Some(part))
    }

    /// Checks that nothing is left.
    pub(super) fn end(&self) -> Result<(), FactorsError> {
        self.expect(self.len - self.rest.len() as u64)
    }

    /// Checks the length of the whole file.
    pub(super) fn expect(&self, expected: u64) -> Result<(), FactorsError> {
        if expected == self.len {
            return Ok(());
        }
        Err(FactorsError::Length {
            found: self.len,
            expected,
        })
    }

    /// Returns the floats up to the end. They are sums of squares.
    pub(super) fn rest(self) -> Result<Vec<f64>, FactorsError> {
        let numbers = self
            .rest
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes));
        let numbers: Vec<f64> = numbers.collect();
        if numbers
            .iter()
            .all(|number| number.is_finite() && number.is_sign_positive())
        {
            Ok(numbers)
        } else {
            Err(FactorsError::NotFinite)
        }
    }
}
