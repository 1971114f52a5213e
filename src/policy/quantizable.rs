//! What is never quantized, and what a row that does not fit a type is given instead.

use serde::Deserialize;
use serde::Serialize;

use crate::policy::ModelFacts;
use crate::policy::NoFallback;
use crate::tensor_type::TensorType;

/// Why a tensor keeps its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It has one dimension: a bias, a scale, a norm.
    OneDimension,
    /// Its name does not end in `weight`.
    NotAWeight,
    /// It is the weight of a norm.
    Norm,
    /// It decides which expert a token goes to.
    ExpertRouter,
    /// It is a small matrix whose error would cost more than its bytes save.
    Small,
    /// It holds positions or token types.
    Position,
    /// It is a part of an image or sound encoder that does not bear it.
    Encoder,
}

/// How a name is compared.
enum Name {
    /// The whole name.
    Is(&'static str),
    /// Any part of it.
    Has(&'static str),
}

impl Name {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Is(whole) => name == *whole,
            Self::Has(part) => name.contains(part),
        }
    }
}

/// What is exempt in every architecture.
const EXEMPT: &[(Reason, &[Name])] = &[
    (Reason::Norm, &[Name::Has("_norm.weight")]),
    (
        Reason::ExpertRouter,
        &[Name::Has("ffn_gate_inp.weight"), Name::Has("ffn_gate_tid2eid.weight")],
    ),
    (
        Reason::Small,
        &[
            // Gemma 3n.
            Name::Has("altup"),
            Name::Has("laurel"),
            Name::Has("per_layer_model_proj"),
            // Convolutions of state-space models.
            Name::Has("ssm_conv1d"),
            Name::Has("shortconv.conv.weight"),
            // Sparse attention's indexer.
            Name::Has("indexer.k_proj.weight"),
            Name::Has("indexer.q_proj.weight"),
            // RWKV.
            Name::Has("time_mix_first.weight"),
            Name::Has("time_mix_w0.weight"),
            Name::Has("time_mix_w1.weight"),
            Name::Has("time_mix_w2.weight"),
            Name::Has("time_mix_v0.weight"),
            Name::Has("time_mix_v1.weight"),
            Name::Has("time_mix_v2.weight"),
            Name::Has("time_mix_a0.weight"),
            Name::Has("time_mix_a1.weight"),
            Name::Has("time_mix_a2.weight"),
            Name::Has("time_mix_g1.weight"),
            Name::Has("time_mix_g2.weight"),
            Name::Has("time_mix_decay_w1.weight"),
            Name::Has("time_mix_decay_w2.weight"),
            Name::Has("time_mix_lerp_fused.weight"),
        ],
    ),
    (
        Reason::Position,
        &[
            Name::Is("position_embd.weight"),
            Name::Is("token_types.weight"),
            // T5.
            Name::Has("attn_rel_b.weight"),
            Name::Has(".position_embd"),
            Name::Has("sam.pos_embd"),
            Name::Has(".rel_pos"),
        ],
    ),
    (
        Reason::Encoder,
        &[
            Name::Has("sam.neck."),
            Name::Has("sam.net_"),
            Name::Has(".patch_embd"),
            Name::Has(".patch_merger"),
            Name::Has("a.rvq.codebook"),
            Name::Has("mm.a.code_embd"),
        ],
    ),
];

/// What is exempt in `glm5-next` besides.
const EXEMPT_GLM5_NEXT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

/// Says whether a tensor may be quantized at all.
///
/// # Errors
/// The [`Reason`] why it keeps its type.
pub fn quantizable(model: &ModelFacts, name: &str, dims: &[u64]) -> Result<(), Reason> {
    if dims.iter().skip(1).all(|dim| *dim == 1) {
        return Err(Reason::OneDimension);
    }
    // The engine's own test for the suffix also lets any name of five bytes pass; so must this one, to agree with it.
    if !(name.ends_with("weight") || name.len() == 5) {
        return Err(Reason::NotAWeight);
    }
    let exempt = EXEMPT
        .iter()
        .find(|(_, names)| names.iter().any(|test| test.matches(name)));
    if let Some((reason, _)) = exempt {
        return Err(*reason);
    }
    if model.architecture == "glm5-next" && EXEMPT_GLM5_NEXT.iter().any(|part| name.contains(part)) {
        return Err(Reason::Small);
    }
    Ok(())
}

