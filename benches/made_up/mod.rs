//! Models that are made up: as large as asked for, with weights that are roughly normal, all matrices in F16.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;

use forge::gguf::DEFAULT_ALIGNMENT;
use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::TensorSpec;
use forge::tensor_type::TensorType;

/// The tensors of a model that is yet to be written.
#[derive(Default)]
pub(crate) struct Tensors(Vec<TensorSpec>);

impl Tensors {
    /// Adds a vector of scales.
    pub(crate) fn norm(&mut self, name: &str, len: u64) {
        self.add(name, TensorType::F32, &[len]);
    }

    /// Adds a matrix, or a row of them.
    pub(crate) fn matrix(&mut self, name: &str, dims: &[u64]) {
        self.add(name, TensorType::F16, dims);
    }

    fn add(&mut self, name: &str, ty: TensorType, dims: &[u64]) {
        self.0.push(TensorSpec {
            name: format!("{name}.weight"),
            ty,
            dims: dims.to_vec(),
        });
    }

    /// Writes the model, if a file of its length is not there already.
    pub(crate) fn write(self, path: &Path, metadata: &Metadata) {
        let Self(specs) = self;
        let layout = Layout::new(metadata, &specs, DEFAULT_ALIGNMENT).unwrap();
        if fs::metadata(path).is_ok_and(|facts| facts.len() == layout.file_len()) {
            return;
        }
        println!("writing {}", path.display());
        let temp = path.with_extension("part");
        let mut out = io::BufWriter::with_capacity(1 << 20, fs::File::create(&temp).unwrap());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut fill = |index: usize, out: &mut dyn Write| -> io::Result<()> {
            let spec = &specs[index];
            let row = spec.dims[0] as usize;
            let mut bytes = Vec::with_capacity(4 * row);
            for _ in 0..spec.dims.iter().skip(1).product::<u64>().max(1) {
                bytes.clear();
                for _ in 0..row {
                    let value = normal(&mut state);
                    if spec.ty == TensorType::F16 {
                        bytes.extend(half::f16::from_f32(0.02 * value).to_le_bytes());
                    } else {
                        bytes.extend((1.0 + 0.1 * value).to_le_bytes());
                    }
                }
                out.write_all(&bytes)?;
            }
            Ok(())
        };
        layout.write(&mut out, &mut fill).unwrap();
        out.into_inner().unwrap().sync_all().unwrap();
        fs::rename(temp, path).unwrap();
    }
}

/// Returns the sum of four uniform numbers (xorshift64), with a variance of 1.
fn normal(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    let sum: u32 = (0..4).map(|lane| (*state >> (16 * lane)) as u32 & 0xffff).sum();
    (sum as f32 / 65_536.0 - 2.0) * 3.0_f32.sqrt()
}
