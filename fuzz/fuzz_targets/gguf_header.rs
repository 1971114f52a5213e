//! Any bytes as a GGUF file: no panic, and what is accepted can be written again.

#![no_main]

use forge::gguf::{Entry, Layout, TensorSpec, ValueType, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = parse(bytes) else { return };
    for entry in &header.metadata {
        let again = Entry::new(entry.key(), &entry.value()).expect("a value that was read can be written");
        let bools = entry.array().map_or(entry.value_type(), |(ty, _)| ty) == ValueType::Bool;
        // A truth value may be any byte; written, it is 0 or 1.
        assert!(bools || again == *entry);
        let _ = entry.value().to_string();
    }
    for tensor in &header.tensors {
        assert!(header.data_offset + tensor.offset + tensor.len <= bytes.len() as u64);
        assert!(tensor.elements() >= tensor.nrows() && tensor.nrows() >= tensor.matrices());
    }
    if header.alignment > 1 << 16 {
        return;
    }
    let specs: Vec<_> = header.tensors.iter().map(TensorSpec::from).collect();
    let layout = Layout::new(&header.metadata, &specs, header.alignment).expect("a header that was read lays out");
    let mut again = layout.header().to_vec();
    again.resize(layout.file_len() as usize, 0);
    let read = parse(&again).expect("a layout reads");
    assert_eq!(read.tensors, layout.tensors());
    assert_eq!(read.metadata, header.metadata);
});
