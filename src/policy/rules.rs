//! What each mix gives to each part of a model: the rules of llama.cpp's `llama-quant.cpp`, one function per part.
//!
//! Some rules depend on how many tensors of a kind came before, so tensors must be asked for in
//! [`counting_order`](crate::policy::role::counting_order), each once.

use crate::mix::Mix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Role;
use crate::policy::TensorFacts;
use crate::policy::role::block_index;
use crate::tensor_type::TensorType;

use Mix as M;
use TensorType as T;

/// A place among the layers.
#[derive(Clone, Copy)]
struct Place {
    layer: u32,
    layers: u32,
}

impl Place {
    fn in_first(self, part: u32) -> bool {
        self.layer < self.layers / part
    }

    /// The first and the last eighth, and every third layer between.
    fn deserves_more(self) -> bool {
        let eighth = self.layers / 8;
        self.in_first(8) || !self.before_last_eighth() || (self.layer - eighth) % 3 == 2
    }

    fn before_last_eighth(self) -> bool {
        u64::from(self.layer) < 7 * u64::from(self.layers) / 8
    }
}

/// A mix at work on one model.
pub(crate) struct Rules<'a> {
    model: &'a ModelFacts,
    mix: Mix,
    base: TensorType,
    output_type: Option<TensorType>,
    have_imatrix: bool,
    tied: bool,
    falcon: bool,
    value_tensors: u32,
    values: u32,
    downs: u32,
    gates: u32,
    ups: u32,
}

impl<'a> Rules<'a> {
    /// Begins to count. `base` is the mix's own type; `output_type` is the user's choice for the output layer.
    pub(crate) fn new(
        model: &'a ModelFacts,
        mix: Mix,
        base: TensorType,
        output_type: Option<TensorType>,
        have_imatrix: bool,
    ) -> Self {
        let value_tensors = model
            .tensors
            .iter()
            .filter(|tensor| Role::of(&tensor.name).holds_values())
            .count();
        Self {
            model,
            mix,
            base,
            output_type,
            have_imatrix,
            tied: !model.has_output(),
            falcon: model.architecture == "falcon",
            value_tensors: u32::try_from(value_tensors).unwrap_or(u32::MAX),
            values: 0,
            downs: 0,
            gates: 0,
            ups: 0,
        }
    }

    /// Returns the type that the mix gives to a quantizable tensor.
    pub(crate) fn choose(&mut self, tensor: &TensorFacts, role: Role) -> Result<TensorType, PolicyError> {
        if let Some(ty) = self.glm5_next(&tensor.name) {
            return Ok(ty);
        }
        if role == Role::Output || (self.tied && role == Role::Embedding) {
            return Ok(self.output(tensor.columns()));
        }
        if self.mix == M::MXFP4_MOE {
            return Ok(self.mxfp4_moe(tensor, role));
        }
        if role == Role::Embedding {
            return Ok(self.embedding());
        }
        if matches!(
            self.mix,
            M::IQ1_S | M::IQ1_M | M::IQ2_XXS | M::IQ2_XS | M::IQ2_S | M::IQ2_M
        ) {
            return self.below_three_bits(tensor, role);
        }
        match role {
            Role::Value | Role::QueryKeyValue | Role::KeyValue => self.values(tensor),
            Role::Key => Ok(if self.eight_experts() {
                T::Q8_0
            } else {
                self.queries_and_keys()
            }),
            Role::Query => Ok(self.queries_and_keys()),
            Role::AttentionOutput => Ok(self.attention_output()),
            Role::Down => {
                let count = advance(&mut self.downs);
                let place = self.place(count, tensor)?;
                Ok(self.down(place))
            }
            Role::Gate => {
                let count = advance(&mut self.gates);
                let place = self.place(count, tensor)?;
                Ok(self.up_or_gate(place))
            }
            Role::Up => {
                let count = advance(&mut self.ups);
                let place = self.place(count, tensor)?;
                Ok(self.up_or_gate(place))
            }
            Role::Output | Role::Embedding | Role::Other => Ok(self.base),
        }
    }

