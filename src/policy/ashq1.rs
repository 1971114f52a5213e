//! ASHQ1: every tensor starts at its floor. Then the group with the highest gain per byte gets the next larger type, until the
//! budget is spent.
//!
//! Gains are estimates: the importance of a tensor (its mean squared activation) times the decrease of the type's error, which
//! is assumed to be `2^(-2 * bits)`. The method does not read the weights. `docs/how-policies-work.md` lists its limits, and
//! how forge does what the method's description leaves open.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;

use crate::policy::Choice;
use crate::policy::Energies;
use crate::policy::FileSize;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Role;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::Warning;
use crate::policy::Why;
use crate::policy::check::check;
use crate::policy::groups::GroupOptions;
use crate::policy::groups::TensorGroup;
use crate::policy::groups::groups;
use crate::policy::manual::RuleMatcher;
use crate::policy::manual::TypeRequest;
use crate::policy::manual::choice;
use crate::policy::quantizable::quantizable;
use crate::policy::role::block_index;
use crate::policy::table::Fixed;
use crate::tensor_type::TensorType;

/// The types that the method uses, in the order of upgrades.
pub const ASHQ1_TYPES: &[TensorType] = &[
    TensorType::Q3_K,
    TensorType::IQ4_XS,
    TensorType::IQ4_NL,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::F16,
];

/// The type of layers for multi-token prediction, and the floor of the embedding and the output.
const SENSITIVE: TensorType = TensorType::Q5_K;
/// The default ceiling.
const CEILING: TensorType = TensorType::Q8_0;
/// With [`Ashq1::depth`]: the factor of the first layer, and the number and the factor of the last layers.
const FIRST_LAYER: f64 = 2.0;
const LAST_LAYERS: (i64, f64) = (5, 1.5);

/// Two to the power of -8.8.
const IQ4_NL_ERROR: f64 = 0.002243551474603583;

/// The options of the method.
#[derive(Debug, Clone, Copy)]
pub struct Ashq1<'a> {
    /// The maximum size of the file, in bytes.
    pub budget: u64,
    /// The size of the file without its tensors.
    pub size: FileSize,
    /// Count the first layer twice and the last five one and a half times.
    pub depth: bool,
    /// Take upgrades that cost no bytes, such as `IQ4_NL` to `Q4_K`. Measurements do not always confirm their gain.
    pub free: bool,
    /// The model had quantization-aware training: floors are `IQ4_XS`, and `Q4_K` for the attention of Gemma 4.
    pub qat: bool,
    /// Tensors that keep the source's type.
    pub keep: &'a [Rule],
    /// Floors by pattern, instead of the usual ones; the first rule that matches counts.
    pub floors: &'a [Rule],
    /// Ceilings by pattern, likewise.
    pub ceilings: &'a [Rule],
}

/// The types that a tensor can get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// One type only.
    Fixed {
        /// The type.
        to: TensorType,
        /// Why.
        why: Why,
    },
    /// All types of [`ASHQ1_TYPES`] between two of them.
    Free {
        /// The lowest.
        floor: TensorType,
        /// The highest.
        ceiling: TensorType,
    },
}

