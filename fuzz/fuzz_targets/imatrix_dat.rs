//! Any bytes as a legacy imatrix: no panic, and what is accepted comes back as it was.

#![no_main]

use forge::imatrix::Imatrix;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(imatrix) = Imatrix::parse_dat(bytes) else { return };
    for entry in imatrix.entries.values() {
        assert!(
            entry
                .weights()
                .iter()
                .all(|weight| weight.is_finite() && *weight >= 0.0)
        );
    }
    if let Ok(bytes) = imatrix.to_dat() {
        let again = Imatrix::parse_dat(&bytes).expect("what was written reads");
        assert_eq!(again.entries, imatrix.entries);
    }
    if let Ok(bytes) = imatrix.with_chunk_size(512).to_gguf() {
        Imatrix::parse(&bytes).expect("what was written reads");
    }
});
