//! Broken importance matrices, put together by hand.

use super::files::{Broken, Raw, array, key, tensor};

fn dat(entries: i32, body: &[Vec<u8>]) -> Vec<u8> {
    [entries.to_le_bytes().to_vec(), body.concat()].concat()
}

fn dat_entry(name: &str, calls: i32, values: &[f32]) -> Vec<u8> {
    let values_bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    [
        &(name.len() as u32).to_le_bytes()[..],
        name.as_bytes(),
        &calls.to_le_bytes(),
        &(values.len() as u32).to_le_bytes(),
        &values_bytes,
    ]
    .concat()
}

pub(super) fn valid_dat() -> Vec<u8> {
    let trailer = [&3i32.to_le_bytes()[..], &5i32.to_le_bytes(), b"a.txt"].concat();
    dat(
        2,
        &[dat_entry("p", 3, &[1.0, 2.0]), dat_entry("q", 3, &[0.5; 4]), trailer],
    )
}

/// Broken importance matrices of both forms.
pub(crate) fn broken_imatrix_files() -> Vec<Broken> {
    let raw = Raw::imatrix;
    let without_key = |at: usize| raw().with(|raw| drop(raw.keys.remove(at))).bytes();
    let with_tensor = |at: usize, info: Vec<u8>| raw().with(|raw| raw.tensors[at] = info).bytes();
    let with_number = |at: usize, number: f32| {
        raw()
            .with(|raw| raw.data[at * 4..at * 4 + 4].copy_from_slice(&number.to_le_bytes()))
            .bytes()
    };
    let no_tensors = raw().with(|raw| {
        raw.tensors.clear();
        raw.data.clear();
    });
    let length = valid_dat().len();
    vec![
        ("i-empty", vec![], "not an imatrix: the file has only 0 bytes"),
        (
            "i-zeros",
            vec![0; 64],
            "as a legacy file it would have 0 entries in 60 bytes",
        ),
        (
            "i-text",
            b"blk.0.attn_q.weight".repeat(9),
            "not an imatrix: it does not begin with `GGUF`",
        ),
        ("i-model", Raw::valid().bytes(), "this GGUF holds `toy`, not an imatrix"),
        (
            "i-type-model",
            raw()
                .with(|raw| raw.keys[0] = key("general.type", 8, super::files::string("model")))
                .bytes(),
            "this GGUF holds `model`, not an imatrix",
        ),
        (
            "i-all-zeros",
            raw().with(|raw| raw.data.fill(0)).bytes(),
            "entries of the imatrix are zeros",
        ),
        (
            "i-all-zeros-dat",
            dat(2, &[dat_entry("p", 3, &[0.0, 0.0]), dat_entry("q", 3, &[0.0; 4])]),
            "all 2 entries of the imatrix are zeros",
        ),
        ("i-no-datasets", without_key(1), "key `imatrix.datasets` is missing"),
        (
            "i-no-chunk-count",
            without_key(2),
            "key `imatrix.chunk_count` is missing",
        ),
        ("i-no-chunk-size", without_key(3), "key `imatrix.chunk_size` is missing"),
        ("i-no-entries", no_tensors.bytes(), "the imatrix has no entries"),
        (
            "i-datasets-type",
            raw()
                .with(|raw| raw.keys[1] = key("imatrix.datasets", 9, array(0, 1, [1])))
                .bytes(),
            "key `imatrix.datasets` is missing or of the wrong type",
        ),
        (
            "i-no-counts",
            with_tensor(1, tensor("x", &[1], 0, 32)),
            "entry `p` has no tensor `p.counts`",
        ),
        (
            "i-no-sums",
            with_tensor(0, tensor("x", &[4], 0, 0)),
            "entry `p` has no tensor `p.in_sum2`",
        ),
        (
            "i-f16",
            with_tensor(0, tensor("p.in_sum2", &[4], 1, 0)),
            "tensor `p.in_sum2` is F16",
        ),
        (
            "i-uneven",
            with_tensor(1, tensor("p.counts", &[3], 0, 32)),
            "entry `p` has 4 sums for 3 counts",
        ),
        ("i-nan", with_number(2, f32::NAN), "entry `p`: sum number 2 is NaN"),
        (
            "i-infinite",
            with_number(17, f32::INFINITY),
            "entry `e`: sum number 1 is inf",
        ),
        ("i-negative", with_number(0, -1.0), "entry `p`: sum number 0 is -1"),
        (
            "i-count-nan",
            with_number(25, f32::NAN),
            "entry `e`: count number 1 is NaN",
        ),
        (
            "i-count-negative",
            with_number(8, -3.0),
            "entry `p`: count number 0 is -3",
        ),
        (
            "i-cut",
            raw().bytes()[..raw().bytes().len() - 32].to_vec(),
            "tensor `e.counts`: the data should end at byte",
        ),
        (
            "i-sums-huge",
            with_tensor(0, tensor("p.in_sum2", &[1 << 40], 0, 0)),
            "tensor `p.in_sum2`: the data should end",
        ),
        (
            "i-no-name",
            with_tensor(0, tensor(".in_sum2", &[4], 0, 0)),
            "tensor `.in_sum2`: the name is empty",
        ),
        (
            "d-cut-count",
            valid_dat()[..3].to_vec(),
            "not an imatrix: the file has only 3 bytes",
        ),
        (
            "d-negative-count",
            dat(-1, &[dat_entry("p", 1, &[1.0])]),
            "it would have -1 entries",
        ),
        (
            "d-huge-count",
            dat(i32::MAX, &[dat_entry("p", 1, &[1.0])]),
            "it would have 2147483647 entries in 17 bytes",
        ),
        ("d-one-too-many", dat(3, &[valid_dat()[4..].to_vec()]), "entry number 2"),
        (
            "d-name-huge",
            dat(1, &[i32::MAX.to_le_bytes().to_vec(), vec![b'n'; 40]]),
            "the length of the name of entry number 0 is 2147483647, with 40 bytes left",
        ),
        (
            "d-name-negative",
            dat(1, &[(-5i32).to_le_bytes().to_vec(), vec![0; 40]]),
            "of entry number 0 is -5",
        ),
        (
            "d-name-empty",
            dat(1, &[dat_entry("", 1, &[1.0, 1.0])]),
            "the length of the name of entry number 0 is 0",
        ),
        (
            "d-name-zero-byte",
            dat(1, &[dat_entry("a\0b", 1, &[1.0])]),
            "the name of entry number 0 is not a name",
        ),
        (
            "d-calls-negative",
            dat(1, &[dat_entry("p", -1, &[1.0])]),
            "the number of calls of entry `p` is -1",
        ),
        (
            "d-no-values",
            dat(1, &[dat_entry("pppp", 1, &[])]),
            "entries in 16 bytes",
        ),
        (
            "d-values-huge",
            dat(
                1,
                &[
                    dat_entry("p", 1, &[])[..9].to_vec(),
                    i32::MAX.to_le_bytes().to_vec(),
                    vec![0; 8],
                ],
            ),
            "the number of values of entry `p` is 2147483647, with 8 bytes left",
        ),
        (
            "d-values-cut",
            valid_dat()[..4 + 21 + 20].to_vec(),
            "the number of values of entry `q` is 4",
        ),
        (
            "d-twice",
            dat(2, &[dat_entry("p", 1, &[1.0]), dat_entry("p", 1, &[1.0])]),
            "entry `p` occurs twice",
        ),
        (
            "d-nan",
            dat(1, &[dat_entry("p", 1, &[1.0, f32::NAN])]),
            "entry `p`: sum number 1 is NaN",
        ),
        (
            "d-negative",
            dat(1, &[dat_entry("p", 1, &[-1.0])]),
            "entry `p`: sum number 0 is -1",
        ),
        (
            "d-trailer-cut",
            valid_dat()[..length - 1].to_vec(),
            "the trailer with chunk count and text name is damaged",
        ),
        (
            "d-trailer-cut-2",
            valid_dat()[..length - 11].to_vec(),
            "the trailer with chunk count and text name is dam",
        ),
        (
            "d-left-over",
            [valid_dat(), vec![7; 3]].concat(),
            "3 bytes follow the end of the imatrix",
        ),
    ]
}
