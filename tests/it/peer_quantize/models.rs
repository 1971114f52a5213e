//! Models made up for comparisons: real architectures and tensor names, tiny rows, random bytes.

use std::collections::BTreeSet;
use std::io;
use std::io::Write;
use std::path::Path;

use forge::gguf::DEFAULT_ALIGNMENT;
use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::TensorSpec;
use forge::gguf::Value;
use forge::tensor_type::TensorType;

/// A small generator, so that a seed is a model for ever (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// How the attention's matrices are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    Split,
    Fused,
    Compressed,
}

/// What a made-up model is like.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) arch: &'static str,
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    pub(crate) heads_kv: u32,
    pub(crate) experts: u32,
    pub(crate) embd: u64,
    pub(crate) ff: u64,
    pub(crate) tied: bool,
    pub(crate) attention: Attention,
    pub(crate) gate: bool,
    pub(crate) ty: TensorType,
    /// Layers for multi-token prediction, among `layers`.
    pub(crate) nextn: u32,
    /// Tensors that few models have.
    pub(crate) extras: bool,
    /// Decides on the order of tensors and on their bytes.
    pub(crate) seed: u64,
}

impl Shape {
    pub(crate) fn new(arch: &'static str, layers: u32) -> Self {
        Self {
            arch,
            layers,
            heads: 8,
            heads_kv: 8,
            experts: 0,
            embd: 256,
            ff: 512,
            tied: false,
            attention: Attention::Split,
            gate: true,
            ty: TensorType::F16,
            nextn: 0,
            extras: false,
            seed: u64::from(layers),
        }
    }

    pub(crate) fn random(seed: u64) -> Self {
        let random = &mut Random(seed);
        let arch = random.pick(&[
            "llama",
            "llama",
            "falcon",
            "falcon",
            "gemma2",
            "gemma",
            "qwen2",
            "qwen3",
            "qwen3moe",
            "phi2",
            "mpt",
            "bloom",
            "starcoder2",
            "olmo",
            "deci",
            "jais2",
            "nanbeige",
            "bert",
            "llama-embed",
        ]);
        let experts = if random.one_in(2) {
            0
        } else {
            random.pick(&[1, 2, 4, 8, 8, 16])
        };
        let layers = match random.below(5) {
            0 => 80,
            1 => 68,
            _ => 1 + random.below(48) as u32,
        };
        Self {
            arch,
            layers,
            heads: 8,
            heads_kv: random.pick(&[1, 2, 4, 8]),
            experts,
            embd: random.pick(&[256, 256, 512, 288, 320, 192, 128, 64, 104]),
            ff: random.pick(&[256, 512, 768, 288, 96, 100, 128]),
            tied: random.one_in(2),
            attention: random.pick(&[
                Attention::Split,
                Attention::Split,
                Attention::Fused,
                Attention::Compressed,
            ]),
            gate: !random.one_in(4),
            ty: random.pick(&[TensorType::F16, TensorType::BF16, TensorType::F32]),
            nextn: u32::from(random.one_in(4) && layers > 1),
            extras: random.one_in(2),
            seed,
        }
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        let mut set = |key: &str, value: Value| metadata.set(key, &value).unwrap();
        set("general.architecture", Value::String(self.arch.into()));
        if self.seed.is_multiple_of(2) {
            set("general.file_type", Value::U32(1));
        }
        if self.arch == "clip" {
            return metadata;
        }
        let key = |name: &str| format!("{}.{name}", self.arch);
        set(&key("context_length"), Value::U32(64));
        set(&key("embedding_length"), Value::U32(self.embd as u32));
        set(&key("block_count"), Value::U32(self.layers));
        set(&key("feed_forward_length"), Value::U32(self.ff as u32));
        set(&key("attention.head_count"), Value::U32(self.heads));
        if self.heads_kv != self.heads {
            set(&key("attention.head_count_kv"), Value::U32(self.heads_kv));
        }
        set(&key("attention.layer_norm_epsilon"), Value::F32(1e-5));
        set(&key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        set(&key("attention.causal"), Value::Bool(true));
        set(&key("vocab_size"), Value::U32(32));
        if self.nextn > 0 {
            set(&key("nextn_predict_layers"), Value::U32(self.nextn));
        }
        if self.experts > 0 {
            set(&key("expert_count"), Value::U32(self.experts));
            set(&key("expert_used_count"), Value::U32(1));
            set(&key("expert_feed_forward_length"), Value::U32(self.ff as u32));
        }
        if self.arch == "nanbeige" {
            set(&key("num_loops"), Value::U32(2));
        }
        metadata
    }

    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let mut all = Tensors {
            float: self.ty,
            specs: Vec::new(),
        };
        let (embd, ff) = (self.embd, self.ff);
        all.weight("token_embd.weight", &[embd, 32]);
        all.norm("output_norm.weight", embd);
        if !self.tied {
            all.weight("output.weight", &[embd, 32]);
        }
        for layer in 0..self.layers {
            self.layer(layer, &mut all);
        }
        if self.extras {
            all.norm("rope_freqs.weight", 16);
            all.weight("odd.b", &[256, 2]);
            all.weight("position_embd.weight", &[embd, 8]);
            all.weight("token_types.weight", &[embd, 2]);
            all.weight("per_layer_token_embd.weight", &[256, 8]);
            all.weight("per_layer_model_proj.weight", &[256, 8]);
            all.weight("v.blk.0.attn_k.weight", &[embd, 4]);
            all.weight("v.patch_embd.weight", &[14, 14, 3, 2]);
            all.weight("cls.weight", &[embd, 2]);
            all.weight("blk.0.attn_q.bias", &[embd, 2]);
            all.weight("blk.0.ssm_conv1d.weight", &[4, embd]);
            all.weight("blk.0.ssm_out.weight", &[ff, 3]);
            all.weight("blk.0.indexer.attn_k.weight", &[256, 3]);
        }
        let random = &mut Random(self.seed);
        for at in (1..all.specs.len()).rev() {
            all.specs.swap(at, random.below(at + 1));
        }
        all.specs
    }

