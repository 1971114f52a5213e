//! Every fact of a certificate, worked out anew.

use std::collections::BTreeSet;

use crate::certificate::document::Answer;
use crate::certificate::document::Choice;
use crate::certificate::document::Claim;
use crate::certificate::document::Document;
use crate::certificate::document::Losses;
use crate::certificate::document::Problem;
use crate::certificate::document::SCHEMA;
use crate::certificate::document::SCHEMA_1;
use crate::certificate::search::Found;
use crate::certificate::search::better_than;

/// Sums beyond this are not computed with: products of two still fit into 128 bits.
const MOST: i128 = 1 << 62;

/// What is true of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No assignment within the limits has less loss.
    Optimal,
    /// The assignment is within the limits, and its loss is at most this many units above the least possible.
    Gap {
        /// Units of loss.
        gap: u64,
    },
    /// The limits cannot be held, and the assignment is the smallest there is.
    BelowMinimum,
}

/// An answer whose claim is true.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// What is true of it.
    pub verdict: Verdict,
    /// The limits.
    pub limits: Vec<u64>,
    /// What the assignment uses of each capacity.
    pub uses: Vec<u64>,
    /// The loss, in units.
    pub loss: i64,
    /// A unit is two to the power of minus this.
    pub unit_exponent: i32,
    /// What the losses are; `None` in a certificate of version 1, which does not say it.
    pub losses: Option<Losses>,
    /// Where losses are differences: the loss that is predicted for the choice as a whole, and that of the base.
    pub predicted: Option<Predicted>,
}

/// A loss that is predicted from differences to a base.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// The loss.
    pub loss: f64,
    /// The loss of the base.
    pub base: f64,
    /// The number of groups with another option than the base.
    pub changes: usize,
}

/// The first error in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is not a certificate.
    #[error("not a certificate of schema `{SCHEMA}`: {message}")]
    Form {
        /// Why.
        message: String,
    },
    /// The problem contradicts itself.
    #[error("the problem: {message}")]
    Problem {
        /// How.
        message: String,
    },
    /// A stated fact is wrong.
    #[error("{place}: `{fact}` is stated as {stated}, but is {found}")]
    Fact {
        /// Of what, as `the document` or `answer 1`.
        place: String,
        /// Its name in the document.
        fact: &'static str,
        /// As stated.
        stated: String,
        /// As computed.
        found: String,
    },
    /// The choice names no option of a group, or not one for each.
    #[error("{place}: {message}")]
    Choice {
        /// Of what.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// The assignment exceeds a limit.
    #[error("{place}: `{capacity}` allows {limit}, but the choice uses {used}")]
    OverLimit {
        /// Of what.
        place: String,
        /// The capacity.
        capacity: String,
        /// What may be used.
        limit: u64,
        /// What is used.
        used: i128,
    },
    /// The choice is claimed to be optimal, and is not.
    #[error("{place}: claims that no assignment has less loss than {loss}, but one has {better}")]
    NotOptimal {
        /// Of what.
        place: String,
        /// The loss of the choice.
        loss: i64,
        /// The loss of a better choice.
        better: i128,
    },
    /// The choice is claimed to be optimal, and the search did not prove it.
    #[error(
        "{place}: claims that no assignment has less loss, but a search of {states} states did not suffice to show it"
    )]
    NotShown {
        /// Of what.
        place: String,
        /// How many states the search made.
        states: u64,
    },
    /// The certificate claims that no choice is within the limits, but the smallest options are.
    #[error("{place}: claims to be below the minimum, but the smallest options are within every limit")]
    NotBelow {
        /// Of what.
        place: String,
    },
}

/// Checks a certificate. `text` is the document, `states` the limit of states that the search for a better choice may make for
/// each answer. Returns what the check proved of each answer.
///
/// # Errors
/// The first error in the certificate.
pub fn check(text: &str, states: u64) -> Result<Vec<Checked>, CertificateError> {
    let document: Document = serde_json::from_str(text).map_err(|error| CertificateError::Form {
        message: error.to_string(),
    })?;
    if ![SCHEMA, SCHEMA_1].contains(&document.schema.as_str()) {
        return Err(CertificateError::Form {
            message: format!("found `{}`", document.schema),
        });
    }
    let problem = &document.problem;
    if (document.schema == SCHEMA) != problem.losses.is_some() {
        return Err(CertificateError::Form {
            message: format!("`losses` is a field of `{SCHEMA}`"),
        });
    }
    well_formed(problem)?;
    check_base(problem)?;
    let digest = document.digest_of_text();
    same("the document", "digest", &document.digest, &digest)?;
    let answers = document.answers.iter().enumerate();
    answers
        .map(|(at, answer)| check_answer(problem, answer, &format!("answer {}", at + 1), states))
        .collect()
}