/// Returns the types that each tensor can get, in the order of the model, as `--show-floors` shows them; and the warnings about
/// patterns.
///
/// # Errors
/// [`PolicyError::NotAshq1Type`] for a floor or a ceiling that is not one of [`ASHQ1_TYPES`],
/// [`PolicyError::FloorAboveCeiling`].
pub fn spans(model: &ModelFacts, options: &Ashq1<'_>) -> Result<(Vec<Span>, Vec<Warning>), PolicyError> {
    let mut keep = RuleMatcher::new(options.keep);
    let mut floors = RuleMatcher::new(options.floors);
    let mut ceilings = RuleMatcher::new(options.ceilings);
    let predicting = prediction_layers(model);
    let mut spans = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        let rules = (
            keep.find(&tensor.name),
            floors.find(&tensor.name),
            ceilings.find(&tensor.name),
        );
        if let Err(reason) = quantizable(model, &tensor.name, &tensor.dims) {
            keep.without_effect(rules.0, tensor, reason);
            floors.without_effect(rules.1, tensor, reason);
            ceilings.without_effect(rules.2, tensor, reason);
            spans.push(Span::Fixed {
                to: tensor.ty,
                why: Why::NeverQuantized { reason },
            });
            continue;
        }
        keep.had_effect(rules.0);
        floors.had_effect(rules.1);
        ceilings.had_effect(rules.2);
        if let Some(index) = rules.0 {
            spans.push(Span::Fixed {
                to: tensor.ty,
                why: Why::Rule { index },
            });
            continue;
        }
        let layer = block_index(&tensor.name);
        let asked = |rules: &[Rule], index: Option<usize>| match index.map(|index| rules[index].to) {
            Some(Target::Type(ty)) => Some(ty),
            Some(Target::Keep) | None => None,
        };
        let (floor, ceiling) = (asked(options.floors, rules.1), asked(options.ceilings, rules.2));
        let fixed = |to, what| Span::Fixed {
            to,
            why: Why::Fixed { what },
        };
        spans.push(if floor.is_some() || ceiling.is_some() {
            let floor = floor.unwrap_or_else(|| usual_floor(model, tensor, options.qat));
            between(tensor, floor, ceiling.unwrap_or(higher(CEILING, floor)))?
        } else if tensor.name.contains("nextn") || layer.is_some_and(|layer| predicting.contains(&layer)) {
            fixed(SENSITIVE, Fixed::NextToken)
        } else if is_state_space(&tensor.name) {
            fixed(TensorType::F16, Fixed::StateSpace)
        } else {
            between(tensor, usual_floor(model, tensor, options.qat), CEILING)?
        });
    }
    let warnings = [keep.warnings(), floors.warnings(), ceilings.warnings()].concat();
    Ok((spans, warnings))
}

/// Chooses types under a budget.
///
/// # Errors
/// [`PolicyError::BelowMinimum`] if not even the floors are within the budget; the rest as for the other methods.
pub fn ashq1(model: &ModelFacts, energies: &Energies, options: &Ashq1<'_>) -> Result<Table, PolicyError> {
    let (spans, warnings) = spans(model, options)?;
    let importance = importances(model, energies, options.depth);
    let mut choices = Vec::with_capacity(model.tensors.len());
    for (tensor, span) in model.tensors.iter().zip(&spans) {
        let request = match span {
            Span::Fixed { to, why } => TypeRequest {
                to: *to,
                why: why.clone(),
                may_fall_back: *to != tensor.ty,
            },
            Span::Free { floor, .. } => TypeRequest {
                to: *floor,
                why: Why::Floor,
                may_fall_back: true,
            },
        };
        choices.push(choice(tensor, request)?);
    }
    let options_of_groups = GroupOptions {
        tied: true,
        fuse: Vec::new(),
    };
    // Fixed tensors are in no group. The others of a group get their types together.
    let mut upgrades: Vec<GroupLevel> = Vec::new();
    for mut group in groups(model, energies, &options_of_groups) {
        let levels = |at: &usize| match &spans[*at] {
            Span::Free { floor, ceiling } => level_of(*floor).zip(level_of(*ceiling)),
            Span::Fixed { .. } => None,
        };
        group.members.retain(|at| levels(at).is_some());
        let limits: Vec<(usize, usize)> = group.members.iter().filter_map(levels).collect();
        let floor = limits.iter().map(|(floor, _)| *floor).max();
        let ceiling = limits.iter().map(|(_, ceiling)| *ceiling).min();
        let (Some(floor), Some(ceiling)) = (floor, ceiling) else {
            continue;
        };
        for at in &group.members {
            choices[*at] = at_level(&model.tensors[*at], floor, &group, 0)?;
        }
        upgrades.push(GroupLevel {
            group,
            level: floor,
            ceiling: ceiling.max(floor),
            steps: 0,
        });
    }
    let mut file = options.size.of(&choices);
    if file > options.budget {
        return Err(PolicyError::BelowMinimum {
            budget: options.budget,
            minimum: file,
        });
    }

    let mut queue: BinaryHeap<Step> = BinaryHeap::new();
    for (at, group) in upgrades.iter().enumerate() {
        queue.extend(group.next(model, &choices, &importance, options, at)?);
    }
    while let Some(step) = queue.pop() {
        // A step that does not fit now never will: its group keeps its type. Smaller steps of other groups may still fit.
        if file.saturating_add(step.bytes) > options.budget {
            continue;
        }
        file += step.bytes;
        let raised = &mut upgrades[step.index];
        (raised.level, raised.steps) = (step.level, raised.steps + 1);
        for at in &raised.group.members {
            choices[*at] = at_level(&model.tensors[*at], step.level, &raised.group, raised.steps)?;
        }
        queue.extend(upgrades[step.index].next(model, &choices, &importance, options, step.index)?);
    }
    let has = |name: &str| energies.contains_key(name);
    check(model, &choices, None, true, Some(&has))?;
    Ok(Table::new(choices, warnings))
}

