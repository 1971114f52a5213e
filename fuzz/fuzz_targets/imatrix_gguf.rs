//! Any bytes as an imatrix in GGUF form: no panic, and what is accepted comes back as it was.

#![no_main]

use forge::imatrix::{Imatrix, MergeMode, Weight};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(imatrix) = Imatrix::parse_gguf(bytes) else {
        return;
    };
    for entry in imatrix.entries.values() {
        assert!(
            entry
                .weights()
                .iter()
                .all(|weight| weight.is_finite() && *weight >= 0.0)
        );
    }
    if let Ok(bytes) = imatrix.to_gguf() {
        let again = Imatrix::parse(&bytes).expect("what was written reads");
        assert_eq!(again, imatrix);
        assert_eq!(again.to_gguf().expect("the same again"), bytes);
    }
    if let Ok(bytes) = imatrix.to_dat() {
        Imatrix::parse_dat(&bytes).expect("what was written reads");
    }
    let twice = [(&imatrix, Weight::ONE), (&imatrix, Weight::ONE)];
    for mode in [MergeMode::Sum, MergeMode::Mean, MergeMode::Max] {
        if let Ok(merged) = Imatrix::merge(&twice, mode) {
            assert_eq!(merged.imatrix.entries.len(), imatrix.entries.len());
        }
    }
});
