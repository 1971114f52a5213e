//! The role of a tensor in a model, as far as the mixes distinguish roles, and the order in which they are counted.

use serde::Deserialize;
use serde::Serialize;

/// The role of a tensor, from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The output layer.
    Output,
    /// The token embedding, which is the output layer too where the model has no other.
    Embedding,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Queries, keys and values in one matrix.
    QueryKeyValue,
    /// The second half of compressed keys and values.
    KeyValue,
    /// The matrix behind attention.
    AttentionOutput,
    /// Feed-forward, in.
    Up,
    /// Feed-forward, gate.
    Gate,
    /// Feed-forward, out.
    Down,
    /// Anything else.
    Other,
}

/// Parts of names and their roles. The first one that is found applies.
const PARTS: &[(&str, Role)] = &[
    ("attn_qkv.weight", Role::QueryKeyValue),
    ("attn_kv_b.weight", Role::KeyValue),
    ("attn_v.weight", Role::Value),
    ("attn_k.weight", Role::Key),
    ("attn_q.weight", Role::Query),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::Up),
    ("ffn_gate", Role::Gate),
    ("ffn_down", Role::Down),
];

/// The large table of Gemma 3n, an embedding beside the embedding.
pub(crate) const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

impl Role {
    /// Returns the part that a tensor of this name plays.
    pub fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | PER_LAYER_EMBEDDING => Self::Embedding,
            _ => PARTS
                .iter()
                .find(|(part, _)| name.contains(part))
                .map_or(Self::Other, |(_, role)| *role),
        }
    }

    /// Returns true for the matrices that hold values, which suffer most from quantization.
    pub fn holds_values(self) -> bool {
        matches!(self, Self::Value | Self::QueryKeyValue | Self::KeyValue)
    }
}

/// Returns N of a name that begins with `blk.N`, read as C's `scanf` reads a number.
pub(crate) fn block_index(name: &str) -> Option<i64> {
    let number = name
        .strip_prefix("blk.")?
        .trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (sign, digits) = match number.as_bytes().first() {
        Some(b'-') => (-1, &number[1..]),
        Some(b'+') => (1, &number[1..]),
        _ => (1, number),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    (end > 0).then(|| {
        sign * digits[..end]
            .parse::<i64>()
            .unwrap_or(i64::from(i32::MAX))
            .min(i64::from(i32::MAX))
    })
}

/// Returns the indices of names in the order in which the mixes count: what is outside of blocks first, then block by
/// block, by name within.
pub(crate) fn counting_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let mut order: Vec<_> = names
        .enumerate()
        .map(|(index, name)| (block_index(name).unwrap_or(-1), name, index))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_from_names() {
        assert_eq!(Role::of("output.weight"), Role::Output);
        assert_eq!(Role::of("output_norm.weight"), Role::Other);
        assert_eq!(Role::of("per_layer_token_embd.weight"), Role::Embedding);
        assert_eq!(Role::of("blk.3.attn_v.weight"), Role::Value);
        assert_eq!(Role::of("v.blk.3.attn_k.weight"), Role::Key);
        assert_eq!(Role::of("blk.3.attn_v.bias"), Role::Other);
        assert_eq!(Role::of("blk.3.attn_kv_b.weight"), Role::KeyValue);
        assert_eq!(Role::of("blk.3.ffn_down_exps.weight"), Role::Down);
        assert_eq!(Role::of("blk.3.ffn_gate_up_exps.weight"), Role::Gate);
        assert_eq!(Role::of("blk.3.ssm_out.weight"), Role::Other);
    }

    #[test]
    fn blocks_are_counted_as_numbers_and_the_rest_comes_first() {
        let names = [
            "blk.10.a",
            "token_embd.weight",
            "blk.2.b",
            "blk.2.a",
            "output.weight",
            "v.blk.1.a",
        ];
        assert_eq!(counting_order(names.into_iter()), [4, 1, 5, 3, 2, 0]);
        assert_eq!(block_index("blk.7.x"), Some(7));
        assert_eq!(block_index("blk.-2.x"), Some(-2));
        assert_eq!(block_index("blk.99999999999999999999.x"), Some(i64::from(i32::MAX)));
        assert_eq!(block_index("blk..x"), None);
        assert_eq!(block_index("a.blk.1.x"), None);
    }
}