/// Returns the type that a row of this many elements gets where `to` is asked for: `to` itself if its blocks fit.
///
/// # Errors
/// [`NoFallback`] for the types whose blocks are larger than 32 and for which the engine defines nothing (it aborts).
pub fn fallback(to: TensorType, columns: u64) -> Result<TensorType, NoFallback> {
    use TensorType as T;
    if columns.is_multiple_of(to.block_elements()) {
        return Ok(to);
    }
    let smaller = match to {
        T::IQ1_S | T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS | T::IQ3_S | T::IQ4_XS => T::IQ4_NL,
        T::Q2_0 | T::Q2_K | T::Q3_K | T::TQ1_0 | T::TQ2_0 => T::Q4_0,
        T::Q4_K => T::Q5_0,
        T::Q5_K => T::Q5_1,
        T::Q6_K => T::Q8_0,
        other if other.block_elements() <= 32 => T::F16,
        _ => return Err(NoFallback { wanted: to, columns }),
    };
    Ok(if columns.is_multiple_of(smaller.block_elements()) {
        smaller
    } else {
        T::F16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(architecture: &str) -> ModelFacts {
        ModelFacts {
            architecture: architecture.to_owned(),
            layers: 4,
            heads: 8,
            heads_kv: 8,
            experts: 0,
            is_70b: false,
            file_type: None,
            tensors: Vec::new(),
        }
    }

    #[test]
    fn what_is_never_quantized() {
        let llama = model("llama");
        let ask = |name: &str, dims: &[u64]| quantizable(&llama, name, dims);
        assert_eq!(ask("blk.0.attn_q.weight", &[256, 256]), Ok(()));
        assert_eq!(ask("blk.0.ffn_down_exps.weight", &[256, 256, 8]), Ok(()));
        assert_eq!(
            ask("token_embd.weight", &[256, 1]),
            Err(Reason::OneDimension),
            "a trailing one is no dimension"
        );
        assert_eq!(ask("blk.0.x.weight", &[1, 1, 4]), Ok(()));
        assert_eq!(ask("blk.0.attn_q.bias", &[256, 2]), Err(Reason::NotAWeight));
        assert_eq!(ask("odd.b", &[256, 2]), Ok(()), "five bytes");
        assert_eq!(ask("blk.0.attn_norm.weight", &[256, 2]), Err(Reason::Norm));
        assert_eq!(ask("blk.0.ffn_gate_inp.weight", &[256, 8]), Err(Reason::ExpertRouter));
        assert_eq!(ask("blk.0.ffn_gate_inp_shexp.weight", &[256, 8]), Ok(()));
        assert_eq!(ask("position_embd.weight", &[256, 8]), Err(Reason::Position));
        assert_eq!(ask("v.position_embd.weight", &[256, 8]), Err(Reason::Position));
        assert_eq!(ask("v.patch_embd.weight", &[14, 14, 3, 64]), Err(Reason::Encoder));
        assert_eq!(ask("blk.0.time_mix_w1.weight", &[256, 8]), Err(Reason::Small));
        assert_eq!(ask("blk.0.attn_k_b.weight", &[256, 8]), Ok(()));
        assert_eq!(
            quantizable(&model("glm5-next"), "blk.0.attn_k_b.weight", &[256, 8]),
            Err(Reason::Small)
        );
    }

    #[test]
    fn rows_that_do_not_fit_get_a_smaller_block_or_f16_or_an_error() {
        use TensorType as T;
        assert_eq!(fallback(T::Q4_K, 512), Ok(T::Q4_K));
        assert_eq!(fallback(T::Q4_K, 288), Ok(T::Q5_0));
        assert_eq!(fallback(T::Q5_K, 288), Ok(T::Q5_1));
        assert_eq!(fallback(T::Q6_K, 288), Ok(T::Q8_0));
        assert_eq!(fallback(T::Q3_K, 288), Ok(T::Q4_0));
        assert_eq!(fallback(T::IQ2_S, 288), Ok(T::IQ4_NL));
        assert_eq!(fallback(T::Q2_0, 96), Ok(T::Q4_0), "blocks of 64");
        assert_eq!(fallback(T::Q6_K, 100), Ok(T::F16));
        assert_eq!(fallback(T::Q8_0, 100), Ok(T::F16));
        assert_eq!(fallback(T::MXFP4, 100), Ok(T::F16));
        assert_eq!(fallback(T::F16, 7), Ok(T::F16));
        assert_eq!(
            fallback(T::Q1_0, 64),
            Err(NoFallback {
                wanted: T::Q1_0,
                columns: 64
            })
        );
        assert_eq!(
            fallback(T::NVFP4, 32),
            Err(NoFallback {
                wanted: T::NVFP4,
                columns: 32
            })
        );
    }
}
