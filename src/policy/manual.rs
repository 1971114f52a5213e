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

/// What a rule does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It keeps the source's type.
    Keep,
    /// It gets this type, or the fallback for its row length.
    Type(TensorType),
}

/// A pattern of tensor names, and what to do with those tensors.
#[derive(Debug, Clone)]
pub struct Rule {
    /// It matches anywhere in a name unless it is anchored.
    pub pattern: Regex,
    /// What to do with them.
    pub to: Target,
}

/// The options of [`manual()`] besides its rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManualOptions {
    /// What to do with quantizable tensors that no rule matches; if `None`, they are an error.
    pub otherwise: Option<Target>,
    /// Accept tensors that are quantized already.
    pub allow_requantize: bool,
}

/// Returns the table that rules describe. The first rule whose pattern is found in a tensor's name decides. Tensors that are
/// never quantized keep their type, whatever a rule says.
///
/// # Errors
/// [`PolicyError::Unmatched`] names all quantizable tensors that no rule matches, unless `otherwise` is set. The
/// other errors are for types that the engine cannot write, or quantizes badly.
pub fn manual(
    model: &ModelFacts,
    rules: &[Rule],
    options: ManualOptions,
    has_imatrix: HasImatrix<'_>,
) -> Result<Table, PolicyError> {
    let mut matcher = RuleMatcher::new(rules);
    let mut unmatched = Vec::new();
    let mut choices = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        let rule = matcher.find(&tensor.name);
        if let Err(reason) = quantizable(model, &tensor.name, &tensor.dims) {
            matcher.without_effect(rule, tensor, reason);
            choices.push(choice(
                tensor,
                TypeRequest::keep(tensor, Why::NeverQuantized { reason }),
            )?);
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
        matcher.had_effect(rule);
        choices.push(choice(tensor, TypeRequest::of(tensor, target, why))?);
    }
    if !unmatched.is_empty() {
        return Err(PolicyError::Unmatched { tensors: unmatched });
    }
    check(model, &choices, None, options.allow_requantize, has_imatrix)?;
    Ok(Table::new(choices, matcher.warnings()))
}

/// The type that a tensor should get, and why.
pub(crate) struct TypeRequest {
    pub(crate) to: TensorType,
    pub(crate) why: Why,
    /// False where the engine applies no fallback for a row length.
    pub(crate) may_fall_back: bool,
}

impl TypeRequest {
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

/// Returns the choice for a request: its type, or the fallback type if its blocks do not fit the tensor's rows.
pub(crate) fn choice(tensor: &TensorFacts, request: TypeRequest) -> Result<Choice, PolicyError> {
    let columns = tensor.columns();
    let to = if request.may_fall_back {
        fallback(request.to, columns).map_err(|source| PolicyError::NoFallback {
            tensor: tensor.name.clone(),
            source,
        })?
    } else if request.to != tensor.ty && !columns.is_multiple_of(request.to.block_elements()) {
        return Err(PolicyError::RowLength {
            tensor: tensor.name.clone(),
            wanted: request.to,
            columns,
        });
    } else {
        request.to
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
        instead_of: (to != request.to).then_some(request.to),
        why: request.why,
        bytes,
    })
}

/// What one rule did.
#[derive(Clone, Default)]
struct RuleUse {
    /// It matched a name.
    found: bool,
    /// It was the first rule to match a name.
    first: bool,
    /// It decided the type of a quantizable tensor.
    effect: bool,
    /// A never-quantized tensor that it would have changed.
    ignored: Option<(String, Reason)>,
}

/// Finds the rule of each tensor, and records which rules had an effect.
pub(crate) struct RuleMatcher<'a> {
    rules: &'a [Rule],
    uses: Vec<RuleUse>,
}

impl<'a> RuleMatcher<'a> {
    pub(crate) fn new(rules: &'a [Rule]) -> Self {
        Self {
            rules,
            uses: vec![RuleUse::default(); rules.len()],
        }
    }

    /// Returns the first rule found in a name.
    pub(crate) fn find(&mut self, name: &str) -> Option<usize> {
        let mut first = None;
        for (index, (rule, used)) in self.rules.iter().zip(&mut self.uses).enumerate() {
            // A later rule is only tried until it is known to match something.
            if (first.is_none() || !used.found) && rule.pattern.is_match(name) {
                used.found = true;
                if first.is_none() {
                    used.first = true;
                    first = Some(index);
                }
            }
        }
        first
    }

    pub(crate) fn had_effect(&mut self, rule: Option<usize>) {
        if let Some(used) = rule.and_then(|index| self.uses.get_mut(index)) {
            used.effect = true;
        }
    }

    pub(crate) fn without_effect(&mut self, rule: Option<usize>, tensor: &TensorFacts, reason: Reason) {
        let Some(index) = rule else { return };
        let changes = matches!(self.rules[index].to, Target::Type(to) if to != tensor.ty);
        let used = &mut self.uses[index];
        if changes && used.ignored.is_none() {
            used.ignored = Some((tensor.name.clone(), reason));
        } else if !changes {
            used.effect = true;
        }
    }

    /// Returns the warnings about rules without effect. A rule that changed some tensors and could not change others, such as
    /// `.*`, causes no warning.
    pub(crate) fn warnings(self) -> Vec<Warning> {
        let rules = self.rules.iter().zip(self.uses).enumerate();
        rules
            .filter_map(|(index, (rule, used))| {
                let pattern = rule.pattern.as_str().to_owned();
                match used {
                    RuleUse { found: false, .. } => Some(Warning::RuleMatchesNothing { index, pattern }),
                    RuleUse { first: false, .. } => Some(Warning::RuleShadowed { index, pattern }),
                    RuleUse {
                        effect: false,
                        ignored: Some((tensor, reason)),
                        ..
                    } => Some(Warning::RuleHasNoEffect {
                        index,
                        pattern,
                        tensor,
                        reason,
                    }),
                    RuleUse { .. } => None,
                }
            })
            .collect()
    }
}
