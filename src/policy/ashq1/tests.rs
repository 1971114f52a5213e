//! The method on small models.

use super::*;
use crate::policy::Energy;

const SIZE: FileSize = FileSize {
    header: 4096,
    alignment: 32,
};

fn options(budget: u64) -> Ashq1<'static> {
    Ashq1 {
        budget,
        size: SIZE,
        depth: false,
        free: false,
        qat: false,
        keep: &[],
        floors: &[],
        ceilings: &[],
    }
}

fn tensor(name: &str, dims: &[u64]) -> TensorFacts {
    TensorFacts {
        name: name.to_owned(),
        ty: TensorType::F16,
        dims: dims.to_vec(),
    }
}

fn model(architecture: &str) -> ModelFacts {
    let mut tensors = vec![tensor("token_embd.weight", &[256, 1000])];
    for layer in 0..8 {
        for (part, rows) in [("attn_q", 256), ("attn_k", 64), ("attn_v", 64), ("ffn_up", 1024)] {
            tensors.push(tensor(&format!("blk.{layer}.{part}.weight"), &[256, rows]));
        }
        tensors.push(tensor(&format!("blk.{layer}.attn_norm.weight"), &[256]));
    }
    ModelFacts {
        architecture: architecture.to_owned(),
        layers: 8,
        heads: 8,
        heads_kv: 2,
        experts: 0,
        is_70b: false,
        file_type: None,
        tensors,
    }
}

/// Queries and keys of a layer have the same inputs; later layers matter more.
fn energies(model: &ModelFacts) -> Energies {
    let mut energies = Energies::new();
    for (at, tensor) in model.tensors.iter().enumerate() {
        let Some(layer) = block_index(&tensor.name).filter(|_| tensor.dims.len() > 1) else {
            continue;
        };
        let tied = tensor.name.contains("attn_q") || tensor.name.contains("attn_k");
        let energy = Energy {
            mean: (layer + 1) as f64,
            experts: vec![1.0],
            columns: 256,
            tie: if tied { layer as u128 } else { 1000 + at as u128 },
        };
        energies.insert(tensor.name.clone(), energy);
    }
    energies
}

fn types(table: &Table, part: &str) -> Vec<TensorType> {
    let choices = table.choices.iter().filter(|choice| choice.tensor.contains(part));
    choices.map(|choice| choice.to).collect()
}

#[test]
fn assumed_errors_match_the_formula() {
    for ty in ASHQ1_TYPES
        .iter()
        .filter(|ty| !matches!(ty, TensorType::IQ4_NL | TensorType::IQ4_XS))
    {
        let expected = 2_f64.powf(-2.0 * ty.bpw());
        assert!((error_of(*ty) / expected - 1.0).abs() < 1e-14, "{ty}");
    }
    assert!((IQ4_NL_ERROR / 2_f64.powf(-8.8) - 1.0).abs() < 1e-14);
    assert!(ASHQ1_TYPES.windows(2).all(|pair| error_of(pair[0]) > error_of(pair[1])));
}

#[test]
fn the_budget_is_kept_and_used_and_important_tensors_are_upgraded_first() {
    let model = model("llama");
    let energies = energies(&model);
    let least = match ashq1(&model, &energies, &options(0)).unwrap_err() {
        PolicyError::BelowMinimum { budget: 0, minimum } => minimum,
        other => panic!("{other}"),
    };
    let floors = ashq1(&model, &energies, &options(least)).unwrap();
    assert_eq!(SIZE.of(&floors.choices), least);
    assert!(types(&floors, "attn_q").iter().all(|ty| *ty == TensorType::Q4_K));
    assert_eq!(types(&floors, "token_embd"), [TensorType::Q5_K]);
    assert!(
        types(&floors, "norm").iter().all(|ty| *ty == TensorType::F16),
        "not touched"
    );

    let all = ashq1(&model, &energies, &options(u64::MAX)).unwrap();
    for part in ["attn", "ffn", "embd"] {
        let quantized = all
            .choices
            .iter()
            .filter(|choice| choice.tensor.contains(part) && !choice.tensor.contains("norm"));
        assert!(quantized.clone().all(|choice| choice.to == TensorType::Q8_0), "{part}");
    }
    let most = SIZE.of(&all.choices);
    let mut before = least;
    for tenth in 1..10 {
        let budget = least + (most - least) / 10 * tenth;
        let table = ashq1(&model, &energies, &options(budget)).unwrap();
        let file = SIZE.of(&table.choices);
        assert!(
            file <= budget && file > before,
            "{tenth}: {before} < {file} <= {budget}"
        );
        before = file;
        assert_eq!(types(&table, "attn_q"), types(&table, "attn_k"), "tied");
        let ups = types(&table, "ffn_up");
        assert!(
            ups.is_sorted_by_key(|ty| level_of(*ty)),
            "later layers matter more: {ups:?}"
        );
    }
}

