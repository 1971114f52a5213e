//! Expands policies and candidates in the order of their dependencies: a budget may be the size of another candidate.

use std::collections::HashSet;

use crate::method::Scope;
use crate::method::WrittenBudget;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Policy;
use crate::recipe::decl::Promote;
use crate::recipe::expand::Expansion;
use crate::recipe::model::Place;
use crate::recipe::model::PromoteStep;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepKind;
use crate::syntax::error::RecipeError;
use crate::syntax::sweep::joined;
use crate::syntax::words::section_words;

/// Returns the names of the candidates whose sizes a policy has as budgets.
fn sizes(policy: &Policy) -> impl Iterator<Item = (&str, &Place)> {
    let budgets = policy.budgets.iter().flat_map(|budgets| &budgets.values);
    budgets.filter_map(|(budget, _)| match budget {
        WrittenBudget::Candidate(name, place) => Some((name.as_str(), place)),
        WrittenBudget::Quantity(_) => None,
    })
}

/// Returns whether a candidate of this name can belong to a section: its only candidate, or one of its variants.
fn may_make(promote: &Decl<Promote>, candidate: &str) -> bool {
    let variant = candidate.strip_prefix(promote.name.as_str());
    variant.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Returns the names of sections.
fn names_of<'d, T>(decls: &[&'d Decl<T>]) -> HashSet<&'d str> {
    decls.iter().map(|decl| decl.name.as_str()).collect()
}

impl Expansion<'_> {
    /// Creates the steps of all policies and candidates. Each round creates those whose dependencies exist.
    pub(crate) fn policies_and_candidates(&mut self, decls: &Decls) {
        let mut policies: Vec<&Decl<Policy>> = decls.policies.iter().collect();
        let mut promotes: Vec<&Decl<Promote>> = decls.promotes.iter().collect();
        let sections: HashSet<&str> = names_of(&promotes);
        while !(policies.is_empty() && promotes.is_empty()) {
            let before = policies.len() + promotes.len();
            let unmade = names_of(&promotes);
            let (ready, waiting): (Vec<_>, Vec<_>) = policies
                .iter()
                .partition(|policy| sizes(&policy.body).all(|(name, _)| self.is_made(name, &sections, &unmade)));
            for policy in ready {
                self.policy(policy, decls);
            }
            policies = waiting;
            let unmade = names_of(&policies);
            let waits = |promote: &Decl<Promote>| {
                let mut named = promote.body.policy.values.iter();
                named.any(|(name, _)| unmade.contains(name.as_str()))
            };
            let (waiting, ready): (Vec<_>, Vec<_>) = promotes.iter().partition(|promote| waits(promote));
            for promote in ready {
                self.promote(promote);
            }
            promotes = waiting;
            if policies.len() + promotes.len() == before {
                self.stuck(&policies, &promotes, &sections);
                return;
            }
        }
    }

    /// Returns whether the candidates of a name exist. The name of a section takes precedence over that of a variant.
    fn is_made(&self, name: &str, sections: &HashSet<&str>, unmade: &HashSet<&str>) -> bool {
        if sections.contains(name) {
            !unmade.contains(name)
        } else {
            !self.candidate(name).is_empty()
        }
    }

    fn promote(&mut self, promote: &Decl<Promote>) {
        let policies = self.references(StepKind::Policy, &promote.body.policy);
        for row in self
            .rows(promote, StepKind::Promote, &[policies.len()])
            .into_iter()
            .flatten()
        {
            let choice = &policies[row[0]];
            let body = StepBody::Promote(PromoteStep {
                policy: choice.value.clone(),
                allow_requantize: promote.body.allow_requantize,
            });
            let variant = joined(std::slice::from_ref(&choice.part));
            self.push(StepKind::Promote, &promote.name, variant, body, &promote.place);
        }
    }

    /// Reports why policies cannot be expanded: they need a candidate that does not exist, or depend on each other.
    fn stuck(&mut self, policies: &[&Decl<Policy>], promotes: &[&Decl<Promote>], sections: &HashSet<&str>) {
        let unmade = names_of(promotes);
        // The first policy that each policy waits for, and the place of that reference.
        let mut links: Vec<Option<(usize, &Place)>> = Vec::new();
        for policy in policies {
            let mut link = None;
            for (name, place) in sizes(&policy.body) {
                if self.is_made(name, sections, &unmade) {
                    continue;
                }
                let exact = promotes.iter().find(|promote| promote.name == name);
                let maker = exact.or_else(|| promotes.iter().find(|promote| may_make(promote, name)));
                let next = maker.and_then(|maker| {
                    let mut named = maker.body.policy.values.iter();
                    named.find_map(|(name, _)| policies.iter().position(|policy| policy.name == *name))
                });
                match next {
                    Some(next) => {
                        link.get_or_insert((next, place));
                    }
                    None => self.unknown_candidate(&section_words("policy", &policy.name), name, place),
                }
            }
            links.push(link);
        }
        // Follow the links from every policy: a policy that is reached again is part of a cycle.
        let mut reported = vec![false; policies.len()];
        for start in 0..policies.len() {
            let mut path = vec![start];
            while let Some((next, _)) = path.last().and_then(|at| links[*at]) {
                let Some(from) = path.iter().position(|at| *at == next) else {
                    path.push(next);
                    continue;
                };
                let circle = &path[from..];
                if !circle.iter().any(|at| reported[*at]) {
                    for at in circle {
                        reported[*at] = true;
                    }
                    let named = circle.iter().filter_map(|at| {
                        let (_, place) = links[*at]?;
                        Some((format!("policy.{}", policies[*at].name), place.clone()))
                    });
                    let path: Vec<(String, Place)> = named.collect();
                    let first = path.iter().map(|(_, place)| place).min_by_key(|place| place.span);
                    let place = first.unwrap_or(&policies[start].place).clone();
                    self.errors.push(RecipeError::Cycle { place, path });
                }
                break;
            }
        }
    }
}