fn same<T: PartialEq + ToString + ?Sized>(
    place: &str,
    fact: &'static str,
    stated: &T,
    found: &T,
) -> Result<(), CertificateError> {
    if stated == found {
        Ok(())
    } else {
        Err(CertificateError::Fact {
            place: place.to_owned(),
            fact,
            stated: stated.to_string(),
            found: found.to_string(),
        })
    }
}

/// Checks that names tell things apart, that every option says what it uses, and that no sum can overflow.
fn well_formed(problem: &Problem) -> Result<(), CertificateError> {
    let wrong = |message: String| Err(CertificateError::Problem { message });
    if problem.capacities.is_empty() {
        return wrong("no capacity".to_owned());
    }
    let mut names = BTreeSet::new();
    let mut losses = 0_i128;
    let mut uses: Vec<i128> = problem
        .capacities
        .iter()
        .map(|capacity| i128::from(capacity.constant))
        .collect();
    for group in &problem.groups {
        let name = &group.name;
        if !names.insert(name) {
            return wrong(format!("two groups are named `{name}`"));
        }
        if group.options.is_empty() {
            return wrong(format!("group `{name}` has no options"));
        }
        let mut options = BTreeSet::new();
        for option in &group.options {
            if !options.insert(&option.name) {
                return wrong(format!("group `{name}` has two options `{}`", option.name));
            }
            if option.uses.len() != problem.capacities.len() {
                return wrong(format!(
                    "option `{}` of group `{name}` names {} uses for {} capacities",
                    option.name,
                    option.uses.len(),
                    problem.capacities.len()
                ));
            }
        }
        let largest = |of: &dyn Fn(&Choice) -> i128| group.options.iter().map(of).max().unwrap_or(0);
        losses += largest(&|option| i128::from(option.loss).abs());
        for (at, sum) in uses.iter_mut().enumerate() {
            *sum += largest(&|option| i128::from(option.uses[at]));
        }
    }
    if losses > MOST || uses.iter().any(|sum| *sum > MOST) {
        return wrong("losses or uses add up to more than 2^62".to_owned());
    }
    Ok(())
}

/// Checks that there is a base exactly where losses are differences, and that its options have the loss 0.
fn check_base(problem: &Problem) -> Result<(), CertificateError> {
    let wrong = |message: String| Err(CertificateError::Problem { message });
    let base = match (problem.losses, &problem.base) {
        (Some(Losses::Difference), Some(base)) => base,
        (Some(Losses::Difference), None) => {
            return wrong("its losses are differences, and it has no `base`".to_owned());
        }
        (_, Some(_)) => return wrong("it has a `base`, and its losses are not differences".to_owned()),
        (_, None) => return Ok(()),
    };
    if base.choice.len() != problem.groups.len() {
        let (chosen, groups) = (base.choice.len(), problem.groups.len());
        return wrong(format!("`base` has {chosen} options for {groups} groups"));
    }
    for (group, name) in problem.groups.iter().zip(&base.choice) {
        match group.options.iter().find(|option| option.name == *name) {
            Some(option) if option.loss == 0 => {}
            Some(option) => {
                let (group, loss) = (&group.name, option.loss);
                return wrong(format!(
                    "option `{name}` of group `{group}` is the one of `base`, and has the difference {loss} to itself"
                ));
            }
            None => {
                return wrong(format!(
                    "group `{}` has no option `{name}`, which `base` has",
                    group.name
                ));
            }
        }
    }
    if figure(&base.loss).is_none() {
        return wrong(format!(
            "the loss of `base` is `{}`, which is no finite number",
            base.loss
        ));
    }
    Ok(())
}

/// Reads a figure: the shortest text that gives this finite number.
fn figure(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    (number.is_finite() && format!("{number:e}") == text).then_some(number)
}