    /// Some matrices of `glm5-next` never get less than Q8_0.
    fn glm5_next(&self, name: &str) -> Option<TensorType> {
        let at_least_q8 = ["attn_q_a", "attn_q_b", "nextn.eh_proj"];
        (self.model.architecture == "glm5-next" && at_least_q8.iter().any(|part| name.contains(part)))
            .then_some(T::Q8_0)
    }

    fn output(&self, columns: u64) -> TensorType {
        if let Some(ty) = self.output_type {
            return ty;
        }
        let fits = columns.is_multiple_of(self.base.block_elements());
        match self.mix {
            M::MXFP4_MOE => T::Q8_0,
            _ if self.falcon || !fits => T::Q8_0,
            M::IQ1_S | M::IQ1_M | M::IQ2_XXS | M::IQ2_XS | M::IQ2_S | M::IQ2_M | M::IQ3_XXS => T::Q5_K,
            _ if self.base == T::Q8_0 => T::Q8_0,
            _ => T::Q6_K,
        }
    }

    /// Experts, which are three-dimensional, get MXFP4, and all else Q8_0. In `bailingmoe3` other tensors have three
    /// dimensions too.
    fn mxfp4_moe(&self, tensor: &TensorFacts, role: Role) -> TensorType {
        let of_experts = self.model.architecture != "bailingmoe3" || matches!(role, Role::Up | Role::Gate | Role::Down);
        if tensor.dim(2) > 1 && of_experts {
            T::MXFP4
        } else {
            T::Q8_0
        }
    }

    fn embedding(&self) -> TensorType {
        match self.mix {
            M::IQ1_S | M::IQ1_M | M::IQ2_XXS | M::IQ2_XS => T::Q2_K,
            M::IQ2_S | M::IQ2_M | M::IQ3_XXS => T::IQ3_S,
            M::TQ1_0 | M::TQ2_0 | M::Q2_0 => T::Q4_K,
            _ => self.base,
        }
    }

    /// The mixes of less than three bits have rules of their own.
    fn below_three_bits(&mut self, tensor: &TensorFacts, role: Role) -> Result<TensorType, PolicyError> {
        let upper = matches!(self.mix, M::IQ2_S | M::IQ2_M);
        let better = if upper { T::IQ3_S } else { T::Q2_K };
        Ok(match role {
            Role::Value | Role::QueryKeyValue | Role::KeyValue => {
                advance(&mut self.values);
                if self.many_heads_share(tensor)? || self.model.experts >= 4 {
                    T::Q4_K
                } else {
                    better
                }
            }
            Role::Key if self.eight_experts() => T::Q4_K,
            Role::Down => {
                let place = Place {
                    layer: advance(&mut self.downs),
                    layers: self.model.layers,
                };
                if place.in_first(8) { better } else { self.base }
            }
            Role::AttentionOutput if self.eight_experts() => T::Q5_K,
            Role::AttentionOutput if upper => T::IQ3_S,
            Role::AttentionOutput if matches!(self.mix, M::IQ1_S | M::IQ1_M) => T::IQ2_XXS,
            _ => self.base,
        })
    }

    fn values(&mut self, tensor: &TensorFacts) -> Result<TensorType, PolicyError> {
        let place = Place {
            layer: advance(&mut self.values),
            layers: self.value_tensors,
        };
        let ty = match self.mix {
            M::Q2_K | M::Q2_K_S | M::IQ3_XXS | M::IQ3_XS | M::IQ3_S if self.many_heads_share(tensor)? => T::Q4_K,
            M::Q2_K => T::Q3_K,
            M::IQ3_XXS if !self.have_imatrix => T::IQ3_S,
            M::IQ4_NL | M::IQ4_XS if self.many_heads_share(tensor)? => T::Q5_K,
            M::Q3_K_M if place.layer < 2 => T::Q5_K,
            M::Q3_K_M | M::IQ3_M => T::Q4_K,
            M::Q3_K_L => T::Q5_K,
            M::Q4_K_M | M::Q5_K_M if place.deserves_more() => T::Q6_K,
            M::Q4_K_S if place.layer < 4 => T::Q5_K,
            _ => self.base,
        };
        Ok(match ty {
            // Eight experts share one attention, so that its bytes are few: spend them.
            _ if self.eight_experts() => T::Q8_0,
            T::Q3_K | T::Q4_K if self.model.is_70b => T::Q5_K,
            _ => ty,
        })
    }

