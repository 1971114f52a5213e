//! Tests of mixes, rules and refusals on models made up of names.

use regex::Regex;

use super::*;
use crate::mix::Mix;
use crate::tensor_type::TensorType as T;

fn model(architecture: &str, layers: u32, experts: u32) -> ModelFacts {
    let mut tensors = Vec::new();
    let mut add = |name: String, ty, dims: &[u64]| {
        tensors.push(TensorFacts {
            name,
            ty,
            dims: dims.to_vec(),
        });
    };
    add("token_embd.weight".to_owned(), T::F16, &[256, 64]);
    add("output.weight".to_owned(), T::F16, &[256, 64]);
    add("output_norm.weight".to_owned(), T::F32, &[256]);
    // Backwards, as files may be: the mixes count in the order of layers.
    for layer in (0..layers).rev() {
        for part in [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ] {
            add(format!("blk.{layer}.{part}.weight"), T::F16, &[256, 256]);
        }
    }
    ModelFacts {
        architecture: architecture.to_owned(),
        layers,
        heads: 8,
        heads_kv: 8,
        experts,
        is_70b: false,
        file_type: None,
        tensors,
    }
}

fn everything(_: &str) -> bool {
    true
}

fn layers_with(table: &Table, part: &str, ty: T) -> Vec<u32> {
    (0..99)
        .filter(|layer| {
            table
                .get(&format!("blk.{layer}.{part}.weight"))
                .is_some_and(|choice| choice.to == ty)
        })
        .collect()
}

fn rule(pattern: &str, to: Target) -> Rule {
    Rule {
        pattern: Regex::new(pattern).unwrap(),
        to,
    }
}

#[test]
fn q4_k_m_spends_more_on_the_ends_and_every_third_layer() {
    let model = model("llama", 32, 0);
    let table = mix(&model, Mix::Q4_K_M, &MixOptions::default(), None).unwrap();
    let more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
    assert_eq!(layers_with(&table, "attn_v", T::Q6_K), more);
    assert_eq!(layers_with(&table, "ffn_down", T::Q6_K), more);
    assert_eq!(layers_with(&table, "attn_k", T::Q4_K).len(), 32);
    assert_eq!(table.get("output.weight").unwrap().to, T::Q6_K);
    let norm = table.get("output_norm.weight").unwrap();
    assert_eq!(
        (norm.to, &norm.why),
        (
            T::F32,
            &Why::NeverQuantized {
                reason: Reason::OneDimension
            }
        )
    );
    let names: Vec<_> = table.choices.iter().map(|choice| &choice.tensor).collect();
    assert_eq!(
        names,
        model.tensors.iter().map(|tensor| &tensor.name).collect::<Vec<_>>(),
        "the order of the file"
    );
    assert_eq!(table.get("blk.5.attn_k.weight").unwrap().bytes, 256 * 144);
    assert_eq!(
        table.bytes(),
        Some(table.choices.iter().map(|choice| choice.bytes).sum())
    );
}

#[test]
fn a_rule_changes_no_tensor_that_it_does_not_match() {
    let model = model("llama", 6, 0);
    let plain = mix(&model, Mix::Q4_K_M, &MixOptions::default(), None).unwrap();
    let options = MixOptions {
        rules: vec![
            rule(r"^blk\.0\.attn_v", Target::Type(T::Q8_0)),
            rule("ffn_down", Target::Keep),
        ],
        ..MixOptions::default()
    };
    let ruled = mix(&model, Mix::Q4_K_M, &options, None).unwrap();
    for (before, after) in plain.choices.iter().zip(&ruled.choices) {
        match after.why {
            Why::Rule { index: 0 } => assert_eq!((after.tensor.as_str(), after.to), ("blk.0.attn_v.weight", T::Q8_0)),
            Why::Rule { .. } => assert_eq!(after.to, T::F16),
            _ => assert_eq!(before, after),
        }
    }
    assert!(ruled.warnings.is_empty());
}

#[test]
fn imatrices_heads_and_experts_change_mixes() {
    let dense = model("llama", 16, 0);
    let down = |imatrix: HasImatrix<'_>| mix(&dense, Mix::IQ4_XS, &MixOptions::default(), imatrix).unwrap();
    assert_eq!(layers_with(&down(None), "ffn_down", T::Q5_K), [0, 1]);
    assert!(layers_with(&down(Some(&everything)), "ffn_down", T::Q5_K).is_empty());
    let shared = ModelFacts {
        heads_kv: 2,
        ..dense.clone()
    };
    let table = mix(&shared, Mix::IQ4_XS, &MixOptions::default(), Some(&everything)).unwrap();
    assert_eq!(layers_with(&table, "attn_v", T::Q5_K).len(), 16);
    let experts = mix(&model("llama", 16, 8), Mix::Q4_K_S, &MixOptions::default(), None).unwrap();
    assert_eq!(layers_with(&experts, "attn_v", T::Q8_0).len(), 16);
    assert_eq!(layers_with(&experts, "attn_output", T::Q5_K).len(), 16);
    let big = ModelFacts { is_70b: true, ..dense };
    let table = mix(&big, Mix::Q3_K_M, &MixOptions::default(), None).unwrap();
    assert_eq!(layers_with(&table, "attn_v", T::Q5_K).len(), 16);
}

