//! Reading a header: all that stands before the tensors' data.

use std::collections::HashSet;

use super::cursor::{Cursor, Stop};
use super::error::{GgufError, Place, Problem};
use super::metadata::{Entry, Metadata};
use super::value::ValueType;
use super::{MAGIC, MAX_TENSOR_NAME};
use crate::tensor_type::TensorType;

/// The maximum length of a header, in bytes. Headers with the largest vocabularies have about 30 MB.
pub const MAX_HEADER: u64 = 1 << 28;

/// The fewest bytes that a key takes: a name of one byte and a value of one byte.
const MIN_KEY: u64 = 8 + 1 + 4 + 1;

/// The fewest bytes that a tensor takes: a name of one byte and one dimension.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// All that a GGUF file says before its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// The keys, in the file's order.
    pub metadata: Metadata,
    /// The tensors, in the order of the file's list (which need not be that of their data).
    pub tensors: Vec<TensorInfo>,
    /// The alignment of the data, a power of two.
    pub alignment: u64,
    /// Where the data starts, in bytes from the start of the file.
    pub data_offset: u64,
}

impl Header {
    /// Returns a tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// A tensor's name, type, shape and place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, at most 63 bytes.
    pub name: String,
    /// The type of the elements.
    pub ty: TensorType,
    /// The sizes, fastest first, one to four, none 0.
    pub dims: Vec<u64>,
    /// Where the bytes start, counted from the start of the data (not of the file).
    pub offset: u64,
    /// How many bytes there are, without padding.
    pub len: u64,
}

impl TensorInfo {
    /// Returns the length of a row in elements.
    pub fn ncols(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Returns how many rows there are, over all further dimensions.
    pub fn nrows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }

    /// Returns how many matrices there are: the experts of a routed layer, else 1.
    pub fn matrices(&self) -> u64 {
        self.dims.iter().skip(2).product()
    }

    /// Returns how many elements there are.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// Reads the header of a whole file in memory (or mapped).
///
/// # Errors
///
/// The first fault found, with its place. See [`Problem`].
pub fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
    let total = bytes.len() as u64;
    match parse_window(bytes, total) {
        Ok(header) => Ok(header),
        Err(Stop::Wrong(error)) => Err(*error),
        // Not reached: the window is the file.
        Err(Stop::More(needed)) => Err(GgufError {
            offset: Some(total),
            place: Place::File,
            problem: Problem::Truncated {
                what: "the header",
                needed,
                left: 0,
            },
        }),
    }
}

/// Reads a header from the first bytes of a file that is `total` bytes long.
pub(super) fn parse_window(window: &[u8], total: u64) -> Result<Header, Stop> {
    let mut cursor = Cursor::new(window, total);
    let version = read_start(&mut cursor)?;
    let tensor_count = cursor.u64("the number of tensors")?;
    let key_count = cursor.u64("the number of keys")?;
    check_count(&cursor, "keys", key_count, MIN_KEY)?;
    check_count(&cursor, "tensors", tensor_count, MIN_TENSOR)?;

    let metadata = read_metadata(&mut cursor, key_count)?;
    let alignment = metadata.alignment()?;
    let tensors = read_tensors(&mut cursor, tensor_count)?;

    cursor.place = Place::File;
    let data_offset = match cursor.at().checked_next_multiple_of(alignment) {
        Some(offset) if offset <= total => offset,
        // Without tensors nothing is read there, and llama.cpp asks for nothing.
        _ if tensors.is_empty() => cursor.at(),
        offset => {
            let needed = offset.unwrap_or(u64::MAX).saturating_sub(cursor.at());
            let problem = Problem::Truncated {
                what: "the padding before the data",
                needed,
                left: cursor.left(),
            };
            return Err(cursor.wrong(problem).into());
        }
    };
    check_places(&tensors, alignment, data_offset, total)?;
    Ok(Header {
        version,
        metadata,
        tensors,
        alignment,
        data_offset,
    })
}