    fn layer(&self, layer: u32, all: &mut Tensors) {
        let (embd, ff) = (self.embd, self.ff);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        all.norm(&name("attn_norm"), embd);
        all.weight(&name("attn_output"), &[embd, 3]);
        match self.attention {
            Attention::Split => {
                all.weight(&name("attn_q"), &[embd, 3]);
                all.weight(&name("attn_k"), &[embd, 2]);
                all.weight(&name("attn_v"), &[embd, 2]);
            }
            Attention::Fused => all.weight(&name("attn_qkv"), &[embd, 5]),
            Attention::Compressed => {
                all.weight(&name("attn_q_a"), &[embd, 2]);
                all.weight(&name("attn_q_b"), &[256, 3]);
                all.weight(&name("attn_kv_a_mqa"), &[embd, 2]);
                all.weight(&name("attn_kv_b"), &[256, 3]);
                all.weight(&name("attn_v_b"), &[128, 2, 3]);
            }
        }
        all.norm(&name("ffn_norm"), embd);
        let experts = u64::from(self.experts);
        // The first layer of a model with experts is often dense.
        if experts > 0 && layer > 0 {
            all.weight(&name("ffn_gate_inp"), &[embd, experts]);
            if self.gate {
                all.weight(&name("ffn_gate_exps"), &[embd, 2, experts]);
                all.weight(&name("ffn_up_exps"), &[embd, 2, experts]);
            } else {
                all.weight(&name("ffn_gate_up_exps"), &[embd, 4, experts]);
            }
            all.weight(&name("ffn_down_exps"), &[ff, 2, experts]);
            if layer.is_multiple_of(2) {
                all.weight(&name("ffn_gate_inp_shexp"), &[embd, 1]);
                all.weight(&name("ffn_up_shexp"), &[embd, 2]);
                all.weight(&name("ffn_down_shexp"), &[ff, 2]);
            }
        } else {
            if self.gate {
                all.weight(&name("ffn_gate"), &[embd, 2]);
            }
            all.weight(&name("ffn_up"), &[embd, 2]);
            all.weight(&name("ffn_down"), &[ff, 2]);
        }
        if layer + self.nextn >= self.layers {
            all.weight(&name("nextn.eh_proj"), &[embd * 2, 2]);
        }
    }