#[test]
fn tied_embeddings_are_the_output() {
    let mut tied = model("gemma2", 2, 0);
    tied.tensors.retain(|tensor| tensor.name != "output.weight");
    let options = MixOptions::default();
    assert_eq!(
        mix(&tied, Mix::Q4_K_M, &options, None)
            .unwrap()
            .get("token_embd.weight")
            .unwrap()
            .to,
        T::Q6_K
    );
    let pure = MixOptions {
        pure: true,
        ..MixOptions::default()
    };
    assert_eq!(
        mix(&tied, Mix::Q4_K_M, &pure, None)
            .unwrap()
            .get("token_embd.weight")
            .unwrap()
            .to,
        T::Q4_K
    );
    let typed = MixOptions {
        output_type: Some(T::Q8_0),
        ..MixOptions::default()
    };
    assert_eq!(
        mix(&tied, Mix::Q4_K_M, &typed, None)
            .unwrap()
            .get("token_embd.weight")
            .unwrap()
            .to,
        T::Q8_0
    );
}

#[test]
fn rows_that_do_not_fit_are_counted_or_refused() {
    let mut odd = model("llama", 2, 0);
    for tensor in &mut odd.tensors {
        tensor.dims[0] = 288;
    }
    let table = mix(&odd, Mix::Q4_K_S, &MixOptions::default(), None).unwrap();
    let choice = table.get("blk.1.attn_q.weight").unwrap();
    assert_eq!((choice.to, choice.instead_of), (T::Q5_0, Some(T::Q4_K)));
    assert_eq!(table.fallbacks(), 15, "all but the output, which Q8_0 fits");
    let error = mix(&odd, Mix::Q1_0, &MixOptions::default(), None).unwrap_err();
    assert!(matches!(error, PolicyError::NoFallback { .. }), "{error}");
    let typed = MixOptions {
        output_type: Some(T::Q6_K),
        ..MixOptions::default()
    };
    let error = mix(&odd, Mix::Q4_K_M, &typed, None).unwrap_err();
    assert!(
        error.to_string().contains("output.weight") && error.to_string().contains("288"),
        "{error}"
    );
}

#[test]
fn missing_imatrix_entries_are_named_before_any_work() {
    let model = model("llama", 2, 0);
    let refuse = |kind, options: &MixOptions, imatrix: HasImatrix<'_>| match mix(&model, kind, options, imatrix) {
        Err(PolicyError::NeedsImatrix { tensors, have_imatrix }) => (
            tensors.into_iter().map(|change| change.tensor).collect::<Vec<_>>(),
            have_imatrix,
        ),
        other => panic!("{other:?}"),
    };
    let default = MixOptions::default();
    assert!(!refuse(Mix::Q2_K_S, &default, None).1);
    let without_one = |name: &str| name != "blk.1.attn_q.weight";
    assert_eq!(
        refuse(Mix::IQ2_XXS, &default, Some(&without_one)),
        (vec!["blk.1.attn_q.weight".to_owned()], true)
    );
    // No imatrix covers these two; the kernel of this type would abort the process.
    let blocks = |name: &str| name.starts_with("blk.");
    let pure = MixOptions {
        pure: true,
        ..MixOptions::default()
    };
    assert_eq!(
        refuse(Mix::IQ1_S, &pure, Some(&blocks)).0,
        ["token_embd.weight", "output.weight"]
    );
    assert!(mix(&model, Mix::IQ1_M, &pure, Some(&blocks)).is_ok());
    assert!(mix(&model, Mix::Q2_K, &default, None).is_ok());
}

#[test]
fn quantized_sources_are_copied_or_refused() {
    let mut quantized = model("llama", 2, 0);
    quantized.tensors[4].ty = T::Q4_K;
    let options = MixOptions {
        pure: true,
        ..MixOptions::default()
    };
    assert!(
        mix(&quantized, Mix::Q4_K_M, &options, None).is_ok(),
        "already of the type"
    );
    let error = mix(&quantized, Mix::Q8_0, &options, None).unwrap_err();
    let PolicyError::Requantize { tensors } = &error else {
        panic!("{error}")
    };
    assert_eq!((tensors.len(), tensors[0].from, tensors[0].to), (1, T::Q4_K, T::Q8_0));
    assert!(
        mix(
            &quantized,
            Mix::Q8_0,
            &MixOptions {
                allow_requantize: true,
                ..options
            },
            None
        )
        .is_ok()
    );
    quantized.tensors[4].ty = T::F64;
    let error = mix(&quantized, Mix::Q8_0, &MixOptions::default(), None).unwrap_err();
    assert!(matches!(error, PolicyError::NotConvertible { .. }), "{error}");
    assert!(mix(&quantized, Mix::COPY, &MixOptions::default(), None).is_ok());
}

