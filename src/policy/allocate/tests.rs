//! From losses to a table and its exact length.

use super::*;
use crate::allocation::Effort;
use crate::allocation::Solver;
use crate::allocation::Status;
use crate::policy::GroupOptions;
use crate::policy::groups;

const SIZE: FileSize = FileSize {
    header: 4096,
    alignment: 32,
};

fn tensor(name: &str, dims: &[u64]) -> TensorFacts {
    TensorFacts {
        name: name.to_owned(),
        ty: TensorType::F16,
        dims: dims.to_vec(),
    }
}

fn model() -> ModelFacts {
    let mut tensors = vec![tensor("token_embd.weight", &[256, 1001])];
    for layer in 0..4 {
        tensors.push(tensor(&format!("blk.{layer}.attn_q.weight"), &[256, 256]));
        tensors.push(tensor(&format!("blk.{layer}.attn_norm.weight"), &[256]));
        tensors.push(tensor(&format!("blk.{layer}.ffn_down.weight"), &[288, 256]));
    }
    ModelFacts {
        architecture: "llama".to_owned(),
        layers: 4,
        heads: 8,
        heads_kv: 8,
        experts: 0,
        is_70b: false,
        file_type: None,
        tensors,
    }
}

const TYPES: &[TensorType] = &[
    TensorType::IQ2_XS,
    TensorType::Q4_0,
    TensorType::Q4_K,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::F16,
];

fn losses(groups: &[TensorGroup]) -> Losses {
    let mut losses = Losses::new();
    for (at, group) in groups.iter().enumerate() {
        for ty in TYPES {
            let loss = Loss {
                mean: (at + 1) as f64 * 2_f64.powf(-1.5 * ty.bpw()),
                variance: 1e-12,
                chunks: 4,
            };
            losses.insert((group.name.clone(), *ty), loss);
        }
    }
    losses
}

fn question<'a>(model: &'a ModelFacts, groups: &'a [TensorGroup], losses: &'a Losses) -> Question<'a> {
    Question {
        model,
        groups,
        losses,
        caution: 0.0,
        size: SIZE,
        keep: &[],
        floors: &[],
        ceilings: &[],
        has_imatrix: None,
        devices: &[],
    }
}

fn rule(pattern: &str, to: Target) -> Rule {
    Rule {
        pattern: Regex::new(pattern).unwrap(),
        to,
    }
}

#[test]
fn tables_are_as_long_as_the_solver_says() {
    let model = model();
    let groups = groups(&model, &BTreeMap::new(), &GroupOptions::default());
    let losses = losses(&groups);
    let prepared = prepare(&question(&model, &groups, &losses)).unwrap();
    let solver = Solver::new(prepared.problem());
    let (least, most) = prepared.problem().range(0).unwrap();
    for tenth in 0..=10 {
        let limit = least + (most - least) / 10 * tenth;
        let answer = solver.solve(&[limit], &Effort::default()).unwrap();
        assert_eq!(answer.status, Status::Optimal);
        let table = prepared.table(&answer);
        assert_eq!(SIZE.of(&table.choices), answer.uses[0]);
        assert!(answer.uses[0] <= limit);
        let names = table.choices.iter().map(|choice| choice.tensor.as_str());
        assert!(
            names.eq(model.tensors.iter().map(|tensor| tensor.name.as_str())),
            "the file's order"
        );
        let (mean, variance) = prepared.predicted(&answer);
        assert!((prepared.scale().loss(answer.loss) - mean).abs() < 1e-9);
        assert!((variance - 9e-12).abs() < 1e-20);
        assert_eq!(table.predicted_loss.unwrap().parse::<f64>().unwrap(), mean);
        for choice in &table.choices {
            assert_eq!(choice.instead_of, None);
            if choice.tensor.contains("norm") {
                assert!(matches!(choice.why, Why::NeverQuantized { .. }));
            } else {
                assert_ne!(choice.to, TensorType::IQ2_XS, "there is no imatrix");
            }
            if choice.tensor.contains("ffn_down") {
                assert!(choice.to.block_elements() <= 32, "rows of 288");
            }
        }
    }
}

