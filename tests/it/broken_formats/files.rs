//! Broken GGUF files, put together by hand.

/// A GGUF file put together by hand, field by field, so that each can lie.
#[derive(Clone)]
pub(super) struct Raw {
    pub(super) magic: [u8; 4],
    pub(super) version: u32,
    pub(super) tensor_count: Option<u64>,
    pub(super) key_count: Option<u64>,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) tensors: Vec<Vec<u8>>,
    pub(super) alignment: usize,
    pub(super) data: Vec<u8>,
}

pub(super) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub(super) fn key(name: impl AsRef<[u8]>, ty: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [string(name), ty.to_le_bytes().to_vec(), value.as_ref().to_vec()].concat()
}

pub(super) fn array(ty: u32, count: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), elements.as_ref()].concat()
}

pub(super) fn tensor(name: impl AsRef<[u8]>, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let count = (dims.len() as u32 / 8).to_le_bytes();
    [
        string(name),
        count.to_vec(),
        dims,
        ty.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

impl Raw {
    /// Two tensors, `a` of 32 bytes (Q8_0, padded from 34 to 64) and `b` of 24 (F32), and keys of several types.
    pub(super) fn valid() -> Self {
        let tokens = [string("x"), string(b"\xff\xfe"), string("")].concat();
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: vec![
                key("general.architecture", 8, string("toy")),
                key("toy.block_count", 4, 6u32.to_le_bytes()),
                key("toy.eps", 6, 1e-6f32.to_le_bytes()),
                key("toy.tokens", 9, array(8, 3, tokens)),
                key("toy.scores", 9, array(6, 2, [0; 8])),
                key("toy.flag", 7, [1]),
            ],
            tensors: vec![tensor("a", &[32, 1], 8, 0), tensor("b", &[3, 2], 0, 64)],
            alignment: 32,
            data: (0..96).collect(),
        }
    }

    /// An imatrix of one plain matrix and one of two experts.
    pub(super) fn imatrix() -> Self {
        let floats = |numbers: &[f32]| {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            bytes.resize(32, 0);
            bytes
        };
        Self {
            keys: vec![
                key("general.type", 8, string("imatrix")),
                key("imatrix.datasets", 9, array(8, 1, string("a.txt"))),
                key("imatrix.chunk_count", 4, 3u32.to_le_bytes()),
                key("imatrix.chunk_size", 4, 512u32.to_le_bytes()),
            ],
            tensors: vec![
                tensor("p.in_sum2", &[4], 0, 0),
                tensor("p.counts", &[1], 0, 32),
                tensor("e.in_sum2", &[2, 2], 0, 64),
                tensor("e.counts", &[1, 2], 0, 96),
            ],
            data: [
                floats(&[1.0, 2.0, 3.0, 4.0]),
                floats(&[10.0]),
                floats(&[1.0, 2.0, 0.0, 0.0]),
                floats(&[5.0, 0.0]),
            ]
            .concat(),
            ..Self::valid()
        }
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The bytes up to the padding before the data.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        out
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = self.head();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A broken file: a name for it, its bytes, and a part of the sentence that refuses it.
pub(crate) type Broken = (&'static str, Vec<u8>, &'static str);

/// Broken GGUF files.
pub(crate) fn broken_gguf_files() -> Vec<Broken> {
    let valid = Raw::valid;
    let cut = |at: usize| valid().bytes()[..at].to_vec();
    let with_key = |entry: Vec<u8>| valid().with(|raw| raw.keys.push(entry)).bytes();
    let with_tensor = |info: Vec<u8>| valid().with(|raw| raw.tensors[1] = info).bytes();
    let head = valid().head().len();
    let keys = 24 + valid().keys.concat().len();
    vec![
        ("empty", vec![], "the file is empty"),
        (
            "only-magic",
            cut(4),
            "the file ends inside the version: 4 bytes are needed, 0 are left",
        ),
        (
            "half-magic",
            cut(3),
            "the file ends inside the magic: 4 bytes are needed, 3 are left",
        ),
        ("zeros", vec![0; 4096], "begins with zeros instead of `GGUF`"),
        (
            "zero-header",
            [vec![0; head], valid().bytes()[head..].to_vec()].concat(),
            "interrupted `llama-quantize`",
        ),
        (
            "other-magic",
            valid().with(|raw| raw.magic = *b"GGML").bytes(),
            "it begins with \"GGML\", not with `GGUF`",
        ),
        ("zip", b"PK\x03\x04rest".to_vec(), "it begins with \"PK\\x03\\x04\""),
        (
            "version-0",
            valid().with(|raw| raw.version = 0).bytes(),
            "GGUF version 0 is not supported",
        ),
        (
            "version-1",
            valid().with(|raw| raw.version = 1).bytes(),
            "version 1 is not supported, only 2 and 3 are; conv",
        ),
        (
            "version-4",
            valid().with(|raw| raw.version = 4).bytes(),
            "GGUF version 4 is not supported",
        ),
        (
            "big-endian",
            valid().with(|raw| raw.version = 3 << 24).bytes(),
            "byte-swapped (version reads 0x03000000)",
        ),
        ("cut-counts", cut(20), "the file ends inside the number of keys"),
        (
            "cut-key-name",
            cut(30),
            "the header claims 6 keys, but the 6 remaining bytes hold at most 0",
        ),
        ("cut-in-keys", cut(150), "it is truncated or damaged"),
        (
            "cut-in-tensors",
            cut(keys + 20),
            "tensor `a`: the file ends inside a dimension",
        ),
        (
            "cut-before-data",
            cut(head),
            "the file ends inside the padding before the data",
        ),
        (
            "cut-in-data",
            cut(valid().bytes().len() - 30),
            "tensor `b`: the data should end at byte",
        ),
        (
            "keys-lie",
            valid().with(|raw| raw.key_count = Some(7)).bytes(),
            "tensor number 0: the file ends inside a tensor's name",
        ),
        (
            "keys-huge",
            valid().with(|raw| raw.key_count = Some(1 << 60)).bytes(),
            "claims 1152921504606846976 keys",
        ),
        (
            "keys-max",
            valid().with(|raw| raw.key_count = Some(u64::MAX)).bytes(),
            "claims 18446744073709551615 keys",
        ),
        (
            "tensors-huge",
            valid().with(|raw| raw.tensor_count = Some(1 << 40)).bytes(),
            "claims 1099511627776 tensors",
        ),
        (
            "tensors-max",
            valid().with(|raw| raw.tensor_count = Some(u64::MAX)).bytes(),
            "1844674407370955",
        ),
        (
            "key-empty",
            with_key(key("", 0, [1])),
            "key number 6: the name is empty",
        ),
        (
            "key-encoding",
            with_key(key(b"\xff\xff", 0, [1])),
            "key number 6: the name is not UTF-8",
        ),
        (
            "key-zero-byte",
            with_key(key("a\0b", 0, [1])),
            "key number 6: the name contains a zero byte",
        ),
        (
            "key-twice",
            with_key(key("toy.eps", 0, [1])),
            "key `toy.eps`: the name occurs twice",
        ),
        (
            "key-name-huge",
            with_key([&u64::MAX.to_le_bytes()[..], b"abcdefghi"].concat()),
            "key number 6: the file ends inside a key's name: 18446744073709551615 bytes are needed",
        ),
        (
            "value-type",
            with_key(key("k", 13, [1])),
            "key `k`: 13 is not a value type",
        ),
        (
            "value-type-max",
            with_key(key("k", u32::MAX, [1])),
            "key `k`: 4294967295 is not a value type",
        ),
        (
            "string-huge",
            with_key(key("k", 8, (1u64 << 40).to_le_bytes())),
            "key `k`: the file ends inside a string: 1099511627776 bytes are needed",
        ),
        (
            "array-huge",
            with_key(key("k", 9, array(10, u64::MAX, []))),
            "key `k`: the array claims 18446744073709551615 elements of type u64",
        ),
        (
            "array-wraps",
            with_key(key("k", 9, array(10, (1 << 61) + 1, [0; 8]))),
            "claims 2305843009213693953 elements",
        ),
        (
            "array-of-strings-huge",
            with_key(key("k", 9, array(8, 1 << 30, []))),
            "1073741824 elements of type str",
        ),
        (
            "array-nested",
            with_key(key("k", 9, array(9, 1, array(0, 1, [1])))),
            "key `k`: the value is an array of arrays",
        ),
        (
            "array-type",
            with_key(key("k", 9, array(77, 1, [1]))),
            "key `k`: 77 is not a value type",
        ),
        (
            "alignment-0",
            with_key(key("general.alignment", 4, 0u32.to_le_bytes())),
            "key `general.alignment`: the alignment 0 is not a power of two",
        ),
        (
            "alignment-48",
            with_key(key("general.alignment", 4, 48u32.to_le_bytes())),
            "48 is not a power of two",
        ),
        (
            "alignment-type",
            with_key(key("general.alignment", 10, 32u64.to_le_bytes())),
            "key `general.alignment`: the value is of type u64, expected u32",
        ),
        (
            "alignment-far",
            with_key(key("general.alignment", 4, (1u32 << 31).to_le_bytes())),
            "the alignment 2147483648 is larger than 16777216 bytes",
        ),
        (
            "alignment-wrong",
            with_key(key("general.alignment", 4, 128u32.to_le_bytes())),
            "not a multiple of the align",
        ),
        (
            "tensor-name-empty",
            with_tensor(tensor("", &[6], 0, 64)),
            "tensor number 1: the name is empty",
        ),
        (
            "tensor-name-zero",
            with_tensor(tensor("b\0", &[6], 0, 64)),
            "tensor number 1: the name contains a zero byte",
        ),
        (
            "tensor-name-bytes",
            with_tensor(tensor(b"\xc3", &[6], 0, 64)),
            "tensor number 1: the name is not UTF-8",
        ),
        (
            "tensor-name-long",
            with_tensor(tensor([b'b'; 64], &[6], 0, 64)),
            "the name is 64 bytes long; llama.cpp reads",
        ),
        (
            "tensor-twice",
            with_tensor(tensor("a", &[6], 0, 64)),
            "tensor `a`: the name occurs twice",
        ),
        (
            "dimensions-0",
            with_tensor(tensor("b", &[], 0, 64)),
            "tensor `b`: the tensor has 0 dimensions",
        ),
        (
            "dimensions-5",
            with_tensor(tensor("b", &[1; 5], 0, 64)),
            "tensor `b`: the tensor has 5 dimensions",
        ),
        (
            "dimensions-max",
            with_tensor([string("b"), vec![0xff; 24]].concat()),
            "tensor `b`: the tensor has 4294967295 dimensions",
        ),
        (
            "dimension-0",
            with_tensor(tensor("b", &[3, 0], 0, 64)),
            "tensor `b`: dimension 1 is 0",
        ),
        (
            "dimension-negative",
            with_tensor(tensor("b", &[u64::MAX], 0, 64)),
            "tensor `b`: the shape [18446744073709551615] ov",
        ),
        (
            "dimensions-overflow",
            with_tensor(tensor("b", &[1 << 32, 1 << 32], 0, 64)),
            "tensor `b`: the shape [42949672",
        ),
        (
            "dimensions-wrap-to-6",
            with_tensor(tensor("b", &[6, (1 << 63) + 1, 2], 0, 64)),
            "overflows: no file can hold",
        ),
        (
            "bytes-overflow",
            with_tensor(tensor("b", &[1 << 62], 0, 64)),
            "overflows: no file can hold it",
        ),
        (
            "tensor-huge",
            with_tensor(tensor("b", &[1 << 40], 0, 64)),
            "tensor `b`: the data should end at byte 43980465",
        ),
        (
            "tensor-type-43",
            with_tensor(tensor("b", &[6], 43, 64)),
            "tensor `b`: 43 is not a tensor type",
        ),
        (
            "tensor-type-removed",
            with_tensor(tensor("b", &[6], 31, 64)),
            "31 is not a tensor type: it was removed from ggml",
        ),
        (
            "row-blocks",
            with_tensor(tensor("b", &[6], 12, 64)),
            "rows of 6 elements are not whole blocks of Q4_K (256",
        ),
        (
            "misaligned",
            with_tensor(tensor("b", &[6], 0, 68)),
            "tensor `b`: the data offset 68 is not a multiple",
        ),
        (
            "overlap",
            with_tensor(tensor("b", &[6], 0, 32)),
            "tensor `b`: the data overlaps that of tensor `a`",
        ),
        (
            "same-place",
            with_tensor(tensor("b", &[6], 0, 0)),
            "overlaps that of tensor",
        ),
        (
            "offset-outside",
            with_tensor(tensor("b", &[6], 0, 96)),
            "tensor `b`: the data should end at byte",
        ),
        (
            "offset-max",
            with_tensor(tensor("b", &[6], 0, u64::MAX - 31)),
            "tensor `b`: the data should end at byte",
        ),
    ]
}
