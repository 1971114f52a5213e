//! Valid files with random damage, and random bytes.

#![allow(clippy::unwrap_used)]

use forge::gguf;
use forge::imatrix::{Imatrix, Weight};
use forge::vocab::MergeMode;
use proptest::prelude::*;

use super::files::Raw;
use super::imatrix_files::valid_dat;

/// Changes that random damage is made of.
#[derive(Debug, Clone)]
enum Damage {
    Byte(usize, u8),
    Number(usize, u64),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let at = 0..1000usize;
    let edges = prop::sample::select(vec![
        0,
        1,
        2,
        31,
        1 << 31,
        1 << 32,
        1 << 61,
        1 << 63,
        u64::MAX,
        u64::MAX - 31,
    ]);
    let one = prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        4 => (at.clone(), edges).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => at.clone().prop_map(Damage::Cut),
        1 => (at.clone(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (at, 1..40usize).prop_map(|(at, count)| Damage::Remove(at, count)),
    ];
    prop::collection::vec(one, 1..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for change in damage {
        let end = bytes.len().max(1);
        match change {
            Damage::Byte(at, byte) => bytes.iter_mut().skip(at % end).take(1).for_each(|old| *old = *byte),
            Damage::Number(at, number) => {
                bytes
                    .iter_mut()
                    .skip(at % end)
                    .zip(number.to_le_bytes())
                    .for_each(|(old, new)| *old = new);
            }
            Damage::Cut(at) => bytes.truncate(at % end),
            Damage::Insert(at, new) => drop(
                bytes
                    .splice(at % end..at % end, new.iter().copied())
                    .collect::<Vec<_>>(),
            ),
            Damage::Remove(at, count) => {
                let start = (at % end).min(bytes.len());
                bytes.drain(start..(start + count).min(bytes.len()));
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// What holds of every header that was accepted.
fn check_header(bytes: &[u8], header: &gguf::Header) {
    let held: usize = header
        .metadata
        .iter()
        .map(|entry| entry.key().len() + entry.raw().len())
        .sum();
    assert!(held <= bytes.len(), "no key holds more than the file");
    for entry in &header.metadata {
        let again = gguf::Entry::new(entry.key(), &entry.value()).unwrap();
        // A truth value may be any byte but comes back as 1.
        let bools = entry.array().is_some_and(|(ty, _)| ty == gguf::ValueType::Bool)
            || entry.value_type() == gguf::ValueType::Bool;
        assert!(bools || again == *entry, "{entry:?}");
    }
    for tensor in &header.tensors {
        let end = header.data_offset + tensor.offset + tensor.len;
        assert!(end <= bytes.len() as u64 && tensor.elements() >= 1 && tensor.nrows() >= 1);
    }
    let specs: Vec<_> = header.tensors.iter().map(gguf::TensorSpec::from).collect();
    if header.alignment <= 1 << 20 {
        let layout = gguf::Layout::new(&header.metadata, &specs, header.alignment).unwrap();
        let padded = (layout.file_len() - layout.data_offset()) as usize;
        let again = [layout.header(), &vec![0; padded]].concat();
        assert_eq!(gguf::parse(&again).unwrap().tensors, layout.tensors());
    }
}

fn check_imatrix(imatrix: &Imatrix) {
    for entry in imatrix.entries.values() {
        assert_eq!(entry.weights().len(), entry.sums.len());
        assert!(
            entry
                .weights()
                .iter()
                .all(|weight| weight.is_finite() && *weight >= 0.0)
        );
    }
    if let Ok(bytes) = imatrix.to_gguf() {
        assert_eq!(Imatrix::parse(&bytes).unwrap(), *imatrix);
    }
    if let Ok(bytes) = imatrix.to_dat() {
        Imatrix::parse(&bytes).unwrap();
    }
    let inputs = [(imatrix, Weight::ONE), (imatrix, Weight::ONE)];
    for mode in [MergeMode::Sum, MergeMode::Mean, MergeMode::Max] {
        // Overflow is an answer.
        let _ = Imatrix::merge(&inputs, mode);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_never_panics(damage in damage()) {
        let bytes = damaged(Raw::valid().bytes(), &damage);
        if let Ok(header) = gguf::parse(&bytes) {
            check_header(&bytes, &header);
        }
        for bytes in [damaged(Raw::imatrix().bytes(), &damage), damaged(valid_dat(), &damage)] {
            if let Ok(imatrix) = Imatrix::parse(&bytes) {
                check_imatrix(&imatrix);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = gguf::parse(&bytes);
        let _ = gguf::parse(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        let _ = Imatrix::parse(&bytes);
    }
}
