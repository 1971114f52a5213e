//! What the rules must know of a model.

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

/// A metadata value, as far as the rules look at values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaValue {
    /// An integer that is not negative.
    Number(u64),
    /// An array of such integers.
    Numbers(Vec<u64>),
    /// A string.
    Text(String),
    /// Anything else, named for error messages ("a float").
    Other(&'static str),
}

impl MetaValue {
    fn describe(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Numbers(numbers) => format!("an array of {} integers", numbers.len()),
            Self::Text(text) => format!("{text:?}"),
            Self::Other(what) => (*what).to_owned(),
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
    /// Reads the facts from a model's metadata, given as a look-up by key.
    ///
    /// # Errors
    /// [`PolicyError::MissingKey`] and [`PolicyError::BadValue`] where llama.cpp could not load the file either.
    pub fn from_metadata(
        get: &dyn Fn(&str) -> Option<MetaValue>,
        tensors: Vec<TensorFacts>,
    ) -> Result<Self, PolicyError> {
        let meta = Meta { get };
        let architecture = match get("general.architecture") {
            Some(MetaValue::Text(text)) => text,
            Some(other) => return Err(bad("general.architecture", "a string", &other)),
            None => return Err(missing("general.architecture", "a string")),
        };
        let file_type = meta.number("general.file_type")?;
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
        let layers = meta
            .number(&block_count)?
            .ok_or_else(|| missing(&block_count, "the number of layers"))?;
        let within = |layers: u32| (1..=MAX_LAYERS).contains(&layers);
        if !within(layers) {
            return Err(bad(
                &block_count,
                "1 to 512 layers",
                &MetaValue::Number(u64::from(layers)),
            ));
        }
        let nextn_key = key("nextn_predict_layers");
        let nextn = meta.number(&nextn_key)?.unwrap_or(0);
        let trunk = layers.checked_sub(nextn).ok_or_else(|| {
            bad(
                &nextn_key,
                &format!("at most the {layers} layers there are"),
                &MetaValue::Number(u64::from(nextn)),
            )
        })?;
        let experts = meta.number(&key("expert_count"))?.unwrap_or(0);
        let heads = meta.first_of(&key("attention.head_count"), layers)?.unwrap_or(0);
        let heads_kv = meta.first_of(&key("attention.head_count_kv"), layers)?.unwrap_or(heads);

        // Two architectures run more layers than the file counts.
        let counted = match facts.architecture.as_str() {
            // The same layers several times over.
            "nanbeige" => {
                let loops_key = key("num_loops");
                let loops = meta.number(&loops_key)?.unwrap_or(1);
                let counted = if loops > 1 { trunk.saturating_mul(loops) } else { layers };
                if loops == 0 || !within(counted) {
                    return Err(bad(
                        &loops_key,
                        "1 to 512 layers in all",
                        &MetaValue::Number(u64::from(loops)),
                    ));
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

/// Look-ups with the conversions that llama.cpp makes.
struct Meta<'a> {
    get: &'a dyn Fn(&str) -> Option<MetaValue>,
}

impl Meta<'_> {
    fn number(&self, key: &str) -> Result<Option<u32>, PolicyError> {
        match (self.get)(key) {
            None => Ok(None),
            Some(MetaValue::Number(number)) => u32::try_from(number)
                .map(Some)
                .map_err(|_| bad(key, "a 32-bit integer", &MetaValue::Number(number))),
            Some(other) => Err(bad(key, "an integer", &other)),
        }
    }

    /// Returns the value of the first layer, of one number for all or one per layer.
    fn first_of(&self, key: &str, layers: u32) -> Result<Option<u32>, PolicyError> {
        match (self.get)(key) {
            Some(MetaValue::Numbers(numbers)) => {
                let first = numbers.first().and_then(|number| u32::try_from(*number).ok());
                match first {
                    Some(first) if numbers.len() == layers as usize => Ok(Some(first)),
                    _ => Err(bad(
                        key,
                        &format!("{layers} integers, one per layer"),
                        &MetaValue::Numbers(numbers),
                    )),
                }
            }
            _ => self.number(key),
        }
    }
}

fn missing(key: &str, expected: &'static str) -> PolicyError {
    PolicyError::MissingKey {
        key: key.to_owned(),
        expected,
    }
}

fn bad(key: &str, expected: &str, found: &MetaValue) -> PolicyError {
    PolicyError::BadValue {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.describe(),
    }
}
