//! Small models of several architectures with random weights, for what must work whatever a model's graph looks like.

use std::io;
use std::io::Write;
use std::path::Path;

use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::Model;
use forge::gguf::TensorSpec;
use forge::gguf::Value;
use forge::tensor_type::TensorType;

/// The sizes of the models.
const EMBEDDING: u64 = 64;
const HEADS: u64 = 4;
const KEY_HEADS: u64 = 2;
const HEAD: u64 = 16;
const INNER: u64 = 96;
const EXPERTS: u64 = 4;
const EXPERT_INNER: u64 = 32;
const LAYERS: u64 = 2;
pub(crate) const LONGEST: u64 = 256;

/// The architectures that [`write`] knows.
pub(crate) const ARCHITECTURES: &[&str] = &[
    "llama",
    "gemma2",
    "phi2",
    "phi3",
    "gpt2",
    "gpt-oss",
    "qwen2moe",
    "deepseek2",
];

/// Numbers from -1 to 1 (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}

/// A model with its tensors in F32.
pub(crate) struct RandomModel {
    metadata: Metadata,
    pub(crate) tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
    random: Random,
}

impl RandomModel {
    /// Makes a model of an architecture with the vocabulary of another model.
    pub(crate) fn new(architecture: &str, vocabulary: &Path) -> Self {
        let from = Model::open(vocabulary).unwrap();
        let own = from.metadata().get_str("general.architecture").unwrap().to_owned();
        let mut metadata = from.metadata().clone();
        metadata.remove_prefix(&format!("{own}."));
        metadata
            .set("general.architecture", &Value::String(architecture.into()))
            .unwrap();
        let words = from.tensor("token_embd.weight").unwrap().info.dims[1];
        let mut made = Self {
            metadata,
            tensors: Vec::new(),
            random: Random(0x9e37_79b9_7f4a_7c15 ^ architecture.len() as u64),
        };
        made.fill(architecture, words);
        made
    }

    fn number(&mut self, key: &str, value: u64) {
        let name = self.metadata.get_str("general.architecture").unwrap().to_owned();
        let value = Value::U32(u32::try_from(value).unwrap());
        self.metadata.set(&format!("{name}.{key}"), &value).unwrap();
    }

    fn float(&mut self, key: &str, value: f32) {
        let name = self.metadata.get_str("general.architecture").unwrap().to_owned();
        self.metadata.set(&format!("{name}.{key}"), &Value::F32(value)).unwrap();
    }

    fn tensor(&mut self, name: &str, dims: &[u64]) {
        let len: u64 = dims.iter().product();
        let (center, spread) = match (name.contains("norm.weight"), dims.len()) {
            (true, _) => (1.0, 0.2),
            _ if name.contains("rope_f") => (2.0, 1.0),
            (false, 1) => (0.0, 0.3),
            // Residual streams and logits of a few units.
            _ if name.starts_with("token_embd") => (0.0, 1.0),
            _ => (0.0, 2.0 / (dims[0] as f32).sqrt()),
        };
        let values = (0..len).map(|_| center + spread * self.random.next()).collect();
        self.tensors.push((name.to_owned(), dims.to_vec(), values));
    }

    fn with_bias(&mut self, name: &str, dims: &[u64]) {
        self.tensor(&format!("{name}.weight"), dims);
        self.tensor(&format!("{name}.bias"), &dims[1..]);
    }

    fn norm(&mut self, name: &str, len: u64, bias: bool) {
        self.tensor(&format!("{name}.weight"), &[len]);
        if bias {
            self.tensor(&format!("{name}.bias"), &[len]);
        }
    }

    /// A model whose graph has nodes that no gradient goes through.
    fn state_space(&mut self, words: u64) {
        /// llama.cpp supports no other.
        const INNER: u64 = 2 * EMBEDDING;
        const STEP: u64 = 32;
        const STATE: u64 = 16;
        const WINDOW: u64 = 4;
        self.number("context_length", LONGEST);
        self.number("embedding_length", EMBEDDING);
        self.number("block_count", LAYERS);
        self.number("feed_forward_length", 0);
        self.number("attention.head_count", 0);
        self.number("vocab_size", words);
        self.number("ssm.conv_kernel", WINDOW);
        self.number("ssm.inner_size", INNER);
        self.number("ssm.state_size", STATE);
        self.number("ssm.time_step_rank", STEP);
        self.float("attention.layer_norm_rms_epsilon", 1e-5);
        self.tensor("token_embd.weight", &[EMBEDDING, words]);
        self.norm("output_norm", EMBEDDING, false);
        for layer in 0..LAYERS {
            let at = |name: &str| format!("blk.{layer}.{name}");
            self.norm(&at("attn_norm"), EMBEDDING, false);
            self.tensor(&at("ssm_in.weight"), &[EMBEDDING, 2 * INNER]);
            self.with_bias(&at("ssm_conv1d"), &[WINDOW, INNER]);
            self.tensor(&at("ssm_x.weight"), &[INNER, STEP + 2 * STATE]);
            self.with_bias(&at("ssm_dt"), &[STEP, INNER]);
            self.tensor(&at("ssm_a"), &[STATE, INNER]);
            // A state that does not grow.
            let decay = self.tensors.last_mut().into_iter().flat_map(|(_, _, values)| values);
            decay.for_each(|value| *value = -0.1 - value.abs());
            self.tensor(&at("ssm_d"), &[INNER]);
            self.tensor(&at("ssm_out.weight"), &[INNER, EMBEDDING]);
        }
    }