fn read_start(cursor: &mut Cursor<'_>) -> Result<u32, Stop> {
    if cursor.left() == 0 {
        return Err(cursor.wrong(Problem::Empty).into());
    }
    let magic = cursor.array::<4>("the magic")?;
    if magic != MAGIC {
        let problem = if magic == [0; 4] {
            Problem::Zeros
        } else {
            Problem::Magic { found: magic }
        };
        return Err(GgufError {
            offset: Some(0),
            place: Place::File,
            problem,
        }
        .into());
    }
    let version = cursor.u32("the version")?;
    let problem = match version {
        2 | 3 => return Ok(version),
        swapped if swapped != 0 && swapped.trailing_zeros() >= 16 => Problem::ByteSwapped { found: version },
        _ => Problem::Version { found: version },
    };
    Err(GgufError {
        offset: Some(4),
        place: Place::File,
        problem,
    }
    .into())
}

fn check_count(cursor: &Cursor<'_>, what: &'static str, count: u64, smallest: u64) -> Result<(), Stop> {
    let left = cursor.left();
    let max = left / smallest;
    if count > max {
        return Err(cursor.wrong(Problem::Count { what, count, left, max }).into());
    }
    Ok(())
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, Stop> {
    let mut metadata = Metadata::new();
    for index in 0..count {
        cursor.place = Place::Key { index, name: None };
        let key = cursor.name("a key's name")?;
        cursor.place = Place::Key {
            index,
            name: Some(key.to_owned()),
        };
        if metadata.contains(key) {
            return Err(cursor.wrong(Problem::Duplicate).into());
        }
        let ty = read_value_type(cursor)?;
        let start = cursor.at();
        skip_value(cursor, ty)?;
        metadata.set_entry(Entry::from_raw(key.to_owned(), ty, cursor.since(start).to_vec()));
    }
    Ok(metadata)
}

fn read_value_type(cursor: &mut Cursor<'_>) -> Result<ValueType, Stop> {
    let found = cursor.u32("a value's type")?;
    ValueType::from_id(found).ok_or_else(|| cursor.wrong(Problem::UnknownValueType { found }).into())
}

/// Walks over a value and checks it on the way.
fn skip_value(cursor: &mut Cursor<'_>, ty: ValueType) -> Result<(), Stop> {
    if let Some(size) = ty.size() {
        return cursor.take(size, "a value").map(drop);
    }
    if ty == ValueType::String {
        return cursor.string("a string").map(drop);
    }
    let ty = read_value_type(cursor)?;
    let count = cursor.u64("an array's length")?;
    // A string takes its length at the least.
    let size = ty.size().unwrap_or(8);
    let left = cursor.left();
    match count.checked_mul(size).filter(|bytes| *bytes <= left) {
        _ if ty == ValueType::Array => Err(cursor.wrong(Problem::NestedArray).into()),
        None => Err(cursor.wrong(Problem::ArrayLength { count, ty, left }).into()),
        Some(_) if ty == ValueType::String => (0..count).try_for_each(|_| cursor.string("a string").map(drop)),
        Some(bytes) => cursor.take(bytes, "an array").map(drop),
    }
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorInfo>, Stop> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..count {
        cursor.place = Place::Tensor { index, name: None };
        let name = cursor.name("a tensor's name")?;
        cursor.place = Place::Tensor {
            index,
            name: Some(name.to_owned()),
        };
        if name.len() > MAX_TENSOR_NAME {
            return Err(cursor
                .wrong(Problem::NameLength {
                    length: name.len() as u64,
                })
                .into());
        }
        if !seen.insert(name) {
            return Err(cursor.wrong(Problem::Duplicate).into());
        }
        let dimensions = cursor.u32("the number of dimensions")?;
        if !(1..=4).contains(&dimensions) {
            return Err(cursor
                .wrong(Problem::Dimensions {
                    found: dimensions.into(),
                })
                .into());
        }
        let dims = (0..dimensions)
            .map(|_| cursor.u64("a dimension"))
            .collect::<Result<Vec<_>, _>>()?;
        let id = cursor.u32("the tensor's type")?;
        let ty = TensorType::from_id(id).ok_or_else(|| cursor.wrong(Problem::UnknownTensorType { id }))?;
        let len = tensor_len(ty, &dims).map_err(|problem| cursor.wrong(problem))?;
        let offset = cursor.u64("the tensor's offset")?;
        tensors.push(TensorInfo {
            name: name.to_owned(),
            ty,
            dims,
            offset,
            len,
        });
    }
    Ok(tensors)
}

/// Returns the bytes of a tensor after all that can be wrong with a shape was asked.
pub(super) fn tensor_len(ty: TensorType, dims: &[u64]) -> Result<u64, Problem> {
    if dims.is_empty() || dims.len() > 4 {
        return Err(Problem::Dimensions {
            found: dims.len() as u64,
        });
    }
    if let Some(index) = dims.iter().position(|dim| *dim == 0) {
        return Err(Problem::DimensionZero { index });
    }
    // llama.cpp counts elements and bytes in signed 64 bits.
    let countable = |count: &u64| i64::try_from(*count).is_ok();
    let overflow = || Problem::ShapeOverflow { dims: dims.to_vec() };
    dims.iter()
        .try_fold(1u64, |all, dim| all.checked_mul(*dim))
        .filter(countable)
        .ok_or_else(overflow)?;
    if !dims[0].is_multiple_of(ty.block_elements()) {
        return Err(Problem::RowBlocks { ty, ncols: dims[0] });
    }
    ty.tensor_bytes(dims).filter(countable).ok_or_else(overflow)
}

/// Checks that the data of all tensors is aligned, inside the file, and does not overlap.
fn check_places(tensors: &[TensorInfo], alignment: u64, data_offset: u64, total: u64) -> Result<(), Stop> {
    let wrong = |index: usize, problem| {
        let place = Place::Tensor {
            index: index as u64,
            name: Some(tensors[index].name.clone()),
        };
        Stop::from(GgufError {
            offset: None,
            place,
            problem,
        })
    };
    for (index, tensor) in tensors.iter().enumerate() {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(wrong(
                index,
                Problem::Misaligned {
                    offset: tensor.offset,
                    alignment,
                },
            ));
        }
        let end = data_offset
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.len));
        match end {
            Some(end) if end <= total => {}
            _ => {
                let problem = Problem::OutsideFile {
                    end: end.unwrap_or(u64::MAX),
                    file_len: total,
                };
                return Err(wrong(index, problem));
            }
        }
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|index| tensors[*index].offset);
    for pair in order.windows(2) {
        let (first, second) = (&tensors[pair[0]], &tensors[pair[1]]);
        // No overflow: both lie inside the file.
        if first.offset + first.len > second.offset {
            return Err(wrong(
                pair[1],
                Problem::Overlap {
                    other: first.name.clone(),
                },
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{ALIGNMENT_KEY, Layout, TensorSpec, Value};

    /// A file with every kind of value and three tensors.
    fn sample(alignment: u32) -> Vec<u8> {
        let mut metadata = Metadata::new();
        let numbers = Value::Array(ValueType::I32, vec![Value::I32(1), Value::I32(-1)]);
        metadata.set("general.architecture", &"toy".into()).unwrap();
        metadata.set("toy.numbers", &numbers).unwrap();
        metadata
            .set("toy.tokens", &Value::strings([&b"\xff"[..], b"b"]))
            .unwrap();
        metadata.set("toy.none", &Value::strings::<&str>([])).unwrap();
        metadata.set(ALIGNMENT_KEY, &alignment.into()).unwrap();
        let spec = |name: &str, ty, dims: &[u64]| TensorSpec {
            name: name.to_owned(),
            ty,
            dims: dims.to_vec(),
        };
        let tensors = [
            spec("a.weight", TensorType::Q8_0, &[64, 3]),
            spec("b.weight", TensorType::F32, &[5]),
            spec("c.weight", TensorType::Q4_K, &[256, 1, 2]),
        ];
        let layout = Layout::new(&metadata, &tensors, alignment.into()).unwrap();
        let mut bytes = Vec::new();
        let fill = &mut |index: usize, out: &mut dyn std::io::Write| {
            out.write_all(&vec![index as u8 + 1; layout.tensors()[index].len as usize])
        };
        layout.write(&mut bytes, fill).unwrap();
        assert_eq!(bytes.len() as u64, layout.file_len());
        bytes
    }

    #[test]
    fn a_file_written_again_from_its_header_is_the_same() {
        for alignment in [1, 8, 32, 4096] {
            let bytes = sample(alignment);
            let header = parse(&bytes).unwrap();
            assert_eq!((header.version, header.alignment), (3, alignment.into()));
            let specs: Vec<_> = header.tensors.iter().map(TensorSpec::from).collect();
            let layout = Layout::new(&header.metadata, &specs, header.alignment).unwrap();
            assert_eq!(layout.tensors(), header.tensors);
            let mut again = Vec::new();
            let fill = &mut |index: usize, out: &mut dyn std::io::Write| {
                let TensorInfo { offset, len, .. } = header.tensors[index];
                let start = (header.data_offset + offset) as usize;
                // In pieces, as a stream comes.
                bytes[start..start + len as usize]
                    .chunks(7)
                    .try_for_each(|piece| out.write_all(piece))
            };
            layout.write(&mut again, fill).unwrap();
            assert_eq!(again, bytes);
        }
    }

    #[test]
    fn tensors_have_the_shapes_and_offsets_of_the_header() {
        let bytes = sample(64);
        let header = parse(&bytes).unwrap();
        let [a, b, c] = &header.tensors[..] else { panic!() };
        assert_eq!(
            (a.ncols(), a.nrows(), a.elements(), a.offset, a.len),
            (64, 3, 192, 0, 204)
        );
        assert_eq!(
            (b.ncols(), b.nrows(), b.matrices(), b.offset, b.len),
            (5, 1, 1, 256, 20)
        );
        assert_eq!((c.nrows(), c.matrices(), c.offset, c.len), (2, 2, 320, 288));
        assert_eq!(header.data_offset % 64, 0);
        assert_eq!(header.tensor("c.weight"), Some(c));
        assert_eq!(header.metadata.get_array_len("toy.none"), Some(0));
    }

    #[test]
    fn version_2_reads_the_same() {
        let mut bytes = sample(32);
        let three = parse(&bytes).unwrap();
        bytes[4] = 2;
        let two = parse(&bytes).unwrap();
        assert_eq!(two, Header { version: 2, ..three });
    }

    #[test]
    fn the_padding_after_the_last_tensor_may_be_absent() {
        let bytes = sample(4096);
        let header = parse(&bytes).unwrap();
        let last = header.tensors.last().unwrap();
        let end = (header.data_offset + last.offset + last.len) as usize;
        assert_eq!(parse(&bytes[..end]).unwrap(), header);
        assert!(parse(&bytes[..end - 1]).is_err());
    }

    #[test]
    fn any_window_gives_the_header_or_asks_for_more_and_never_blames_the_file() {
        let bytes = sample(32);
        let header = parse(&bytes).unwrap();
        for cut in 0..bytes.len() {
            match parse_window(&bytes[..cut], bytes.len() as u64) {
                Ok(found) => assert_eq!(found, header),
                Err(Stop::More(needed)) => assert!(needed > cut as u64 && needed <= header.data_offset, "{cut}"),
                Err(Stop::Wrong(error)) => panic!("{cut}: {error}"),
            }
        }
    }

    #[test]
    fn without_tensors_the_file_may_end_with_the_keys() {
        let mut metadata = Metadata::new();
        metadata.set("a", &Value::U8(1)).unwrap();
        let layout = Layout::new(&metadata, &[], 32).unwrap();
        assert_eq!(layout.file_len(), 64);
        let header = parse(layout.header()).unwrap();
        assert_eq!(header.data_offset, 64);
        let end = 24 + 8 + 1 + 4 + 1;
        assert_eq!(parse(&layout.header()[..end]).unwrap().data_offset, end as u64);
    }
}
