//! The user's own rules: first match wins.

use regex::Regex;

use crate::policy::Choice;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Reason;
use crate::policy::Table;
use crate::policy::TensorFacts;
use crate::policy::Warning;
use crate::policy::Why;
use crate::policy::check::check;
use crate::policy::quantizable::fallback;
use crate::policy::quantizable::quantizable;
use crate::tensor_type::TensorType;

/// What a rule makes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It keeps the source's type.
    Keep,
    /// It gets this type, or the fallback for its row length.
    Type(TensorType),
}

/// A pattern of tensor names and what becomes of them.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Found anywhere in a name unless the pattern is anchored.
    pub pattern: Regex,
    /// What becomes of the tensors.
    pub to: Target,
}

/// The options of [`manual()`] besides its rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManualOptions {
    /// What becomes of quantizable tensors that no rule matches; none makes them an error.
    pub otherwise: Option<Target>,
    /// Accept tensors that are quantized already.
    pub allow_requantize: bool,
}

/// Makes the table that rules describe. The first rule whose pattern is found in a tensor's name decides. Tensors that are
/// never quantized keep their type, whatever a rule says.
///
/// # Errors
/// [`PolicyError::Unmatched`] names all quantizable tensors that no rule matches, unless the options say what becomes of
/// them. The others stand for what the engine can't do, or does badly.
pub fn manual(
    model: &ModelFacts,
    rules: &[Rule],
    options: ManualOptions,
    has_imatrix: HasImatrix<'_>,
) -> Result<Table, PolicyError> {
    let mut book = RuleBook::new(rules);
    let mut unmatched = Vec::new();
    let mut choices = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        let rule = book.find(&tensor.name);
        if let Err(reason) = quantizable(model, &tensor.name, &tensor.dims) {
            book.without_effect(rule, tensor, reason);
            choices.push(choice(tensor, Wish::keep(tensor, Why::NeverQuantized { reason }))?);
            continue;
        }
        let (target, why) = match (rule, options.otherwise) {
            (Some(index), _) => (rules[index].to, Why::Rule { index }),
            (None, Some(target)) => (target, Why::Otherwise),
            (None, None) => {
                unmatched.push(tensor.name.clone());
                continue;
            }
        };
        book.had_effect(rule);
        choices.push(choice(tensor, Wish::of(tensor, target, why))?);
    }
    if !unmatched.is_empty() {
        return Err(PolicyError::Unmatched { tensors: unmatched });
    }
    check(model, &choices, None, options.allow_requantize, has_imatrix)?;
    Ok(Table::new(choices, book.warnings()))
}

/// What a tensor should become.
pub(crate) struct Wish {
    pub(crate) to: TensorType,
    pub(crate) why: Why,
    /// False where the engine applies no fallback for a row length.
    pub(crate) may_fall_back: bool,
}

impl Wish {
    pub(crate) fn keep(tensor: &TensorFacts, why: Why) -> Self {
        Self {
            to: tensor.ty,
            why,
            may_fall_back: false,
        }
    }

    pub(crate) fn of(tensor: &TensorFacts, target: Target, why: Why) -> Self {
        match target {
            Target::Keep => Self::keep(tensor, why),
            Target::Type(to) => Self {
                to,
                why,
                may_fall_back: true,
            },
        }
    }
}

/// Fits a wish to the tensor's rows.
pub(crate) fn choice(tensor: &TensorFacts, wish: Wish) -> Result<Choice, PolicyError> {
    let columns = tensor.columns();
    let to = if wish.may_fall_back {
        fallback(wish.to, columns).map_err(|source| PolicyError::NoFallback {
            tensor: tensor.name.clone(),
            source,
        })?
    } else if wish.to != tensor.ty && !columns.is_multiple_of(wish.to.block_elements()) {
        return Err(PolicyError::RowLength {
            tensor: tensor.name.clone(),
            wanted: wish.to,
            columns,
        });
    } else {
        wish.to
    };
    let bytes = to.tensor_bytes(&tensor.dims).ok_or_else(|| PolicyError::Size {
        tensor: tensor.name.clone(),
        dims: tensor.dims.clone(),
        ty: to,
    })?;
    Ok(Choice {
        tensor: tensor.name.clone(),
        from: tensor.ty,
        to,
        instead_of: (to != wish.to).then_some(wish.to),
        why: wish.why,
        bytes,
    })
}

/// What has been seen of one rule.
#[derive(Clone, Default)]
struct Seen {
    /// It was found in a name.
    found: bool,
    /// It was the first found in a name.
    first: bool,
    /// It decided on a quantizable tensor.
    effect: bool,
    /// A never-quantized tensor that it would have changed.
    in_vain: Option<(String, Reason)>,
}

/// Rules, and what came of each.
pub(crate) struct RuleBook<'a> {
    rules: &'a [Rule],
    seen: Vec<Seen>,
}

impl<'a> RuleBook<'a> {
    pub(crate) fn new(rules: &'a [Rule]) -> Self {
        Self {
            rules,
            seen: vec![Seen::default(); rules.len()],
        }
    }

    /// Returns the first rule found in a name.
    pub(crate) fn find(&mut self, name: &str) -> Option<usize> {
        let mut first = None;
        for (index, (rule, seen)) in self.rules.iter().zip(&mut self.seen).enumerate() {
            // A later rule is only tried until it is known to match something.
            if (first.is_none() || !seen.found) && rule.pattern.is_match(name) {
                seen.found = true;
                if first.is_none() {
                    seen.first = true;
                    first = Some(index);
                }
            }
        }
        first
    }

    pub(crate) fn had_effect(&mut self, rule: Option<usize>) {
        if let Some(seen) = rule.and_then(|index| self.seen.get_mut(index)) {
            seen.effect = true;
        }
    }

    pub(crate) fn without_effect(&mut self, rule: Option<usize>, tensor: &TensorFacts, reason: Reason) {
        let Some(index) = rule else { return };
        let changes = matches!(self.rules[index].to, Target::Type(to) if to != tensor.ty);
        let seen = &mut self.seen[index];
        if changes && seen.in_vain.is_none() {
            seen.in_vain = Some((tensor.name.clone(), reason));
        } else if !changes {
            seen.effect = true;
        }
    }

    /// Returns what the user should know of the rules. A rule that changes some tensors and could not change others, as
    /// `.*` does, is no news.
    pub(crate) fn warnings(self) -> Vec<Warning> {
        let rules = self.rules.iter().zip(self.seen).enumerate();
        rules
            .filter_map(|(index, (rule, seen))| {
                let pattern = rule.pattern.as_str().to_owned();
                match seen {
                    Seen { found: false, .. } => Some(Warning::RuleMatchesNothing { index, pattern }),
                    Seen { first: false, .. } => Some(Warning::RuleShadowed { index, pattern }),
                    Seen {
                        effect: false,
                        in_vain: Some((tensor, reason)),
                        ..
                    } => Some(Warning::RuleHasNoEffect {
                        index,
                        pattern,
                        tensor,
                        reason,
                    }),
                    Seen { .. } => None,
                }
            })
            .collect()
    }
}