    fn fill(&mut self, architecture: &str, words: u64) {
        if architecture == "mamba" {
            return self.state_space(words);
        }
        let (queries, keys) = (HEADS * HEAD, KEY_HEADS * HEAD);
        self.number("context_length", LONGEST);
        self.number("embedding_length", EMBEDDING);
        self.number("block_count", LAYERS);
        self.number("feed_forward_length", INNER);
        self.number("attention.head_count", HEADS);
        self.number("attention.head_count_kv", KEY_HEADS);
        self.number("rope.dimension_count", HEAD);
        self.number("vocab_size", words);
        self.float("rope.freq_base", 10000.0);
        self.float("attention.layer_norm_epsilon", 1e-5);
        self.float("attention.layer_norm_rms_epsilon", 1e-5);
        self.tensor("token_embd.weight", &[EMBEDDING, words]);
        let biased = matches!(architecture, "phi2" | "gpt2");
        self.norm("output_norm", EMBEDDING, biased);
        match architecture {
            "phi2" => self.with_bias("output", &[EMBEDDING, words]),
            "gemma2" | "gpt2" => {}
            _ => self.tensor("output.weight", &[EMBEDDING, words]),
        }
        for layer in 0..LAYERS {
            let at = |name: &str| format!("blk.{layer}.{name}");
            self.norm(&at("attn_norm"), EMBEDDING, biased);
            match architecture {
                "deepseek2" => self.latent_attention(layer),
                "gpt2" => self.with_bias(&at("attn_qkv"), &[EMBEDDING, queries + 2 * keys]),
                "phi3" => self.tensor(&at("attn_qkv.weight"), &[EMBEDDING, queries + 2 * keys]),
                "phi2" | "gpt-oss" | "qwen2moe" => {
                    self.with_bias(&at("attn_q"), &[EMBEDDING, queries]);
                    self.with_bias(&at("attn_k"), &[EMBEDDING, keys]);
                    self.with_bias(&at("attn_v"), &[EMBEDDING, keys]);
                }
                _ => {
                    self.tensor(&at("attn_q.weight"), &[EMBEDDING, queries]);
                    self.tensor(&at("attn_k.weight"), &[EMBEDDING, keys]);
                    self.tensor(&at("attn_v.weight"), &[EMBEDDING, keys]);
                }
            }
            if biased || architecture == "gpt-oss" {
                self.with_bias(&at("attn_output"), &[queries, EMBEDDING]);
            } else {
                self.tensor(&at("attn_output.weight"), &[queries, EMBEDDING]);
            }
            match architecture {
                "phi2" => {}
                "gpt-oss" => self.norm(&at("post_attention_norm"), EMBEDDING, false),
                _ => self.norm(&at("ffn_norm"), EMBEDDING, biased),
            }
            match architecture {
                "phi2" | "gpt2" => {
                    self.with_bias(&at("ffn_up"), &[EMBEDDING, INNER]);
                    self.with_bias(&at("ffn_down"), &[INNER, EMBEDDING]);
                }
                "phi3" => {
                    self.tensor(&at("ffn_up.weight"), &[EMBEDDING, 2 * INNER]);
                    self.tensor(&at("ffn_down.weight"), &[INNER, EMBEDDING]);
                }
                "gpt-oss" | "qwen2moe" => self.experts(layer, architecture),
                "deepseek2" if layer > 0 => self.experts(layer, architecture),
                _ => {
                    self.tensor(&at("ffn_gate.weight"), &[EMBEDDING, INNER]);
                    self.tensor(&at("ffn_up.weight"), &[EMBEDDING, INNER]);
                    self.tensor(&at("ffn_down.weight"), &[INNER, EMBEDDING]);
                }
            }
            if architecture == "gemma2" {
                self.norm(&at("post_attention_norm"), EMBEDDING, false);
                self.norm(&at("post_ffw_norm"), EMBEDDING, false);
            }
        }
        match architecture {
            "llama" => {
                self.tensor("rope_freqs.weight", &[HEAD / 2]);
                self.yarn();
            }
            "gemma2" => {
                self.float("attn_logit_softcapping", 5.0);
                self.float("final_logit_softcapping", 6.0);
                self.number("attention.sliding_window", 8);
                self.number("attention.key_length", HEAD);
                self.number("attention.value_length", HEAD);
            }
            "gpt2" => self.tensor("position_embd.weight", &[EMBEDDING, LONGEST]),
            "gpt-oss" => self.number("attention.sliding_window", 8),
            "phi3" => {
                self.tensor("rope_factors_long.weight", &[HEAD / 2]);
                self.tensor("rope_factors_short.weight", &[HEAD / 2]);
                self.number("rope.scaling.original_context_length", LONGEST);
            }
            _ => {}
        }
    }