/// A group and its current type, as an index in [`ASHQ1_TYPES`].
struct GroupLevel {
    group: TensorGroup,
    level: usize,
    ceiling: usize,
    /// How many upgrades it got.
    steps: u32,
}

/// An upgrade of a group to a higher level.
struct Step {
    /// The gain per byte.
    utility: f64,
    bytes: u64,
    name: String,
    /// The index of the group.
    index: usize,
    level: usize,
}

impl Step {
    fn rank(&self) -> (u64, Reverse<u64>, Reverse<&str>) {
        // Utilities are positive, and the bits of such floats are in their order.
        (self.utility.to_bits(), Reverse(self.bytes), Reverse(&self.name))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Step {}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl GroupLevel {
    /// Returns the next upgrade. One that costs no bytes has the highest utility with [`Ashq1::free`], and is skipped without.
    fn next(
        &self,
        model: &ModelFacts,
        choices: &[Choice],
        importance: &[f64],
        options: &Ashq1<'_>,
        index: usize,
    ) -> Result<Option<Step>, PolicyError> {
        for level in self.level + 1..=self.ceiling {
            let (mut gain, mut before, mut after) = (0.0, 0_u64, 0_u64);
            for at in &self.group.members {
                let raised = at_level(&model.tensors[*at], level, &self.group, 0)?;
                gain += importance[*at] * (error_of(choices[*at].to) - error_of(raised.to));
                before = before.saturating_add(options.size.padded(choices[*at].bytes));
                after = after.saturating_add(options.size.padded(raised.bytes));
            }
            let bytes = after.saturating_sub(before);
            let wanted = gain > 0.0 && (bytes > 0 || options.free);
            if wanted {
                return Ok(Some(Step {
                    utility: if bytes == 0 { f64::INFINITY } else { gain / bytes as f64 },
                    bytes,
                    name: self.group.name.clone(),
                    index,
                    level,
                }));
            }
        }
        Ok(None)
    }
}

/// Returns the choice of a tensor at a level that its group reached in so many upgrades.
fn at_level(tensor: &TensorFacts, level: usize, group: &TensorGroup, steps: u32) -> Result<Choice, PolicyError> {
    let why = if steps == 0 {
        Why::Floor
    } else {
        Why::Ladder {
            group: group.name.clone(),
            steps,
        }
    };
    let request = TypeRequest {
        to: ASHQ1_TYPES[level],
        why,
        may_fall_back: true,
    };
    choice(tensor, request)
}

/// Returns the index of a type in [`ASHQ1_TYPES`].
fn level_of(ty: TensorType) -> Option<usize> {
    ASHQ1_TYPES.iter().position(|known| *known == ty)
}

/// Returns the type with the higher level.
fn higher(a: TensorType, b: TensorType) -> TensorType {
    if level_of(a) < level_of(b) { b } else { a }
}

fn between(tensor: &TensorFacts, floor: TensorType, ceiling: TensorType) -> Result<Span, PolicyError> {
    let level = |ty| {
        level_of(ty).ok_or_else(|| PolicyError::NotAshq1Type {
            tensor: tensor.name.clone(),
            ty,
        })
    };
    if level(floor)? > level(ceiling)? {
        return Err(PolicyError::FloorAboveCeiling {
            tensor: tensor.name.clone(),
            floor,
            ceiling,
        });
    }
    Ok(Span::Free { floor, ceiling })
}

fn usual_floor(model: &ModelFacts, tensor: &TensorFacts, qat: bool) -> TensorType {
    let attention = matches!(
        Role::of(&tensor.name),
        Role::Query | Role::Key | Role::Value | Role::QueryKeyValue | Role::KeyValue | Role::AttentionOutput
    );
    match Role::of(&tensor.name) {
        Role::Output | Role::Embedding => SENSITIVE,
        _ if qat && !(attention && model.architecture.starts_with("gemma4")) => TensorType::IQ4_XS,
        _ => TensorType::Q4_K,
    }
}

/// Returns true for the small matrices of a state-space layer. Its large ones, `ssm_in` and `ssm_out`, are quantized like other
/// weights.
fn is_state_space(name: &str) -> bool {
    name.contains(".ssm_") && !name.contains(".ssm_in.") && !name.contains(".ssm_out.")
}

/// Returns the layers for multi-token prediction: those that have a `nextn` tensor.
fn prediction_layers(model: &ModelFacts) -> Vec<i64> {
    let names = model.tensors.iter().map(|tensor| tensor.name.as_str());
    names
        .filter(|name| name.contains(".nextn."))
        .filter_map(block_index)
        .collect()
}

/// Returns the assumed error of a type: `2^(-2 * bits)`. `IQ4_XS` counts as 4.0 bits and `IQ4_NL` as 4.4, because a K-quant of
/// the same size is better. The function uses only square roots and products, so its result is the same on every machine.
fn error_of(ty: TensorType) -> f64 {
    let bits = match ty {
        TensorType::IQ4_NL => return IQ4_NL_ERROR,
        TensorType::IQ4_XS => 4.0,
        other => other.bpw(),
    };
    // Every size of a type is a multiple of a sixteenth of a bit.
    let sixteenths = (bits * 16.0) as u32;
    let mut error = (0..sixteenths / 8).fold(1.0, |error, _| error / 2.0);
    let mut factor = 0.5_f64;
    for at in (0..3).rev() {
        factor = factor.sqrt();
        if sixteenths >> at & 1 == 1 {
            error *= factor;
        }
    }
    error
}

/// Returns the importance of each tensor. A tensor without data gets the median of its role, or of all tensors.
fn importances(model: &ModelFacts, energies: &Energies, depth: bool) -> Vec<f64> {
    let predicting = prediction_layers(model);
    let layers = model.tensors.iter().filter_map(|tensor| block_index(&tensor.name));
    let last = layers.filter(|layer| !predicting.contains(layer)).max().unwrap_or(-1);
    let factor = |name: &str| match block_index(name) {
        Some(0) if depth => FIRST_LAYER,
        Some(layer) if depth && layer <= last && layer > last - LAST_LAYERS.0 => LAST_LAYERS.1,
        _ => 1.0,
    };
    let mut of_role: BTreeMap<u8, Vec<f64>> = BTreeMap::new();
    let mut all = Vec::new();
    for tensor in &model.tensors {
        if let Some(energy) = energies.get(&tensor.name) {
            of_role
                .entry(Role::of(&tensor.name) as u8)
                .or_default()
                .push(energy.mean);
            all.push(energy.mean);
        }
    }
    let tensors = model.tensors.iter();
    tensors
        .map(|tensor| {
            let known = energies.get(&tensor.name).map(|energy| energy.mean);
            let usual = || {
                let role = of_role.get(&(Role::of(&tensor.name) as u8));
                median(role.unwrap_or(&all))
            };
            known.unwrap_or_else(usual) * factor(&tensor.name)
        })
        .collect()
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    f64::midpoint(at(sorted.len() / 2), at(sorted.len().saturating_sub(1) / 2))
}

#[cfg(test)]
mod tests;
