//! The memory of the KV cache, computed from a model's header.

use crate::gguf::Metadata;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Role;
use crate::policy::role::block_index;
use crate::tensor_type::TensorType;

/// llama.cpp allocates the cache for a multiple of this number of tokens.
const STEP: u64 = 256;

/// What of a model's header decides on the cache, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheShape {
    /// For each layer the values of a token's keys, and of its values.
    layers: Vec<(u64, u64)>,
}

impl CacheShape {
    /// Reads what decides on the cache. Numbers may be one for all layers or one for each.
    ///
    /// # Errors
    /// [`PolicyError::MissingKey`] and [`PolicyError::BadValue`] where the header does not say it.
    pub fn from_metadata(model: &ModelFacts, metadata: &Metadata) -> Result<Self, PolicyError> {
        let key = |name: &str| format!("{}.{name}", model.architecture);
        let heads = per_layer(metadata, &key("attention.head_count"), model.layers)?;
        let heads_kv = per_layer(metadata, &key("attention.head_count_kv"), model.layers)?.or_else(|| heads.clone());
        let heads_kv =
            heads_kv.ok_or_else(|| missing(&key("attention.head_count"), "the number of attention heads"))?;
        let width = metadata.get_u32(&key("embedding_length"));
        // Where the header does not say how long a head is, heads share the width of the model.
        let length = |name: &str| -> Result<Vec<u64>, PolicyError> {
            if let Some(lengths) = per_layer(metadata, &key(name), model.layers)? {
                return Ok(lengths);
            }
            let (Some(width), Some(heads)) = (width, &heads) else {
                return Err(missing(&key(name), "the length of a head"));
            };
            Ok(heads
                .iter()
                .map(|heads| u64::from(width).checked_div(*heads).unwrap_or(0))
                .collect())
        };
        let (keys, values) = (length("attention.key_length")?, length("attention.value_length")?);
        let layers = heads_kv.iter().zip(keys.iter().zip(&values));
        Ok(Self {
            layers: layers
                .map(|(heads, (key, value))| (heads.saturating_mul(*key), heads.saturating_mul(*value)))
                .collect(),
        })
    }

    /// Returns the bytes of a layer's cache for a context of this many tokens, keys and values of these types. Every layer is
    /// taken to see the whole context: what a sliding window saves is not counted on.
    ///
    /// # Errors
    /// [`PolicyError::BadCache`] if keys or values are not a multiple of the block size of their type.
    pub fn bytes(&self, layer: u32, context: u64, cache: TensorType) -> Result<u64, PolicyError> {
        let Some((keys, values)) = self.layers.get(layer as usize) else {
            return Ok(0);
        };
        let tokens = context.checked_next_multiple_of(STEP).unwrap_or(u64::MAX);
        let row = |values: u64| {
            cache.row_bytes(values).ok_or(PolicyError::BadCache {
                ty: cache,
                layer,
                values,
            })
        };
        Ok(tokens.saturating_mul(row(*keys)?.saturating_add(row(*values)?)))
    }
}

/// Returns the layer whose cache lies where a tensor lies: of those that make keys or values.
pub fn cached_layer(name: &str) -> Option<u32> {
    let makes = matches!(
        Role::of(name),
        Role::Key | Role::Value | Role::QueryKeyValue | Role::KeyValue
    ) || [".attn_kv_a_mqa.", ".attn_k_b.", ".attn_v_b."]
        .iter()
        .any(|part| name.contains(part));
    u32::try_from(block_index(name)?).ok().filter(|_| makes)
}

