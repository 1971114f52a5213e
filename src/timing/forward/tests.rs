use super::*;

fn tensor(name: &str, dims: &[u64]) -> TensorFacts {
    TensorFacts {
        name: name.to_owned(),
        ty: if dims.len() > 1 {
            TensorType::F16
        } else {
            TensorType::F32
        },
        dims: dims.to_vec(),
    }
}

/// A model of two layers; the second one has four experts, of which two are used.
fn model(output: bool) -> Forward {
    let mut tensors = vec![
        tensor("token_embd.weight", &[8, 100]),
        tensor("blk.0.attn_norm.weight", &[8]),
        tensor("blk.0.attn_q.weight", &[8, 8]),
        tensor("blk.0.ffn_down.weight", &[32, 8]),
        tensor("blk.1.attn_q.weight", &[8, 8]),
        tensor("blk.1.ffn_down_exps.weight", &[16, 8, 4]),
    ];
    if output {
        tensors.push(tensor("output.weight", &[8, 100]));
    }
    let facts = ModelFacts {
        architecture: "llama".to_owned(),
        layers: 2,
        heads: 1,
        heads_kv: 1,
        experts: 4,
        is_70b: false,
        file_type: None,
        tensors,
    };
    let mut metadata = Metadata::new();
    for (key, value) in [("llama.expert_used_count", 2), ("llama.embedding_length", 8)] {
        metadata.set(key, &crate::gguf::Value::U32(value)).unwrap();
    }
    Forward::new(&facts, &metadata)
}

fn amount(amounts: &Amounts, operation: Operation) -> f64 {
    let found = amounts.iter().find(|(known, _)| *known == operation);
    found.map_or(0.0, |(_, amount)| amount)
}

#[test]
fn every_token_is_multiplied_with_the_experts_that_are_used() {
    let chunk = model(true).chunk(None, 64, Purpose::Score);
    let layers = 8.0 * 8.0 + 32.0 * 8.0 + 8.0 * 8.0 + 2.0 * 16.0 * 8.0;
    // Keys and values of two layers, and the second half of the chunk is scored.
    let attention = 2.0 * 8.0 * 2.0 * 64.0;
    let expected = 64.0 * (layers + attention) + 31.0 * 800.0;
    assert_eq!(amount(&chunk, Operation::Multiply(TensorType::F16)), expected);
    assert_eq!(amount(&chunk, Operation::Score), 31.0 * 100.0);
    assert_eq!(amount(&chunk, Operation::Encode), 0.0);
}

#[test]
fn an_embedding_that_is_also_the_output_is_multiplied() {
    let multiplied = |model: &Forward| {
        amount(
            &model.chunk(None, 64, Purpose::Score),
            Operation::Multiply(TensorType::F16),
        )
    };
    assert_eq!(multiplied(&model(true)), multiplied(&model(false)));
    let collected = model(false).chunk(None, 64, Purpose::Collect);
    assert_eq!(amount(&collected, Operation::Score), 0.0, "an imatrix needs no logits");
    assert_eq!(
        amount(&collected, Operation::Collect),
        64.0 * (8.0 + 32.0 + 8.0 + 2.0 * 16.0)
    );
}

#[test]
fn variants_share_what_is_before_their_first_difference() {
    let model = model(true);
    let variant = |at: usize| BTreeMap::from([(at, TensorType::Q4_K)]);
    // Tensors 2, 4 and 6 are the first matrix of each layer, and the output.
    let variants = [variant(2), variant(4), variant(6)];
    let shares = model.shares(&variants);
    assert_eq!(shares[0], 1.0);
    assert!(shares[0] > shares[1] && shares[1] > shares[2], "{shares:?}");
    assert_eq!(model.shares([&variant(6)]), [1.0], "one alone shares nothing");
    assert_eq!(model.shares([&BTreeMap::new()]), [1.0]);
    let embedding = model.shares([&variant(0), &variant(6), &variant(4)]);
    assert_eq!(embedding[0], 1.0, "everything follows from the embedding");
}

#[test]
fn a_part_of_a_chunk_counts_less_but_its_logits_are_compared() {
    let model = model(true);
    assert!((model.weight(1.0, 64) - 1.0).abs() < 1e-12);
    let none = model.weight(0.0, 64);
    assert!(none > 0.0 && none < 1.0, "{none}");
}

#[test]
fn types_of_a_candidate_change_what_is_loaded_and_multiplied() {
    let model = model(true);
    let types = vec![TensorType::Q8_0; 7];
    assert!(model.bytes(Some(&types)) < model.bytes(None));
    let chunk = model.chunk(Some(&types), 64, Purpose::Score);
    assert!(amount(&chunk, Operation::Multiply(TensorType::Q8_0)) > 0.0);
    assert_eq!(model.bytes(Some(&types[..3])), model.bytes(None), "of another model");
}
