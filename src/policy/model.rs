//! What the rules must know of a model.

use crate::gguf::Metadata;
use crate::gguf::TensorInfo;
use crate::policy::PolicyError;
use crate::tensor_type::TensorType;

/// A tensor as the source file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// Its dimensions, fastest first; trailing ones may be there or not.
    pub dims: Vec<u64>,
}

impl TensorFacts {
    /// Returns the length of a row.
    pub fn columns(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Returns the dimension of this index, one where the file names none.
    pub(crate) fn dim(&self, index: usize) -> u64 {
        self.dims.get(index).copied().unwrap_or(1)
    }
}

impl From<&TensorInfo> for TensorFacts {
    fn from(info: &TensorInfo) -> Self {
        Self {
            name: info.name.clone(),
            ty: info.ty,
            dims: info.dims.clone(),
        }
    }
}

/// What the rules must know of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`, as `llama`.
    pub architecture: String,
    /// All layers that llama.cpp counts, those for multi-token prediction included.
    pub layers: u32,
    /// Attention heads of the first layer, which is the one that llama.cpp takes for all.
    pub heads: u32,
    /// Key and value heads of the first layer.
    pub heads_kv: u32,
    /// Experts; 0 in a dense model.
    pub experts: u32,
    /// True if llama.cpp calls the model `70B`: eight heads share their values there, and the mixes spend more on those.
    pub is_70b: bool,
    /// `general.file_type`, if there is one.
    pub file_type: Option<u32>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorFacts>,
}

/// Most layers that llama.cpp takes; a bound on numbers read from files.
const MAX_LAYERS: u32 = 512;

impl ModelFacts {
    /// Reads the facts from a model's metadata.
    ///
    /// # Errors
    /// [`PolicyError::MissingKey`] and [`PolicyError::BadValue`] where llama.cpp could not load the file either.
    pub fn from_metadata(metadata: &Metadata, tensors: Vec<TensorFacts>) -> Result<Self, PolicyError> {
        let architecture = match metadata.get_str("general.architecture") {
            Some(text) => text.to_owned(),
            None if metadata.contains("general.architecture") => {
                return Err(bad(metadata, "general.architecture", "a string"));
            }
            None => return Err(missing("general.architecture", "a string")),
        };
        let file_type = number(metadata, "general.file_type")?;
        let mut facts = Self {
            architecture,
            layers: 0,
            heads: 0,
            heads_kv: 0,
            experts: 0,
            is_70b: false,
            file_type,
            tensors,
        };
        // Projectors are no language models: llama.cpp reads none of their numbers.
        if facts.architecture == "clip" {
            return Ok(facts);
        }

        let key = |name: &str| format!("{}.{name}", facts.architecture);
        let block_count = key("block_count");
        let layers = number(metadata, &block_count)?.ok_or_else(|| missing(&block_count, "the number of layers"))?;
        let within = |layers: u32| (1..=MAX_LAYERS).contains(&layers);
        if !within(layers) {
            return Err(bad(metadata, &block_count, "1 to 512 layers"));
        }
        let nextn_key = key("nextn_predict_layers");
        let nextn = number(metadata, &nextn_key)?.unwrap_or(0);
        let trunk = layers
            .checked_sub(nextn)
            .ok_or_else(|| bad(metadata, &nextn_key, &format!("at most the {layers} layers there are")))?;
        let experts = number(metadata, &key("expert_count"))?.unwrap_or(0);
        let heads = first_of(metadata, &key("attention.head_count"), layers)?.unwrap_or(0);
        let heads_kv = first_of(metadata, &key("attention.head_count_kv"), layers)?.unwrap_or(heads);

        // Two architectures run more layers than the file counts.
        let counted = match facts.architecture.as_str() {
            // The same layers several times over.
            "nanbeige" => {
                let loops_key = key("num_loops");
                let loops = number(metadata, &loops_key)?.unwrap_or(1);
                let counted = if loops > 1 { trunk.saturating_mul(loops) } else { layers };
                if loops == 0 || !within(counted) {
                    return Err(bad(metadata, &loops_key, "1 to 512 layers in all"));
                }
                counted
            }
            // One layer behind the others routes between adapters.
            "graniteswitch" => trunk + 1,
            _ => layers,
        };
        facts.is_70b = match facts.architecture.as_str() {
            "llama" | "llama-embed" => trunk == 80 && experts != 8 && heads != heads_kv,
            "qwen2" | "deci" | "olmo" => trunk == 80,
            "jais2" => trunk == 68,
            _ => false,
        };
        facts.layers = counted;
        facts.heads = heads;
        facts.heads_kv = heads_kv;
        facts.experts = experts;
        Ok(facts)
    }

    /// Returns true if the output layer is a tensor of its own, not the token embedding used twice.
    pub fn has_output(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == "output.weight")
    }

    /// Returns how many heads share a key and value head, or none for a model without layers.
    pub fn heads_per_kv(&self) -> Option<u32> {
        (self.layers > 0).then(|| self.heads.checked_div(self.heads_kv).unwrap_or(0))
    }
}

fn number(metadata: &Metadata, key: &str) -> Result<Option<u32>, PolicyError> {
    match metadata.get_u32(key) {
        None if metadata.contains(key) => Err(bad(metadata, key, "an integer of 32 bits")),
        number => Ok(number),
    }
}