/// Reads one number for all layers, or one for each.
fn per_layer(metadata: &Metadata, key: &str, layers: u32) -> Result<Option<Vec<u64>>, PolicyError> {
    let bad = |found: String| PolicyError::BadValue {
        key: key.to_owned(),
        expected: format!("a number that is not negative, or {layers} of them, one per layer"),
        found,
    };
    if !metadata.contains(key) {
        return Ok(None);
    }
    let Some(len) = metadata.get_array_len(key) else {
        let number = metadata.get_u32(key).ok_or_else(|| bad("something else".to_owned()))?;
        return Ok(Some(vec![u64::from(number); layers as usize]));
    };
    let numbers = metadata.get_i64_array(key).unwrap_or_default();
    let numbers: Option<Vec<u64>> = numbers.iter().map(|number| u64::try_from(*number).ok()).collect();
    numbers
        .filter(|numbers| numbers.len() == layers as usize)
        .map(Some)
        .ok_or_else(|| bad(format!("an array of {len}")))
}

fn missing(key: &str, expected: &'static str) -> PolicyError {
    PolicyError::MissingKey {
        key: key.to_owned(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;
    use crate::gguf::ValueType;

    fn shape(pairs: &[(&str, Value)]) -> Result<CacheShape, PolicyError> {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.set(key, value).unwrap();
        }
        let model = ModelFacts {
            architecture: "x".to_owned(),
            layers: 2,
            heads: 8,
            heads_kv: 8,
            experts: 0,
            is_70b: false,
            file_type: None,
            tensors: Vec::new(),
        };
        CacheShape::from_metadata(&model, &metadata)
    }

    #[test]
    fn keys_and_values_are_counted_layer_by_layer() {
        let heads = ("x.attention.head_count", Value::U32(32));
        let width = ("x.embedding_length", Value::U32(4096));
        let plain = shape(&[heads.clone(), width.clone()]).unwrap();
        // 8192 tokens of 4096 keys and 4096 values, two bytes each.
        assert_eq!(plain.bytes(0, 8192, TensorType::F16).unwrap(), 8192 * 8192 * 2);
        assert_eq!(
            plain.bytes(1, 8000, TensorType::F16).unwrap(),
            8192 * 8192 * 2,
            "in steps of 256"
        );
        assert_eq!(plain.bytes(0, 256, TensorType::Q8_0).unwrap(), 256 * 8192 / 32 * 34);
        assert_eq!(
            plain.bytes(2, 256, TensorType::F16).unwrap(),
            0,
            "there is no such layer"
        );

        let each = |numbers: [i32; 2]| Value::Array(ValueType::I32, numbers.map(Value::I32).into());
        let hybrid = shape(&[
            heads.clone(),
            ("x.attention.head_count_kv", each([8, 0])),
            ("x.attention.key_length", Value::U32(128)),
            ("x.attention.value_length", Value::U32(64)),
        ])
        .unwrap();
        assert_eq!(hybrid.bytes(0, 256, TensorType::F32).unwrap(), 256 * (1024 + 512) * 4);
        assert_eq!(hybrid.bytes(1, 256, TensorType::F32).unwrap(), 0);

        let odd = shape(&[
            ("x.attention.head_count_kv", Value::U32(1)),
            ("x.attention.key_length", Value::U32(20)),
            ("x.attention.value_length", Value::U32(32)),
        ])
        .unwrap();
        let error = odd.bytes(0, 256, TensorType::Q8_0).unwrap_err();
        assert!(error.to_string().contains("20"), "{error}");
        assert!(
            shape(&[
                ("x.attention.head_count_kv", each([8, -1])),
                heads.clone(),
                width.clone()
            ])
            .is_err()
        );
        assert!(shape(&[]).unwrap_err().to_string().contains("x.attention.head_count"));
        assert!(
            shape(&[heads])
                .unwrap_err()
                .to_string()
                .contains("x.attention.key_length")
        );
    }

    #[test]
    fn the_cache_is_on_the_device_of_its_keys_and_values() {
        assert_eq!(cached_layer("blk.3.attn_k.weight"), Some(3));
        assert_eq!(cached_layer("blk.3.attn_qkv.weight"), Some(3));
        assert_eq!(cached_layer("blk.3.attn_kv_a_mqa.weight"), Some(3));
        assert_eq!(cached_layer("blk.3.attn_q.weight"), None);
        assert_eq!(cached_layer("blk.3.attn_k_norm.weight"), None);
        assert_eq!(cached_layer("output.weight"), None);
    }
}