#[test]
fn the_first_matching_rule_decides_and_the_rest_is_an_error() {
    let model = model("llama", 2, 0);
    let rules = [
        rule(r"ffn_down", Target::Type(T::Q6_K)),
        rule(r"^blk\.", Target::Type(T::Q4_K)),
    ];
    let error = manual(&model, &rules, ManualOptions::default(), None).unwrap_err();
    assert_eq!(
        error,
        PolicyError::Unmatched {
            tensors: vec!["token_embd.weight".to_owned(), "output.weight".to_owned()]
        }
    );
    let options = ManualOptions {
        otherwise: Some(Target::Keep),
        allow_requantize: false,
    };
    let table = manual(&model, &rules, options, None).unwrap();
    assert_eq!(layers_with(&table, "ffn_down", T::Q6_K), [0, 1]);
    assert_eq!(table.get("blk.0.ffn_down.weight").unwrap().why, Why::Rule { index: 0 });
    assert_eq!(table.get("blk.0.attn_q.weight").unwrap().to, T::Q4_K);
    assert_eq!(table.get("output.weight").unwrap().why, Why::Otherwise);
    assert_eq!(table.warnings, []);
    assert_eq!(table.file_type(), Mix::Q4_K_M.ftype().unwrap());
}

#[test]
fn rules_without_effect_are_reported() {
    let model = model("llama", 2, 0);
    let rules = [
        rule("attn_kv", Target::Type(T::Q6_K)),
        rule("output_norm", Target::Type(T::F16)),
        rule(".", Target::Type(T::Q4_0)),
        rule("ffn_up", Target::Type(T::Q8_0)),
    ];
    let table = manual(&model, &rules, ManualOptions::default(), None).unwrap();
    let expected = [
        Warning::RuleMatchesNothing {
            index: 0,
            pattern: "attn_kv".to_owned(),
        },
        Warning::RuleHasNoEffect {
            index: 1,
            pattern: "output_norm".to_owned(),
            tensor: "output_norm.weight".to_owned(),
            reason: Reason::OneDimension,
        },
        Warning::RuleShadowed {
            index: 3,
            pattern: "ffn_up".to_owned(),
        },
    ];
    assert_eq!(table.warnings, expected);
}

#[test]
fn internal_types_are_no_targets() {
    let model = model("llama", 1, 0);
    for ty in [T::Q8_K, T::Q8_1, T::I32, T::F64] {
        let error = manual(&model, &[rule(".", Target::Type(ty))], ManualOptions::default(), None).unwrap_err();
        assert_eq!(error, PolicyError::NotATarget { ty });
    }
}

#[test]
fn feed_forward_of_experts_must_say_its_layer() {
    let mut experts = model("qwen3moe", 2, 4);
    experts.tensors.push(TensorFacts {
        name: "blk.2.ffn_up.weight".to_owned(),
        ty: T::F16,
        dims: vec![256, 2],
    });
    let error = mix(&experts, Mix::Q4_0, &MixOptions::default(), None).unwrap_err();
    assert_eq!(
        error,
        PolicyError::BadLayer {
            tensor: "blk.2.ffn_up.weight".to_owned(),
            layers: 2
        }
    );
    let clip = ModelFacts {
        layers: 0,
        ..model("clip", 2, 0)
    };
    let error = mix(&clip, Mix::Q2_K, &MixOptions::default(), None).unwrap_err();
    assert!(matches!(error, PolicyError::NoHeads { .. }), "{error}");
    assert!(mix(&clip, Mix::Q8_0, &MixOptions::default(), None).is_ok());
}

#[test]
fn the_file_type_of_a_copy_is_the_sources_or_guessed_from_its_tensors() {
    assert_eq!(file_type_of(Mix::COPY, &model("llama", 2, 0)), 1 + 1024);
    let named = ModelFacts {
        file_type: Some(7),
        ..model("llama", 2, 0)
    };
    assert_eq!(file_type_of(Mix::COPY, &named), 7);
}

#[test]
fn the_artifact_is_stable_and_reads_back() {
    let mut small = model("llama", 0, 0);
    small.tensors[1].dims[0] = 288;
    let options = ManualOptions {
        otherwise: None,
        allow_requantize: false,
    };
    let table = manual(&small, &[rule("t", Target::Type(T::Q4_K))], options, None).unwrap();
    let text = serde_json::to_string(&table).unwrap();
    assert_eq!(
        text,
        concat!(
            r#"{"schema":"policy.v1","choices":["#,
            r#"{"tensor":"token_embd.weight","from":"F16","to":"Q4_K","why":{"kind":"rule","index":0},"bytes":9216},"#,
            r#"{"tensor":"output.weight","from":"F16","to":"Q5_0","instead_of":"Q4_K","#,
            r#""why":{"kind":"rule","index":0},"bytes":12672},"#,
            r#"{"tensor":"output_norm.weight","from":"F32","to":"F32","#,
            r#""why":{"kind":"never_quantized","reason":"one_dimension"},"bytes":1024}]}"#,
        )
    );
    assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
    let newer = serde_json::from_str::<Table>(&text.replace("policy.v1", "policy.v2")).unwrap_err();
    assert!(newer.to_string().contains("policy.v2"), "{newer}");
}
