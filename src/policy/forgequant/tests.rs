use super::*;
use TensorType as T;

fn model(tensors: &[(&str, T, &[u64])]) -> ModelFacts {
    ModelFacts {
        architecture: "deepseek4".to_owned(),
        layers: 2,
        heads: 8,
        heads_kv: 8,
        experts: 4,
        is_70b: false,
        file_type: None,
        tensors: tensors
            .iter()
            .map(|(name, ty, dims)| TensorFacts {
                name: (*name).to_owned(),
                ty: *ty,
                dims: dims.to_vec(),
            })
            .collect(),
    }
}

const MATRIX: &[u64] = &[256, 256];
const EXPERT_MATRIX: &[u64] = &[256, 256, 4];

/// What the rules give to a name; nothing where none is found in it.
fn given(rules: &[Rule], name: &str) -> Option<Target> {
    rules
        .iter()
        .find(|rule| rule.pattern.is_match(name))
        .map(|rule| rule.to)
}

#[test]
fn what_is_written_reads_back_tensor_by_tensor() {
    let model = model(&[
        ("token_embd.weight", T::Q8_0, MATRIX),
        ("output_norm.weight", T::F32, &[256]),
        ("output.weight", T::Q8_0, MATRIX),
        ("blk.0.attn_q_a.weight", T::Q8_0, MATRIX),
        ("blk.1.attn_q_a.weight", T::Q8_0, MATRIX),
        ("blk.0.attn_v.weight", T::Q4_K, MATRIX),
        ("blk.1.attn_v.weight", T::F16, MATRIX),
        ("blk.0.ffn_gate_inp.weight", T::F32, &[256, 4]),
        ("blk.0.ffn_gate_exps.weight", T::IQ2_XXS, EXPERT_MATRIX),
        ("blk.1.ffn_gate_exps.weight", T::IQ2_XXS, EXPERT_MATRIX),
        ("blk.0.ffn_down_exps.weight", T::Q2_K, EXPERT_MATRIX),
        ("blk.1.ffn_down_exps.weight", T::Q4_K, EXPERT_MATRIX),
        ("blk.0.ffn_up_shexp.weight", T::Q8_0, MATRIX),
        ("blk.0.ffn_gate_inp_shexp.weight", T::F32, MATRIX),
        ("blk.0.other.weight", T::Q4_K, MATRIX),
    ]);
    let text = forgequant_of(&model, "mixed").unwrap();
    let recipe: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(recipe["name"], "mixed");
    assert_eq!(
        recipe["quant"],
        json!({ "attn_proj": "q8_0", "embedding": "q8_0", "output": "q8_0", "routed_w1": "iq2_xxs" })
    );
    let tensors = recipe["tensor_types"].as_object().unwrap();
    assert_eq!(tensors.len(), 7, "{text}");
    let rules = rules_of_forgequant(&text).unwrap();
    for tensor in &model.tensors {
        let expected = quantizable(&model, &tensor.name, &tensor.dims)
            .is_ok()
            .then_some(Target::Type(tensor.ty));
        let found = given(&rules, &tensor.name);
        // A family may reach one-dimensional tensors by name: those keep their type in forgequant as here.
        assert!(
            found == expected || (tensor.dims.len() < 2 && expected.is_none()),
            "{}: {found:?}, not {expected:?}",
            tensor.name
        );
    }
}

#[test]
fn a_family_that_reaches_a_router_is_not_named() {
    // The router would be quantized with it.
    let dense = model(&[
        ("blk.0.ffn_up.weight", T::Q8_0, MATRIX),
        ("blk.0.ffn_gate_inp.weight", T::F32, &[256, 4]),
    ]);
    let recipe: Value = serde_json::from_str(&forgequant_of(&dense, "d").unwrap()).unwrap();
    assert_eq!(recipe["quant"], json!({}));
    assert_eq!(recipe["tensor_types"], json!({ "blk.0.ffn_up.weight": "q8_0" }));
}