    pub(crate) fn write(&self, path: &Path) {
        write(path, &self.metadata(), &self.tensors(), self.seed);
    }
}

struct Tensors {
    float: TensorType,
    specs: Vec<TensorSpec>,
}

impl Tensors {
    fn norm(&mut self, name: &str, len: u64) {
        self.specs.push(TensorSpec {
            name: name.to_owned(),
            ty: TensorType::F32,
            dims: vec![len],
        });
    }

    fn weight(&mut self, name: &str, dims: &[u64]) {
        // Routers are stored in full, as converters do.
        let ty = if name.contains("ffn_gate_inp.") {
            TensorType::F32
        } else {
            self.float
        };
        self.specs.push(TensorSpec {
            name: name.to_owned(),
            ty,
            dims: dims.to_vec(),
        });
    }
}

/// Writes a model of random numbers between -1 and 1.
pub(crate) fn write(path: &Path, metadata: &Metadata, tensors: &[TensorSpec], seed: u64) {
    let layout = Layout::new(metadata, tensors, DEFAULT_ALIGNMENT).unwrap();
    let mut random = Random(seed);
    let mut out = io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut fill = |index: usize, out: &mut dyn Write| -> io::Result<()> {
        let count = tensors[index].dims.iter().product::<u64>();
        for _ in 0..count {
            let value = (random.next() >> 40) as f32 / (1_u32 << 23) as f32 - 1.0;
            match tensors[index].ty {
                TensorType::F32 => out.write_all(&value.to_le_bytes())?,
                TensorType::F64 => out.write_all(&f64::from(value).to_le_bytes())?,
                TensorType::BF16 => out.write_all(&half::bf16::from_f32(value).to_le_bytes())?,
                _ => out.write_all(&half::f16::from_f32(value).to_le_bytes())?,
            }
        }
        Ok(())
    };
    layout.write(&mut out, &mut fill).unwrap();
    out.into_inner().unwrap().sync_all().unwrap();
}

/// Writes an imatrix with an entry for every tensor of `entries`: name, row length, number of matrices.
pub(crate) fn write_imatrix(path: &Path, entries: &BTreeSet<(String, u64, u64)>) {
    let mut metadata = Metadata::new();
    metadata.set("general.type", &Value::String("imatrix".into())).unwrap();
    metadata.set("imatrix.datasets", &Value::strings(["made-up"])).unwrap();
    metadata.set("imatrix.chunk_count", &Value::U32(1)).unwrap();
    metadata.set("imatrix.chunk_size", &Value::U32(64)).unwrap();
    let mut tensors = Vec::new();
    for (name, columns, matrices) in entries {
        for (suffix, width) in [("counts", 1), ("in_sum2", *columns)] {
            let name = format!("{name}.{suffix}");
            tensors.push(TensorSpec {
                name,
                ty: TensorType::F32,
                dims: vec![width, *matrices],
            });
        }
    }
    let layout = Layout::new(&metadata, &tensors, DEFAULT_ALIGNMENT).unwrap();
    let mut out = io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut fill = |index: usize, out: &mut dyn Write| -> io::Result<()> {
        for _ in 0..tensors[index].dims.iter().product::<u64>() {
            out.write_all(&1_f32.to_le_bytes())?;
        }
        Ok(())
    };
    layout.write(&mut out, &mut fill).unwrap();
    out.flush().unwrap();
}
