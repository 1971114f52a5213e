//! What the blocks of figures and of references begin with: a magic and five numbers.

/// Bytes of it.
pub(super) const HEADER: usize = 24;

/// Reads a magic and the five numbers after it.
pub(super) fn header(magic: [u8; 4], bytes: &[u8]) -> Option<[u32; 5]> {
    let rest = bytes.strip_prefix(&magic)?.get(..HEADER - 4)?;
    let mut numbers = [0; 5];
    for (number, bytes) in numbers.iter_mut().zip(rest.as_chunks::<4>().0) {
        *number = u32::from_le_bytes(*bytes);
    }
    Some(numbers)
}