#[test]
fn types_that_it_cannot_write_are_refused_by_tensor() {
    let model = model(&[
        ("blk.0.attn_v.weight", T::Q6_K, MATRIX),
        ("blk.0.attn_q.weight", T::Q4_K, MATRIX),
        ("blk.0.attn_norm.weight", T::F32, &[256]),
    ]);
    let error = forgequant_of(&model, "m").unwrap_err();
    assert_eq!(error.tensors, [("blk.0.attn_v.weight".to_owned(), T::Q6_K)]);
    assert!(
        error
            .to_string()
            .contains("Q4_K, Q8_0, F16, F32, BF16; other types: `blk.0.attn_v.weight` (Q6_K)"),
        "{error}"
    );
}

#[test]
fn a_recipe_is_read_as_its_quantizer_reads_it() {
    let rules = rules_of_forgequant(
        r#"{
            "name": "coder-q4boost", "hf": "{models}/x", "_note": "more keys say nothing of types",
            "quant": { "routed_w1": "q2_k", "experts": "IQ2_XXS", "routed_w2": "q2_k", "dense": "f16", "attention": "q8_0" },
            "tensor_types": { "blk.1": "bf16", "blk.1.ffn_down_exps.weight": "q8_0", "blk.1.ffn_up_exps.": "q8_0" },
            "boost": { "layers": "1, 37-38,", "type": "q4_k", "families": ["w2", "w3"], "mode": "energy" }
        }"#,
    )
    .unwrap();
    let is = |name: &str, to: Option<T>| assert_eq!(given(&rules, name), to.map(Target::Type), "{name}");
    // `experts` stands after `routed_w1`, so it counts; `routed_w2` after it.
    is("blk.0.ffn_gate_exps.weight", Some(T::IQ2_XXS));
    is("blk.0.ffn_up_exps.weight", Some(T::IQ2_XXS));
    is("blk.0.ffn_down_exps.weight", Some(T::Q2_K));
    is("blk.37.ffn_down_exps.weight", Some(T::Q4_K));
    is("blk.38.ffn_up_exps.weight", Some(T::Q4_K));
    is("blk.39.ffn_up_exps.weight", Some(T::IQ2_XXS));
    // The longest beginning decides; of equal ones the user's.
    is("blk.1.ffn_down_exps.weight", Some(T::Q8_0));
    is("blk.1.ffn_up_exps.weight", Some(T::Q4_K));
    is("blk.1.attn_q.weight", Some(T::BF16));
    // A beginning is no layer.
    is("blk.10.attn_q.weight", Some(T::BF16));
    is("blk.2.attn_q.weight", Some(T::Q8_0));
    is("blk.2.indexer_x.weight", Some(T::Q8_0));
    is("blk.2.ffn_up.weight", Some(T::F16));
    is("token_embd.weight", Some(T::F16));
    assert_eq!(given(&rules, "blk.2.odd_exps.weight"), Some(Target::Keep));
}

#[test]
fn all_problems_are_reported_at_once() {
    let errors = rules_of_forgequant(
        r#"{ "quant": { "routed": "q4_k", "output": "q9" }, "tensor_types": { "blk.0": "q8_k" },
             "boost": { "layers": "auto:6", "type": "q4_k", "families": ["w4"] } }"#,
    )
    .unwrap_err();
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for words in [
        "there is no family `routed`",
        "`quant`, `output`: `q9` is not a tensor type",
        "`tensor_types`, `blk.0`: the engine can't quantize tensors to Q8_K",
        "`boost`, `layers`: `auto:6` depends on an imatrix",
        "expected `w1`, `w2` or `w3`, found `w4`",
    ] {
        assert!(text.iter().any(|line| line.contains(words)), "{words}: {text:?}");
    }
    assert_eq!(text.len(), 5, "{text:?}");
    for bad in ["9-3", "x", "-3", "", "1000", "3-"] {
        assert!(layers_of(bad).is_err(), "{bad}");
    }
    let many = rules_of_forgequant(r#"{ "boost": { "layers": [1, 999], "type": "q4_k" } }"#).unwrap_err();
    assert_eq!(many[0].to_string(), "`boost`, `layers`: there is no layer 999");
    let torn = rules_of_forgequant("{").unwrap_err();
    assert!(
        torn[0].to_string().starts_with("it is not a forgequant recipe"),
        "{torn:?}"
    );
}
