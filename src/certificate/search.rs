//! Is there anything better? Dynamic programming over the options that a bound leaves, group by group.

use std::collections::BTreeMap;

use crate::certificate::document::Problem;

/// The maximum number of states of a search.
pub const DEFAULT_STATES: u64 = 50_000_000;

/// What a search finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// No assignment within the limits has less loss.
    Nothing,
    /// There is one of this loss.
    Better(i128),
    /// It would have to look at more states than it may.
    TooMany,
}

/// Looks for an assignment within the limits that has less loss than `loss`. `reduced` holds the reduced cost of every option
/// of every group at some multipliers, and `slack` is what the denominator times the next smaller loss leaves above the bound
/// there: an assignment with less loss has reduced costs that add up to at most `slack`.
pub(crate) fn better_than(
    loss: i128,
    problem: &Problem,
    budgets: &[i128],
    reduced: &[Vec<i128>],
    slack: i128,
    states: u64,
) -> Found {
    // The options that are left, by group; groups with one left first, so that they cost one state each.
    let mut left: Vec<Vec<(i128, i128, &[u64])>> = Vec::new();
    for (group, costs) in problem.groups.iter().zip(reduced) {
        let options = group.options.iter().zip(costs);
        let options: Vec<_> = options
            .filter(|(_, cost)| **cost <= slack)
            .map(|(option, cost)| (*cost, i128::from(option.loss), option.uses.as_slice()))
            .collect();
        if options.is_empty() {
            return Found::Nothing;
        }
        left.push(options);
    }
    left.sort_by_key(Vec::len);

    // What the groups from here on use at least, and lose at least.
    let mut ahead = vec![(0_i128, vec![0_i128; budgets.len()]); left.len() + 1];
    for at in (0..left.len()).rev() {
        let (loss, uses) = &ahead[at + 1];
        let least_loss = left[at].iter().map(|(_, loss, _)| *loss).min().unwrap_or(0);
        let least = |capacity: usize| {
            let uses = left[at].iter().map(|(_, _, uses)| i128::from(uses[capacity]));
            uses.min().unwrap_or(0)
        };
        let uses = uses.iter().enumerate().map(|(capacity, sum)| sum + least(capacity));
        ahead[at] = (loss + least_loss, uses.collect());
    }

    // For each total of uses, the least loss that reaches it, with the reduced costs so far. Loss and uses decide the
    // reduced costs, so of two ways to the same uses the one of less loss has less of both.
    let mut layer: BTreeMap<Vec<i128>, (i128, i128)> = BTreeMap::from([(vec![0; budgets.len()], (0, 0))]);
    let mut made = 0_u64;
    for (options, (loss_ahead, uses_ahead)) in left.iter().zip(&ahead[1..]) {
        let mut next: BTreeMap<Vec<i128>, (i128, i128)> = BTreeMap::new();
        for (uses, (lost, spent)) in &layer {
            for (cost, more, added) in options {
                made += 1;
                if made > states {
                    return Found::TooMany;
                }
                let (lost, spent) = (lost + more, spent + cost);
                let uses: Vec<i128> = uses.iter().zip(*added).map(|(a, b)| a + i128::from(*b)).collect();
                let mut sums = uses.iter().zip(uses_ahead).zip(budgets);
                let fits = sums.all(|((used, ahead), budget)| used + ahead <= *budget);
                if spent <= slack && lost + loss_ahead < loss && fits {
                    let entry = next.entry(uses).or_insert((lost, spent));
                    *entry = (*entry).min((lost, spent));
                }
            }
        }
        if budgets.len() == 1 {
            // In the order of uses: one that loses no less than a smaller one is of no use.
            let mut least = i128::MAX;
            next.retain(|_, (lost, _)| {
                let kept = *lost < least;
                least = least.min(*lost);
                kept
            });
        }
        layer = next;
    }
    layer
        .values()
        .map(|(lost, _)| *lost)
        .min()
        .map_or(Found::Nothing, Found::Better)
}