    fn yarn(&mut self) {
        let name = self.metadata.get_str("general.architecture").unwrap().to_owned();
        let value = Value::String("yarn".into());
        self.metadata.set(&format!("{name}.rope.scaling.type"), &value).unwrap();
        self.float("rope.scaling.factor", 4.0);
        self.number("rope.scaling.original_context_length", LONGEST / 4);
    }

    fn experts(&mut self, layer: u64, architecture: &str) {
        let at = |name: &str| format!("blk.{layer}.{name}");
        self.number("expert_count", EXPERTS);
        self.number("expert_used_count", 2);
        self.number("expert_feed_forward_length", EXPERT_INNER);
        let wide = [EMBEDDING, EXPERT_INNER, EXPERTS];
        let narrow = [EXPERT_INNER, EMBEDDING, EXPERTS];
        if architecture == "gpt-oss" {
            self.with_bias(&at("ffn_gate_inp"), &[EMBEDDING, EXPERTS]);
            self.with_bias(&at("ffn_gate_exps"), &wide);
            self.with_bias(&at("ffn_up_exps"), &wide);
            self.with_bias(&at("ffn_down_exps"), &narrow);
            self.tensor(&at("attn_sinks.weight"), &[HEADS]);
            return;
        }
        self.tensor(&at("ffn_gate_inp.weight"), &[EMBEDDING, EXPERTS]);
        self.tensor(&at("ffn_gate_exps.weight"), &wide);
        self.tensor(&at("ffn_up_exps.weight"), &wide);
        self.tensor(&at("ffn_down_exps.weight"), &narrow);
        if architecture == "qwen2moe" {
            self.number("expert_shared_feed_forward_length", EXPERT_INNER);
            self.tensor(&at("ffn_gate_inp_shexp.weight"), &[EMBEDDING]);
        }
        self.tensor(&at("ffn_gate_shexp.weight"), &[EMBEDDING, EXPERT_INNER]);
        self.tensor(&at("ffn_up_shexp.weight"), &[EMBEDDING, EXPERT_INNER]);
        self.tensor(&at("ffn_down_shexp.weight"), &[EXPERT_INNER, EMBEDDING]);
    }

    /// Multi-head latent attention: keys and values are computed from a few numbers of each token.
    fn latent_attention(&mut self, layer: u64) {
        const LATENT: u64 = 24;
        const TURNED: u64 = 8;
        let at = |name: &str| format!("blk.{layer}.{name}");
        self.number("attention.head_count_kv", 1);
        self.number("rope.dimension_count", TURNED);
        self.number("attention.q_lora_rank", LATENT);
        self.number("attention.kv_lora_rank", LATENT);
        self.number("attention.key_length", LATENT + TURNED);
        self.number("attention.value_length", LATENT);
        self.number("attention.key_length_mla", HEAD + TURNED);
        self.number("attention.value_length_mla", HEAD);
        self.number("leading_dense_block_count", 1);
        self.number("expert_shared_count", 1);
        self.float("expert_weights_scale", 1.5);
        self.norm(&at("attn_q_a_norm"), LATENT, false);
        self.norm(&at("attn_kv_a_norm"), LATENT, false);
        self.tensor(&at("attn_q_a.weight"), &[EMBEDDING, LATENT]);
        self.tensor(&at("attn_q_b.weight"), &[LATENT, HEADS * (HEAD + TURNED)]);
        self.tensor(&at("attn_kv_a_mqa.weight"), &[EMBEDDING, LATENT + TURNED]);
        self.tensor(&at("attn_k_b.weight"), &[HEAD, LATENT, HEADS]);
        self.tensor(&at("attn_v_b.weight"), &[LATENT, HEAD, HEADS]);
    }

    /// Writes the model's file.
    pub(crate) fn write(&self, path: &Path) {
        let specs: Vec<TensorSpec> = self
            .tensors
            .iter()
            .map(|(name, dims, _)| TensorSpec {
                name: name.clone(),
                ty: TensorType::F32,
                dims: dims.clone(),
            })
            .collect();
        let layout = Layout::new(&self.metadata, &specs, 32).unwrap();
        let mut file = Vec::new();
        layout
            .write(&mut file, &mut |index, out: &mut dyn Write| -> io::Result<()> {
                let values = &self.tensors[index].2;
                out.write_all(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
            })
            .unwrap();
        std::fs::write(path, file).unwrap();
    }
}