#[test]
fn layers_for_prediction_and_state_spaces_have_fixed_types() {
    let mut model = model("qwen35");
    model.tensors.push(tensor("blk.8.nextn.eh_proj.weight", &[512, 256]));
    model.tensors.push(tensor("blk.8.ffn_up.weight", &[256, 1024]));
    model.tensors.push(tensor("blk.3.ssm_beta.weight", &[256, 16]));
    model.tensors.push(tensor("blk.3.ssm_out.weight", &[256, 256]));
    model.tensors.push(tensor("blk.3.ffn_gate_inp.weight", &[256, 16]));
    let (spans, _) = spans(&model, &options(0)).unwrap();
    let span = |name: &str| &spans[model.tensors.iter().position(|tensor| tensor.name == name).unwrap()];
    let fixed = |ty, what| Span::Fixed {
        to: ty,
        why: Why::Fixed { what },
    };
    assert_eq!(
        *span("blk.8.nextn.eh_proj.weight"),
        fixed(TensorType::Q5_K, Fixed::NextToken)
    );
    assert_eq!(*span("blk.8.ffn_up.weight"), fixed(TensorType::Q5_K, Fixed::NextToken));
    assert_eq!(
        *span("blk.3.ssm_beta.weight"),
        fixed(TensorType::F16, Fixed::StateSpace)
    );
    assert!(matches!(span("blk.3.ssm_out.weight"), Span::Free { .. }));
    assert!(matches!(
        span("blk.3.ffn_gate_inp.weight"),
        Span::Fixed {
            why: Why::NeverQuantized { .. },
            ..
        }
    ));
    let all = ashq1(&model, &energies(&model), &options(u64::MAX)).unwrap();
    assert_eq!(all.get("blk.8.ffn_up.weight").unwrap().to, TensorType::Q5_K);
}

#[test]
fn gemma_4_with_qat_has_lower_floors_except_for_attention() {
    let floor = |architecture: &str, part: &str| {
        let model = model(architecture);
        let qat = Ashq1 {
            qat: true,
            ..options(0)
        };
        let (spans, _) = spans(&model, &qat).unwrap();
        let at = model
            .tensors
            .iter()
            .position(|tensor| tensor.name.contains(part))
            .unwrap();
        match &spans[at] {
            Span::Free { floor, .. } => *floor,
            Span::Fixed { to, .. } => *to,
        }
    };
    assert_eq!(floor("gemma4", "attn_v"), TensorType::Q4_K);
    assert_eq!(floor("gemma4", "ffn_up"), TensorType::IQ4_XS);
    assert_eq!(floor("llama", "attn_v"), TensorType::IQ4_XS);
}

#[test]
fn options_do_what_they_say() {
    let rule = |pattern: &str, ty| Rule {
        pattern: regex::Regex::new(pattern).unwrap(),
        to: Target::Type(ty),
    };
    let model = model("llama");
    let energies = energies(&model);
    let floors = [rule("ffn_up", TensorType::IQ4_NL), rule("nothing", TensorType::Q4_K)];
    let ceilings = [rule("ffn_up", TensorType::Q4_K)];
    let with = |free| Ashq1 {
        free,
        floors: &floors,
        ceilings: &ceilings,
        ..options(u64::MAX)
    };
    let free = ashq1(&model, &energies, &with(true)).unwrap();
    assert!(types(&free, "ffn_up").iter().all(|ty| *ty == TensorType::Q4_K));
    assert!(matches!(
        &free.warnings[..],
        [Warning::RuleMatchesNothing { index: 1, .. }]
    ));
    let not_free = ashq1(&model, &energies, &with(false)).unwrap();
    assert!(types(&not_free, "ffn_up").iter().all(|ty| *ty == TensorType::IQ4_NL));

    let keep = [Rule {
        pattern: regex::Regex::new("attn_v").unwrap(),
        to: Target::Keep,
    }];
    let kept = Ashq1 {
        keep: &keep,
        ..options(u64::MAX)
    };
    let kept = ashq1(&model, &energies, &kept).unwrap();
    assert!(types(&kept, "attn_v").iter().all(|ty| *ty == TensorType::F16));

    let crossed = [rule("ffn_up", TensorType::Q3_K)];
    let crossed = Ashq1 {
        ceilings: &crossed,
        ..options(u64::MAX)
    };
    assert!(matches!(
        ashq1(&model, &energies, &crossed),
        Err(PolicyError::FloorAboveCeiling { .. })
    ));
    let odd = [rule("ffn_up", TensorType::IQ2_S)];
    let odd = Ashq1 {
        floors: &odd,
        ..options(u64::MAX)
    };
    assert!(matches!(
        ashq1(&model, &energies, &odd),
        Err(PolicyError::NotAshq1Type { .. })
    ));

    assert_eq!(importances(&model, &energies, true)[1], 2.0, "the first layer twice");
    assert_eq!(
        importances(&model, &energies, true)[6 + 5 + 5],
        6.0,
        "the last five by half more"
    );
    assert_eq!(
        importances(&model, &energies, false)[0],
        4.5,
        "the median of all where nothing is known"
    );
}

#[test]
fn rows_that_do_not_fit_count_with_their_fallback_type() {
    let mut model = model("llama");
    model.tensors.push(tensor("blk.0.ffn_down.weight", &[288, 256]));
    let mut energies = energies(&model);
    let all = ashq1(&model, &energies, &options(u64::MAX)).unwrap();
    let down = all.get("blk.0.ffn_down.weight").unwrap();
    assert_eq!(
        (down.to, down.instead_of),
        (TensorType::Q8_0, Some(TensorType::Q6_K)),
        "Q8_0 is reached by Q6_K"
    );
    energies.remove("blk.0.ffn_down.weight");
    assert!(ashq1(&model, &energies, &options(u64::MAX)).is_ok());
}