/// Returns the loss that differences predict for an answer; `None` where losses are absolute.
fn predicted_of(
    problem: &Problem,
    answer: &Answer,
    place: &str,
    loss: i128,
) -> Result<Option<Predicted>, CertificateError> {
    let stated = answer.predicted.as_deref().unwrap_or("null");
    let Some(base) = &problem.base else {
        same(place, "predicted", stated, "null")?;
        return Ok(None);
    };
    let pairs = answer.choice.iter().zip(&base.choice);
    let changes = pairs.filter(|(own, base)| own != base).count();
    // Exponents of certificates are small enough for a power of two to be exact.
    let exponent = problem.unit_exponent;
    if !(-1000..=1000).contains(&exponent) {
        let message = format!("a unit of two to the power of {} is not possible", -exponent);
        return Err(CertificateError::Problem { message });
    }
    let unit = f64::from_bits(((1023 - exponent) as u64) << 52);
    let penalties = i128::from(base.penalty) * changes as i128;
    let base = figure(&base.loss).unwrap_or(f64::NAN);
    let predicted = Predicted {
        loss: base + (loss - penalties) as f64 * unit,
        base,
        changes,
    };
    same(place, "predicted", stated, format!("{:e}", predicted.loss).as_str())?;
    Ok(Some(predicted))
}

fn check_answer(problem: &Problem, answer: &Answer, place: &str, states: u64) -> Result<Checked, CertificateError> {
    let choice_wrong = |message: String| CertificateError::Choice {
        place: place.to_owned(),
        message,
    };
    let count = problem.capacities.len();
    for (what, found) in [
        ("limits", answer.limits.len()),
        ("uses", answer.uses.len()),
        ("multipliers", answer.multipliers.numerators.len()),
    ] {
        if found != count {
            return Err(choice_wrong(format!("{found} {what} for {count} capacities")));
        }
    }
    if answer.choice.len() != problem.groups.len() {
        return Err(choice_wrong(format!(
            "{} options are chosen for {} groups",
            answer.choice.len(),
            problem.groups.len()
        )));
    }

    let mut loss = 0_i128;
    let mut uses: Vec<i128> = problem
        .capacities
        .iter()
        .map(|capacity| i128::from(capacity.constant))
        .collect();
    for (group, name) in problem.groups.iter().zip(&answer.choice) {
        let chosen = group.options.iter().find(|option| option.name == *name);
        let chosen = chosen.ok_or_else(|| choice_wrong(format!("group `{}` has no option `{name}`", group.name)))?;
        loss += i128::from(chosen.loss);
        for (sum, use_) in uses.iter_mut().zip(&chosen.uses) {
            *sum += i128::from(*use_);
        }
    }
    same(place, "loss", &i128::from(answer.loss), &loss)?;
    for (stated, found) in answer.uses.iter().zip(&uses) {
        same(place, "uses", &i128::from(*stated), found)?;
    }
    let predicted = predicted_of(problem, answer, place, loss)?;

    let (bound, reduced) = bound_of(problem, answer, place)?;
    same(place, "bound", answer.bound.as_str(), bound.to_string().as_str())?;
    let denominator = i128::from(answer.multipliers.denominator);
    // The loss is an integer, so the bound can be rounded up.
    let least = -((-bound).div_euclid(denominator));
    same(place, "least", &i128::from(answer.least), &least)?;
    let open = (loss - least).max(0);
    let verdict = match answer.claim {
        Claim::BelowMinimum => {
            below_minimum(problem, answer, place, loss, &uses)?;
            same(place, "gap", &i128::from(answer.gap), &open)?;
            Verdict::BelowMinimum
        }
        Claim::Gap => {
            within(problem, answer, place, &uses)?;
            same(place, "gap", &i128::from(answer.gap), &open)?;
            Verdict::Gap { gap: answer.gap }
        }
        Claim::Optimal => {
            within(problem, answer, place, &uses)?;
            same(place, "gap", &i128::from(answer.gap), &0)?;
            let budgets: Vec<i128> = budgets(problem, answer);
            let slack = denominator * (loss - 1) - bound;
            match better_than(loss, problem, &budgets, &reduced, slack, states) {
                Found::Nothing => Verdict::Optimal,
                Found::Better(better) => {
                    return Err(CertificateError::NotOptimal {
                        place: place.to_owned(),
                        loss: answer.loss,
                        better,
                    });
                }
                Found::TooMany => {
                    return Err(CertificateError::NotShown {
                        place: place.to_owned(),
                        states,
                    });
                }
            }
        }
    };
    Ok(Checked {
        verdict,
        limits: answer.limits.clone(),
        uses: answer.uses.clone(),
        loss: answer.loss,
        unit_exponent: problem.unit_exponent,
        losses: problem.losses,
        predicted,
    })
}

