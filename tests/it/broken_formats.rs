//! Files that are broken in every way that was thought of, and then at random. None may panic, none may take memory for
//! what it merely claims, and every refusal says what and where.

mod damage;
mod files;
mod imatrix_files;

use std::path::Path;

use forge::gguf;
use forge::imatrix::Imatrix;

pub(crate) use files::broken_gguf_files;
use files::{Raw, array, key, string, tensor};
pub(crate) use imatrix_files::broken_imatrix_files;
use imatrix_files::valid_dat;

#[test]
fn every_broken_gguf_is_refused_with_its_reason_and_place() {
    gguf::parse(&Raw::valid().bytes()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in broken_gguf_files() {
        let error = gguf::parse(&bytes).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: `{error}` does not say `{expected}`");
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let opened = gguf::Model::open(&path).expect_err(name).to_string();
        assert_eq!(
            opened,
            format!("{}: {error}", path.display()),
            "{name}: from disk as from memory"
        );
    }
}

#[test]
fn every_broken_imatrix_is_refused_with_its_reason() {
    Imatrix::parse(&Raw::imatrix().bytes()).unwrap();
    Imatrix::parse(&valid_dat()).unwrap();
    for (name, bytes, expected) in broken_imatrix_files() {
        let error = Imatrix::parse(&bytes).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: `{error}` does not say `{expected}`");
    }
}

#[test]
fn names_of_broken_files_are_distinct_and_there_are_many() {
    let mut names: Vec<_> = broken_gguf_files()
        .into_iter()
        .chain(broken_imatrix_files())
        .map(|file| file.0)
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 90, "{count}");
}

#[test]
fn a_file_truncated_at_any_byte_is_rejected() {
    let bytes = Raw::valid().bytes();
    // The last tensor's padding may be absent: it has 24 of 32 bytes.
    let enough = bytes.len() - 8;
    for cut in 0..enough {
        gguf::parse(&bytes[..cut]).expect_err("cut");
    }
    gguf::parse(&bytes[..enough]).unwrap();
    let bytes = valid_dat();
    for cut in 0..bytes.len() {
        // Without the trailer, and with a chunk count alone, the file is whole.
        let whole = [bytes.len() - 13, bytes.len() - 9].contains(&cut);
        assert_eq!(Imatrix::parse(&bytes[..cut]).is_ok(), whole, "{cut}");
    }
}

#[test]
fn tensors_may_stand_in_any_order_with_gaps() {
    let raw = Raw::valid().with(|raw| raw.tensors = vec![tensor("b", &[6], 0, 96), tensor("a", &[32], 8, 0)]);
    let header = gguf::parse(&raw.with(|raw| raw.data = vec![0; 128]).bytes()).unwrap();
    assert_eq!(header.tensors[0].offset, 96);
}

#[test]
fn a_wrong_length_in_a_large_file_allocates_no_memory() {
    // 8 TiB without a block on the disk: a key claims most of it, and has it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.gguf");
    let entry = key("k", 8, (1u64 << 42).to_le_bytes());
    std::fs::write(&path, Raw::valid().with(|raw| raw.keys = vec![entry]).head()).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    if file.set_len(1 << 43).is_err() {
        // A file system with a lower limit: what is asked cannot be asked there.
        return;
    }
    let error = gguf::Model::open(&path).unwrap_err().to_string();
    assert!(error.contains("the header is longer than 268435456 bytes"), "{error}");
}

#[test]
fn a_header_longer_than_the_first_read_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.gguf");
    let tokens: Vec<u8> = (0..200_000u32).flat_map(|token| string(token.to_string())).collect();
    let raw = Raw::valid().with(|raw| raw.keys.insert(0, key("toy.vocabulary", 9, array(8, 200_000, tokens))));
    std::fs::write(&path, raw.bytes()).unwrap();
    let model = gguf::Model::open(Path::new(&path)).unwrap();
    assert_eq!(
        model.metadata().get_string_array("toy.vocabulary").unwrap().last(),
        Some(&b"199999"[..])
    );
    let mut buf = [0; 24];
    model.read_tensor_at(model.tensor("b").unwrap(), 0, &mut buf).unwrap();
    assert_eq!(buf[..3], [64, 65, 66]);
}