    fn queries_and_keys(&self) -> TensorType {
        match self.mix {
            M::IQ3_XS => T::IQ3_XXS,
            M::IQ3_XXS => T::IQ2_S,
            _ => self.base,
        }
    }

    fn attention_output(&self) -> TensorType {
        if self.falcon {
            return if self.mix == M::Q3_K_L { T::Q4_K } else { self.base };
        }
        if self.eight_experts() {
            return match self.mix {
                M::Q2_K
                | M::Q3_K_S
                | M::Q3_K_M
                | M::Q4_K_S
                | M::Q4_K_M
                | M::IQ3_XXS
                | M::IQ3_XS
                | M::IQ3_S
                | M::IQ3_M
                | M::IQ4_NL
                | M::IQ4_XS => T::Q5_K,
                _ => self.base,
            };
        }
        match self.mix {
            M::Q2_K => T::Q3_K,
            M::IQ3_XXS => T::IQ3_S,
            M::Q3_K_M | M::IQ3_M => T::Q4_K,
            M::Q3_K_L => T::Q5_K,
            _ => self.base,
        }
    }

    fn down(&self, place: Place) -> TensorType {
        match self.mix {
            M::Q2_K => T::Q3_K,
            M::Q2_K_S if place.in_first(8) => T::Q4_K,
            M::Q3_K_M if place.in_first(16) => T::Q5_K,
            M::Q3_K_M if !self.falcon || place.deserves_more() => T::Q4_K,
            M::Q3_K_L if self.falcon => T::Q4_K,
            M::Q3_K_L => T::Q5_K,
            M::Q4_K_S if place.in_first(8) && !self.falcon => T::Q5_K,
            M::Q4_K_M if self.falcon && place.in_first(16) => T::Q6_K,
            M::Q4_K_M if place.deserves_more() => {
                if self.falcon {
                    T::Q5_K
                } else {
                    T::Q6_K
                }
            }
            M::Q5_K_M if place.deserves_more() => T::Q6_K,
            M::IQ3_XXS if !self.have_imatrix => {
                if place.in_first(8) {
                    T::Q4_K
                } else {
                    T::Q3_K
                }
            }
            M::IQ3_M if place.in_first(8) || (self.eight_experts() && place.deserves_more()) => T::Q4_K,
            M::IQ4_NL | M::IQ4_XS if place.in_first(8) && !self.have_imatrix => T::Q5_K,
            // The first layers can go astray in these two even with an imatrix; without one, types with a minimum do.
            M::Q4_0 if place.in_first(8) && self.have_imatrix => T::Q4_1,
            M::Q5_0 if place.in_first(8) && self.have_imatrix => T::Q5_1,
            _ => self.base,
        }
    }

    fn up_or_gate(&self, place: Place) -> TensorType {
        let in_the_middle = !place.in_first(8) && place.before_last_eighth();
        if self.mix == M::IQ3_XS && in_the_middle {
            T::IQ3_XXS
        } else {
            self.base
        }
    }

    fn eight_experts(&self) -> bool {
        self.model.experts == 8
    }

    fn many_heads_share(&self, tensor: &TensorFacts) -> Result<bool, PolicyError> {
        let no_heads = || PolicyError::NoHeads {
            architecture: self.model.architecture.clone(),
            tensor: tensor.name.clone(),
        };
        Ok(self.model.heads_per_kv().ok_or_else(no_heads)? >= 4)
    }

    /// Returns a feed-forward tensor's place: by count, or in a model with experts, which has several per layer, by name.
    fn place(&self, count: u32, tensor: &TensorFacts) -> Result<Place, PolicyError> {
        let layers = self.model.layers;
        if self.model.experts <= 1 {
            return Ok(Place { layer: count, layers });
        }
        let layer = block_index(&tensor.name).and_then(|layer| u32::try_from(layer).ok());
        match layer {
            Some(layer) if layer < layers => Ok(Place { layer, layers }),
            _ => Err(PolicyError::BadLayer {
                tensor: tensor.name.clone(),
                layers,
            }),
        }
    }
}

/// Returns a counter's value and counts one up.
fn advance(counter: &mut u32) -> u32 {
    let before = *counter;
    *counter = counter.saturating_add(1);
    before
}