#[test]
fn pins_floors_and_ceilings_are_kept_and_a_group_without_options_is_named() {
    let model = model();
    let groups = groups(&model, &BTreeMap::new(), &GroupOptions::default());
    let losses = losses(&groups);
    let keep = [rule("blk.0.attn_q", Target::Keep)];
    let floors = [rule("ffn_down", Target::Type(TensorType::Q8_0))];
    let ceilings = [
        rule("token_embd", Target::Type(TensorType::Q4_0)),
        rule("nothing", Target::Keep),
    ];
    let all = |name: &str| name.contains("attn");
    let strict = Question {
        keep: &keep,
        floors: &floors,
        ceilings: &ceilings,
        has_imatrix: Some(&all),
        ..question(&model, &groups, &losses)
    };
    let prepared = prepare(&strict).unwrap();
    let least = prepared.problem().range(0).unwrap().0;
    let answer = Solver::new(prepared.problem())
        .solve(&[least], &Effort::default())
        .unwrap();
    let table = prepared.table(&answer);
    let to = |name: &str| table.get(name).unwrap().to;
    assert_eq!(to("blk.0.attn_q.weight"), TensorType::F16);
    assert_eq!(to("blk.1.attn_q.weight"), TensorType::IQ2_XS, "there are data for it");
    assert_eq!(to("blk.1.ffn_down.weight"), TensorType::Q8_0);
    assert!(matches!(to("token_embd.weight"), TensorType::Q4_0 | TensorType::Q4_K));
    assert!(matches!(
        &table.warnings[..],
        [Warning::RuleMatchesNothing { index: 1, .. }]
    ));

    let floors = [rule("token_embd", Target::Type(TensorType::F32))];
    let empty = Question {
        floors: &floors,
        ..strict
    };
    let error = prepare(&empty).unwrap_err();
    assert!(
        matches!(&error, PolicyError::NoOption { group, tried } if group == "token_embd.weight" && tried.len() == 6),
        "{error}"
    );
    let mut bad = losses.clone();
    bad.insert(
        ("token_embd.weight".to_owned(), TensorType::F16),
        Loss {
            mean: f64::NAN,
            variance: 0.0,
            chunks: 0,
        },
    );
    assert!(matches!(
        prepare(&question(&model, &groups, &bad)),
        Err(PolicyError::BadLoss { .. })
    ));
}

#[test]
fn devices_are_capacities_of_their_own_and_caution_counts_what_is_uncertain() {
    let model = model();
    let groups = groups(&model, &BTreeMap::new(), &GroupOptions::default());
    let mut losses = losses(&groups);
    let device = Device {
        name: "gpu".to_owned(),
        constant: 1000,
        holds: vec![Regex::new(r"^blk\.[01]\.").unwrap()],
    };
    let with = Question {
        devices: std::slice::from_ref(&device),
        ..question(&model, &groups, &losses)
    };
    let prepared = prepare(&with).unwrap();
    let (file, gpu) = (
        prepared.problem().range(0).unwrap(),
        prepared.problem().range(1).unwrap(),
    );
    let limits = [file.1, gpu.0 + (gpu.1 - gpu.0) / 3];
    let answer = Solver::new(prepared.problem())
        .solve(&limits, &Effort::default())
        .unwrap();
    assert_eq!(answer.status, Status::Optimal);
    let held = prepared
        .table(&answer)
        .choices
        .into_iter()
        .filter(|choice| device.holds[0].is_match(&choice.tensor));
    assert_eq!(
        held.map(|choice| SIZE.padded(choice.bytes)).sum::<u64>() + 1000,
        answer.uses[1]
    );
    assert!(answer.uses[1] <= limits[1] && answer.uses[0] > file.0);

    // A type that looks good, but might not be.
    let name = "blk.0.attn_q.weight".to_owned();
    losses.insert(
        (name.clone(), TensorType::Q4_K),
        Loss {
            mean: 0.0,
            variance: 1.0,
            chunks: 1,
        },
    );
    let chosen = |caution| {
        let question = Question {
            caution,
            ..question(&model, &groups, &losses)
        };
        let prepared = prepare(&question).unwrap();
        let limit = prepared.problem().range(0).unwrap().1;
        let answer = Solver::new(prepared.problem())
            .solve(&[limit], &Effort::default())
            .unwrap();
        prepared.table(&answer).get(&name).unwrap().to
    };
    assert_eq!((chosen(0.0), chosen(1.0)), (TensorType::Q4_K, TensorType::F16));
}