/// Returns the value of the first layer, of one number for all or one per layer.
fn first_of(metadata: &Metadata, key: &str, layers: u32) -> Result<Option<u32>, PolicyError> {
    let Some(len) = metadata.get_array_len(key) else {
        return number(metadata, key);
    };
    let wrong = || bad(metadata, key, &format!("{layers} integers, one per layer"));
    if len != u64::from(layers) {
        return Err(wrong());
    }
    let first = metadata
        .get_i64_array(key)
        .and_then(|numbers| u32::try_from(*numbers.first()?).ok());
    first.map(Some).ok_or_else(wrong)
}

fn missing(key: &str, expected: &'static str) -> PolicyError {
    PolicyError::MissingKey {
        key: key.to_owned(),
        expected,
    }
}

fn bad(metadata: &Metadata, key: &str, expected: &str) -> PolicyError {
    let found = match metadata.get(key) {
        None => "nothing".to_owned(),
        Some(entry) => match (metadata.get_i64(key), entry.array()) {
            (Some(number), _) => number.to_string(),
            (None, Some((ty, len))) => format!("an array of {len} {ty}"),
            (None, None) => format!("a value of type {}", entry.value_type()),
        },
    };
    PolicyError::BadValue {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;
    use crate::gguf::ValueType;

    fn metadata(pairs: &[(&str, Value)]) -> Metadata {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.set(key, value).unwrap();
        }
        metadata
    }

    fn text(text: &str) -> Value {
        Value::String(text.into())
    }

    fn facts(pairs: &[(&str, Value)]) -> Result<ModelFacts, PolicyError> {
        ModelFacts::from_metadata(&metadata(pairs), Vec::new())
    }

    #[test]
    fn llama_70b_is_recognized_by_layers_and_heads() {
        let llama = |layers, kv, experts| {
            facts(&[
                ("general.architecture", text("llama")),
                ("llama.block_count", Value::U32(layers)),
                ("llama.attention.head_count", Value::U32(64)),
                ("llama.attention.head_count_kv", Value::U32(kv)),
                ("llama.expert_count", Value::U32(experts)),
            ])
            .unwrap()
        };
        assert!(llama(80, 8, 0).is_70b);
        assert!(!llama(80, 64, 0).is_70b, "the 65B has a value head per head");
        assert!(!llama(80, 8, 8).is_70b);
        assert!(!llama(79, 8, 0).is_70b);
        assert_eq!(llama(80, 8, 0).heads_per_kv(), Some(8));
    }

    #[test]
    fn numbers_per_layer_count_for_the_first_one_and_keys_default_to_queries() {
        let per_layer = Value::Array(ValueType::I32, vec![Value::I32(12), Value::I32(4)]);
        let base = [
            ("general.architecture", text("deci")),
            ("deci.block_count", Value::U32(2)),
        ];
        let with = |value| facts(&[base[0].clone(), base[1].clone(), ("deci.attention.head_count", value)]);
        let read = with(per_layer).unwrap();
        assert_eq!((read.heads, read.heads_kv, read.layers, read.experts), (12, 12, 2, 0));
        let error = with(Value::Array(ValueType::I32, vec![Value::I32(12)])).unwrap_err();
        assert!(
            matches!(&error, PolicyError::BadValue { key, .. } if key == "deci.attention.head_count"),
            "{error}"
        );
        assert!(with(Value::Array(ValueType::I32, vec![Value::I32(-1), Value::I32(1)])).is_err());
        assert!(with(Value::F32(8.0)).is_err());
    }

    #[test]
    fn layers_are_counted_as_the_engine_runs_them() {
        let model = |arch: &str, key: &str, number| {
            let count = format!("{arch}.block_count");
            let other = format!("{arch}.{key}");
            facts(&[
                ("general.architecture", text(arch)),
                (count.as_str(), Value::U32(10)),
                (other.as_str(), Value::U32(number)),
            ])
        };
        assert_eq!(
            model("qwen3moe", "nextn_predict_layers", 2).unwrap().layers,
            10,
            "prediction layers count"
        );
        assert_eq!(model("graniteswitch", "nextn_predict_layers", 0).unwrap().layers, 11);
        assert_eq!(model("nanbeige", "num_loops", 3).unwrap().layers, 30);
        assert!(model("nanbeige", "num_loops", 52).is_err());
        assert!(model("llama", "nextn_predict_layers", 11).is_err());
    }

    #[test]
    fn missing_and_absurd_keys_are_named() {
        let missing = facts(&[("general.architecture", text("llama"))]).unwrap_err();
        assert!(missing.to_string().contains("llama.block_count"), "{missing}");
        let absurd = facts(&[
            ("general.architecture", text("llama")),
            ("llama.block_count", Value::U32(u32::MAX)),
        ]);
        assert!(absurd.unwrap_err().to_string().contains("4294967295"));
        assert!(facts(&[]).is_err());
        assert!(facts(&[("general.architecture", Value::U32(1))]).is_err());
        let clip = facts(&[("general.architecture", text("clip"))]).unwrap();
        assert_eq!(
            (clip.layers, clip.heads_per_kv()),
            (0, None),
            "a projector has no layers of its own"
        );
    }
}
