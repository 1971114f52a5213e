//! The GGUF form: per weight the tensors `<name>.in_sum2` of `[columns, matrices]` and `<name>.counts` of
//! `[1, matrices]`, both F32.

use std::collections::BTreeMap;

use super::dat::floats;
use super::{Entry, Imatrix, ImatrixError, NoMemory};
use crate::gguf;
use crate::gguf::{
    DEFAULT_ALIGNMENT, GgufError, Header, Layout, Metadata, Place, Problem, TensorInfo, TensorSpec, Value,
};
use crate::tensor_type::TensorType;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// What is wrong with the GGUF form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufFormError {
    /// The container itself.
    #[error(transparent)]
    Container(#[from] GgufError),
    /// Its numbers do not fit into memory.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// A GGUF without what makes it an imatrix.
    #[error(
        "key `{key}` is missing or of the wrong type: {}", match .holds {
            Some(kind) => format!("this GGUF holds `{kind}`, not an imatrix"),
            None => "this GGUF is not an imatrix".to_owned(),
        }
    )]
    Key {
        /// The key.
        key: &'static str,
        /// What the file says it is (`general.architecture`).
        holds: Option<String>,
    },
    /// A GGUF that says of itself that it is something else, whatever keys and tensors it has.
    #[error("this GGUF holds `{found}`, not an imatrix (`general.type`); give the file that `llama-imatrix` wrote")]
    Kind {
        /// Its `general.type`.
        found: String,
    },
    /// No statistics in it.
    #[error("the imatrix has no entries")]
    NoEntries,
    /// Half of a pair.
    #[error("entry `{entry}` has no tensor `{entry}{missing}`")]
    Unpaired {
        /// The weight.
        entry: String,
        /// The suffix of the missing tensor.
        missing: &'static str,
    },
    /// Statistics in another type.
    #[error("tensor `{tensor}` is {found}, but statistics are F32")]
    Type {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: TensorType,
    },
    /// Counts in chunks, which this form does not have.
    #[error(
        "the statistics come from a legacy file, whose counts are in chunks of unknown size; say how many tokens a chunk had"
    )]
    ChunkSizeUnknown,
}

impl Imatrix {
    /// Reads the GGUF form. Counts are rounded to whole numbers and tensors without a known suffix are passed over, both
    /// as llama-quantize does.
    pub fn parse_gguf(bytes: &[u8]) -> Result<Self, ImatrixError> {
        let header = gguf::parse(bytes).map_err(GgufFormError::from)?;
        let (datasets, chunk_count, chunk_size) = read_keys(&header.metadata)?;
        let mut entries = BTreeMap::new();
        for (name, pair) in pairs(&header) {
            if name.is_empty() {
                let place = Place::Tensor {
                    index: 0,
                    name: Some(SUMS.to_owned()),
                };
                let error = GgufError {
                    offset: None,
                    place,
                    problem: Problem::NameEmpty,
                };
                return Err(GgufFormError::from(error).into());
            }
            let unpaired = |missing| GgufFormError::Unpaired {
                entry: name.to_owned(),
                missing,
            };
            let sums = read(bytes, &header, pair.0.ok_or_else(|| unpaired(SUMS))?)?;
            let counts = read(bytes, &header, pair.1.ok_or_else(|| unpaired(COUNTS))?)?;
            let shape = (sums.len(), counts.len());
            let counts = counts.into_iter().map(f32::round).collect();
            let entry = Entry::new(sums, counts).ok_or_else(|| ImatrixError::Shape {
                entry: name.to_owned(),
                sums: shape.0,
                counts: shape.1,
            })?;
            entries.insert(name.to_owned(), entry);
        }
        if entries.is_empty() {
            return Err(GgufFormError::NoEntries.into());
        }
        Self {
            datasets,
            chunk_count,
            chunk_size,
            entries,
        }
        .checked()
    }

    /// Writes the GGUF form as llama-imatrix does, byte for byte: the four keys, then the weights sorted by name. The
    /// same statistics always give the same bytes.
    ///
    /// # Errors
    ///
    /// Names of more than 55 bytes (a tensor name holds at most 63 bytes, and llama.cpp would truncate longer ones), statistics whose counts
    /// are in chunks, entries whose numbers are no statistics.
    pub fn to_gguf(&self) -> Result<Vec<u8>, ImatrixError> {
        if self.chunk_size == 0 {
            return Err(GgufFormError::ChunkSizeUnknown.into());
        }
        self.check()?;
        let layout = self.layout().map_err(GgufFormError::from)?;
        let mut out = Vec::with_capacity(layout.file_len() as usize);
        out.extend(layout.header());
        for entry in self.entries.values() {
            for numbers in [&entry.sums, &entry.counts] {
                out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                let padded = out.len() + layout.padding(numbers.len() as u64 * 4) as usize;
                out.resize(padded, 0);
            }
        }
        Ok(out)
    }