/// Returns what is left of each limit for the groups. A limit above everything that the options can use has no effect.
fn budgets(problem: &Problem, answer: &Answer) -> Vec<i128> {
    let limits = answer.limits.iter().zip(&problem.capacities);
    limits
        .map(|(limit, capacity)| i128::from(*limit).min(MOST) - i128::from(capacity.constant))
        .collect()
}

/// Returns the bound of the stated multipliers times their denominator, and the reduced cost of every option.
fn bound_of(problem: &Problem, answer: &Answer, place: &str) -> Result<(i128, Vec<Vec<i128>>), CertificateError> {
    let prices = &answer.multipliers.numerators;
    let denominator = answer.multipliers.denominator;
    let refused = |message: &str| CertificateError::Choice {
        place: place.to_owned(),
        message: format!("`multipliers`: {message}"),
    };
    if denominator == 0 {
        return Err(refused("the denominator is 0"));
    }
    let too_large = || refused("the numbers are too large to compute with");
    let mut common = denominator;
    for price in prices {
        let mut other = *price;
        while other > 0 {
            (common, other) = (other, common % other);
        }
    }
    if common != 1 {
        return Err(refused("the fractions are not in lowest terms"));
    }
    let cost = |option: &Choice| -> Option<i128> {
        let mut cost = i128::from(denominator).checked_mul(i128::from(option.loss))?;
        for (price, use_) in prices.iter().zip(&option.uses) {
            cost = cost.checked_add(i128::from(*price).checked_mul(i128::from(*use_))?)?;
        }
        Some(cost)
    };
    let mut bound = 0_i128;
    let mut reduced = Vec::with_capacity(problem.groups.len());
    for group in &problem.groups {
        let costs: Option<Vec<i128>> = group.options.iter().map(cost).collect();
        let mut costs = costs.ok_or_else(too_large)?;
        let least = costs.iter().copied().min().unwrap_or(0);
        bound = bound.checked_add(least).ok_or_else(too_large)?;
        for cost in &mut costs {
            *cost = cost.checked_sub(least).ok_or_else(too_large)?;
        }
        reduced.push(costs);
    }
    for (price, budget) in prices.iter().zip(budgets(problem, answer)) {
        let paid = i128::from(*price).checked_mul(budget).ok_or_else(too_large)?;
        bound = bound.checked_sub(paid).ok_or_else(too_large)?;
    }
    // The sums of reduced costs and the slack are of this size.
    let largest = i128::from(denominator).checked_mul(MOST);
    if largest.is_none() || bound.unsigned_abs() > 1 << 126 {
        return Err(too_large());
    }
    Ok((bound, reduced))
}

fn within(problem: &Problem, answer: &Answer, place: &str, uses: &[i128]) -> Result<(), CertificateError> {
    let capacities = problem.capacities.iter().zip(&answer.limits).zip(uses);
    for ((capacity, limit), used) in capacities {
        if *used > i128::from(*limit) {
            return Err(CertificateError::OverLimit {
                place: place.to_owned(),
                capacity: capacity.name.clone(),
                limit: *limit,
                used: *used,
            });
        }
    }
    Ok(())
}

fn below_minimum(
    problem: &Problem,
    answer: &Answer,
    place: &str,
    loss: i128,
    uses: &[i128],
) -> Result<(), CertificateError> {
    let least_of = |capacity: usize| -> i128 {
        let constant = i128::from(problem.capacities[capacity].constant);
        let groups = problem.groups.iter();
        let least = groups.map(|group| {
            group
                .options
                .iter()
                .map(|option| i128::from(option.uses[capacity]))
                .min()
        });
        constant + least.map(Option::unwrap_or_default).sum::<i128>()
    };
    let mut limits = answer.limits.iter().enumerate();
    if limits.all(|(capacity, limit)| least_of(capacity) <= i128::from(*limit)) {
        return Err(CertificateError::NotBelow {
            place: place.to_owned(),
        });
    }
    same(place, "uses", &uses[0], &least_of(0))?;
    let cheapest = problem.groups.iter().map(|group| {
        let smallest = group.options.iter().map(|option| (option.uses[0], option.loss)).min();
        i128::from(smallest.map_or(0, |(_, loss)| loss))
    });
    same(place, "loss", &loss, &cheapest.sum())
}