    fn layout(&self) -> Result<Layout, GgufError> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", &"imatrix".into())?;
        metadata.set(DATASETS, &Value::strings(&self.datasets))?;
        metadata.set(CHUNK_COUNT, &self.chunk_count.into())?;
        metadata.set(CHUNK_SIZE, &self.chunk_size.into())?;
        let mut specs = Vec::new();
        for (name, entry) in &self.entries {
            for (suffix, columns) in [(SUMS, entry.columns), (COUNTS, 1)] {
                let dims = [columns as u64, entry.counts.len() as u64];
                specs.push(TensorSpec {
                    name: format!("{name}{suffix}"),
                    ty: TensorType::F32,
                    dims: gguf::without_trailing_ones(&dims).to_vec(),
                });
            }
        }
        Layout::new(&metadata, &specs, DEFAULT_ALIGNMENT)
    }
}

fn read_keys(metadata: &Metadata) -> Result<(Vec<String>, u32, u32), GgufFormError> {
    let wrong = |key| {
        let holds = metadata
            .get_str("general.architecture")
            .map(|said| said.chars().take(80).collect());
        GgufFormError::Key { key, holds }
    };
    if let Some(found) = metadata.get_str("general.type").filter(|found| *found != "imatrix") {
        return Err(GgufFormError::Kind {
            found: found.chars().take(80).collect(),
        });
    }
    let datasets = metadata.get_string_array(DATASETS).ok_or_else(|| wrong(DATASETS))?;
    // Paths are bytes; these are only ever shown.
    let datasets = datasets
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    let chunk_count = metadata.get_u32(CHUNK_COUNT).ok_or_else(|| wrong(CHUNK_COUNT))?;
    let chunk_size = metadata.get_u32(CHUNK_SIZE).ok_or_else(|| wrong(CHUNK_SIZE))?;
    Ok((datasets, chunk_count, chunk_size))
}

type Pair<'a> = (Option<&'a TensorInfo>, Option<&'a TensorInfo>);

/// Returns the tensors of each weight.
fn pairs(header: &Header) -> BTreeMap<&str, Pair<'_>> {
    let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
    for tensor in &header.tensors {
        if let Some(name) = tensor.name.strip_suffix(SUMS) {
            pairs.entry(name).or_default().0 = Some(tensor);
        } else if let Some(name) = tensor.name.strip_suffix(COUNTS) {
            pairs.entry(name).or_default().1 = Some(tensor);
        }
    }
    pairs
}

fn read(bytes: &[u8], header: &Header, tensor: &TensorInfo) -> Result<Vec<f32>, GgufFormError> {
    if tensor.ty != TensorType::F32 {
        return Err(GgufFormError::Type {
            tensor: tensor.name.clone(),
            found: tensor.ty,
        });
    }
    // The header's check put the tensor inside the bytes.
    let start = (header.data_offset + tensor.offset) as usize;
    let data = bytes.get(start..).and_then(|bytes| bytes.get(..tensor.len as usize));
    Ok(floats(data.unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imatrix::tests::sample;

    #[test]
    fn writing_is_deterministic_and_reads_back() {
        let bytes = sample().to_gguf().unwrap();
        assert_eq!(Imatrix::parse(&bytes).unwrap(), sample());
        assert_eq!(Imatrix::parse(&bytes).unwrap().to_gguf().unwrap(), bytes);
        let header = gguf::parse(&bytes).unwrap();
        let names: Vec<_> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "blk.0.attn_q.weight.in_sum2",
                "blk.0.attn_q.weight.counts",
                "blk.0.ffn_up_exps.weight.in_sum2",
                "blk.0.ffn_up_exps.weight.counts",
            ]
        );
        assert_eq!(header.tensors[1].dims, [1]);
        assert_eq!(header.tensors[2].dims, [2, 3]);
        assert_eq!(header.tensors[3].dims, [1, 3]);
        let keys: Vec<_> = header.metadata.iter().map(gguf::Entry::key).collect();
        assert_eq!(keys, ["general.type", DATASETS, CHUNK_COUNT, CHUNK_SIZE]);
    }

    #[test]
    fn a_file_with_another_kind_is_refused() {
        let bytes = sample().to_gguf().unwrap();
        let word = bytes.windows(7).position(|window| window == b"imatrix").unwrap();
        assert!(
            bytes[..word].ends_with(&[7, 0, 0, 0, 0, 0, 0, 0]),
            "the value, not a key"
        );
        for found in ["matrixx", "adapter"] {
            let mut other = bytes.clone();
            other[word..word + 7].copy_from_slice(found.as_bytes());
            let error = Imatrix::parse(&other).unwrap_err();
            let expected = GgufFormError::Kind {
                found: found.to_owned(),
            };
            assert_eq!(error, expected.into());
        }
    }

    #[test]
    fn what_the_form_cannot_say_is_refused() {
        let mut legacy = sample();
        legacy.chunk_size = 0;
        assert_eq!(legacy.to_gguf().unwrap_err(), GgufFormError::ChunkSizeUnknown.into());
        let mut long = sample();
        long.entries
            .insert("x".repeat(56), Entry::new(vec![1.0], vec![1.0]).unwrap());
        let error = long.to_gguf().unwrap_err().to_string();
        assert!(error.contains("64 bytes long; llama.cpp reads at most 63"), "{error}");
        let mut broken = sample();
        broken.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[1] = f32::NAN;
        let error = broken.to_gguf().unwrap_err().to_string();
        assert!(
            error.contains("entry `blk.0.attn_q.weight`: sum number 1 is NaN"),
            "{error}"
        );
    }
}
