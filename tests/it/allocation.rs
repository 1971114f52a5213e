//! The solver of the multiple-choice knapsack: known optima, brute force, size, order of the input.

use std::time::Instant;

use forge::allocation::Answer;
use forge::allocation::Candidate;
use forge::allocation::Capacity;
use forge::allocation::Effort;
use forge::allocation::Group;
use forge::allocation::Problem;
use forge::allocation::ProblemError;
use forge::allocation::Scale;
use forge::allocation::Solver;
use forge::allocation::Status;
use proptest::prelude::*;

/// Groups of options of a loss and uses.
type Plain = Vec<Vec<(i64, Vec<u64>)>>;

pub(crate) fn problem_of(constants: &[u64], groups: &Plain) -> Problem {
    let capacities = constants.iter().enumerate().map(|(at, constant)| Capacity {
        name: format!("capacity {at}"),
        constant: *constant,
    });
    let groups = groups.iter().enumerate().map(|(at, options)| Group {
        name: format!("group {at:04}"),
        options: options
            .iter()
            .enumerate()
            .map(|(at, (loss, uses))| Candidate {
                name: format!("option {at:02}"),
                loss: *loss,
                uses: uses.clone(),
            })
            .collect(),
    });
    Problem::new(capacities.collect(), groups.collect()).unwrap()
}

fn solve(problem: &Problem, limits: &[u64]) -> Answer {
    Solver::new(problem).solve(limits, &Effort::default()).unwrap()
}

/// Numbers from a seed: the generator of Sebastiano Vigna's SplitMix64.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, not including, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A line of `tests/vectors/knapsacks.txt`.
struct Known {
    name: String,
    limit: u64,
    optimum: Option<(i64, u64)>,
    bound: Option<(i128, i128)>,
    least_bytes: u64,
    groups: Plain,
}

fn known() -> Vec<Known> {
    let text = include_str!("../vectors/knapsacks.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let option = |text: &str| {
                let (bytes, loss) = text.split_once(':').unwrap();
                (loss.parse().unwrap(), vec![bytes.parse().unwrap()])
            };
            let group = |text: &str| text.split(',').map(option).collect();
            let there = fields[2] != "-";
            Known {
                name: fields[0].to_owned(),
                limit: fields[1].parse().unwrap(),
                optimum: there.then(|| (fields[2].parse().unwrap(), fields[3].parse().unwrap())),
                bound: there.then(|| {
                    let (numerator, denominator) = fields[4].split_once('/').unwrap();
                    (numerator.parse().unwrap(), denominator.parse().unwrap())
                }),
                least_bytes: fields[5].parse().unwrap(),
                groups: fields[6].split('|').map(group).collect(),
            }
        })
        .collect()
}

#[test]
fn known_optima_are_found_and_proved() {
    let known = known();
    assert_eq!(known.len(), 39);
    for known in known {
        let problem = problem_of(&[0], &known.groups);
        let answer = solve(&problem, &[known.limit]);
        assert_eq!(problem.range(0).unwrap().0, known.least_bytes, "{}", known.name);
        let Some(optimum) = known.optimum else {
            assert_eq!(
                (answer.status, answer.uses[0]),
                (Status::BelowMinimum, known.least_bytes),
                "{}",
                known.name
            );
            continue;
        };
        assert_eq!(answer.status, Status::Optimal, "{}", known.name);
        assert_eq!((answer.loss, answer.uses[0]), optimum, "{}", known.name);
        let (numerator, denominator) = known.bound.unwrap();
        assert_eq!(
            answer.bound * denominator,
            numerator * i128::from(answer.multipliers.denominator),
            "{}: the bound of the relaxation",
            known.name
        );
    }
}

/// Least loss, then least uses of the first capacity, by trying everything.
fn by_force(constants: &[u64], groups: &Plain, limits: &[u64]) -> Option<(i64, u64)> {
    fn go(groups: &[Vec<(i64, Vec<u64>)>], loss: i64, uses: &[u64], limits: &[u64], best: &mut Option<(i64, u64)>) {
        if uses.iter().zip(limits).any(|(used, limit)| used > limit) {
            return;
        }
        let Some((first, rest)) = groups.split_first() else {
            let found = (loss, uses[0]);
            *best = Some(best.map_or(found, |best| best.min(found)));
            return;
        };
        for (more, added) in first {
            let uses: Vec<u64> = uses.iter().zip(added).map(|(a, b)| a + b).collect();
            go(rest, loss + more, &uses, limits, best);
        }
    }
    let mut best = None;
    go(groups, 0, constants, limits, &mut best);
    best
}

/// Small problems of all kinds: narrow ranges give ties, wide ones none.
fn plain(capacities: usize) -> impl Strategy<Value = (Vec<u64>, Plain)> {
    let option = move |losses: i64, uses: u64| (-losses / 4..losses, prop::collection::vec(0..uses, capacities));
    let groups = move |(losses, uses): (i64, u64)| {
        prop::collection::vec(prop::collection::vec(option(losses, uses), 1..6), 1..7)
    };
    let ranges = prop_oneof![
        Just((5, 6)),
        Just((1000, 1000)),
        Just((4, 1_000_000_000)),
        Just((1 << 56, 1 << 50))
    ];
    (
        prop::collection::vec(0..1000_u64, capacities),
        ranges.prop_flat_map(groups),
    )
}

fn limit_at(problem: &Problem, capacity: usize, share: f64) -> u64 {
    let (least, most) = problem.range(capacity).unwrap();
    least + ((most - least) as f64 * share) as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn one_capacity_agrees_with_brute_force((constants, groups) in plain(1), share in -0.05..1.1_f64) {
        let problem = problem_of(&constants, &groups);
        let limit = if share < 0.0 {
            problem.range(0).unwrap().0.saturating_sub(1)
        } else {
            limit_at(&problem, 0, share)
        };
        let answer = solve(&problem, &[limit]);
        match by_force(&constants, &groups, &[limit]) {
            None => {
                prop_assert_eq!(answer.status, Status::BelowMinimum);
                prop_assert_eq!(answer.uses[0], problem.range(0).unwrap().0);
            }
            Some(best) => {
                prop_assert_eq!(answer.status, Status::Optimal);
                prop_assert_eq!((answer.loss, answer.uses[0]), best);
                prop_assert!(answer.least() <= answer.loss);
            }
        }
    }

    #[test]
    fn several_capacities_agree_with_brute_force(
        (constants, groups) in (2..4_usize).prop_flat_map(plain),
        shares in prop::collection::vec(0.0..1.0_f64, 3),
    ) {
        let problem = problem_of(&constants, &groups);
        let limits: Vec<u64> = (0..constants.len()).map(|at| limit_at(&problem, at, shares[at])).collect();
        let answer = solve(&problem, &limits);
        match by_force(&constants, &groups, &limits) {
            None => prop_assert_eq!(answer.status, Status::NothingFound),
            Some((loss, _)) => {
                prop_assert_eq!(answer.status, Status::Optimal);
                prop_assert_eq!(answer.loss, loss);
                prop_assert!(answer.least() <= loss);
                prop_assert!(answer.uses.iter().zip(&limits).all(|(used, limit)| used <= limit));
            }
        }
    }

    #[test]
    fn the_order_of_the_input_does_not_matter((constants, groups) in plain(1), share in 0.0..1.0_f64, seed: u64) {
        let problem = problem_of(&constants, &groups);
        let limit = limit_at(&problem, 0, share);
        let mut numbers = Numbers(seed);
        let mut shuffled: Vec<Group> = problem.groups().to_vec();
        for group in &mut shuffled {
            group.options.sort_by_cached_key(|_| numbers.next());
        }
        shuffled.sort_by_cached_key(|_| numbers.next());
        let shuffled = Problem::new(problem.capacities().to_vec(), shuffled).unwrap();
        prop_assert_eq!(solve(&problem, &[limit]), solve(&shuffled, &[limit]));
    }
}

/// Sizes and losses as models have them: matrices of some shapes, types of 1.6 to 16 bits, losses that fall with the bits, by
/// rank-one sensitivities and noise of each group and type.
pub(crate) fn like_a_model(groups: usize, types: usize, noise: f64, seed: u64) -> Plain {
    let mut numbers = Numbers(seed);
    let shapes = [4096 * 4096, 4096 * 1024, 4096 * 14336, 14336 * 4096, 2048 * 2048];
    let mut losses = Vec::new();
    let mut sizes = Vec::new();
    for group in 0..groups {
        let elements = shapes[group % shapes.len()];
        let sensitivity = 10_f64.powf(numbers.unit() * 4.0 - 6.0);
        for at in 0..types {
            let bits = 1.5625 + 14.4375 * at as f64 / (types - 1) as f64;
            losses
                .push(sensitivity * 2_f64.powf(-1.7 * bits) * (1.0 + noise * (numbers.unit() - 0.5)) * elements as f64);
            sizes.push((f64::from(elements) * bits / 8.0) as u64 / 32 * 32);
        }
    }
    let scale = Scale::of(groups, losses.iter().copied()).unwrap();
    let options: Vec<(i64, Vec<u64>)> = losses
        .iter()
        .zip(sizes)
        .map(|(loss, size)| (scale.units(*loss), vec![size]))
        .collect();
    options.chunks(types).map(<[_]>::to_vec).collect()
}

#[test]
fn a_thousand_groups_of_twenty_types_are_closed() {
    for (noise, seed) in [(0.0, 1), (0.3, 2), (1.0, 3), (1.9, 4)] {
        let problem = problem_of(&[4096], &like_a_model(1000, 20, noise, seed));
        let begin = Instant::now();
        let solver = Solver::new(&problem);
        let prepared = begin.elapsed();
        for share in [0.02, 0.1, 0.3, 0.5, 0.9] {
            let limit = limit_at(&problem, 0, share);
            let begin = Instant::now();
            let answer = solver.solve(&[limit], &Effort::default()).unwrap();
            let gap = answer.relative_gap().unwrap();
            eprintln!(
                "noise {noise}, limit {share}: {:?}, gap {gap:e}, bound's gap {:e}, {} states, {:?} + {prepared:?}",
                answer.status,
                (answer.loss - answer.least()) as f64 / answer.loss as f64,
                answer.states,
                begin.elapsed(),
            );
            assert!(gap <= 1e-4, "noise {noise}, limit {share}: {gap}");
            assert!(answer.uses[0] <= limit);
        }
    }
}

#[test]
fn equal_groups_give_the_larger_options_to_the_first_by_name() {
    let options = vec![(90, vec![10]), (40, vec![20]), (0, vec![30])];
    let problem = problem_of(&[0], &vec![options; 300]);
    let answer = solve(&problem, &[300 * 20 + 35]);
    assert_eq!(answer.status, Status::Optimal);
    assert_eq!(answer.uses[0], 6030);
    assert!(
        answer.choice.windows(2).all(|pair| pair[0] >= pair[1]),
        "{:?}",
        answer.choice
    );
}

#[test]
fn of_equal_options_the_first_by_name_is_chosen() {
    let option = |name: &str| Candidate {
        name: name.to_owned(),
        loss: 7,
        uses: vec![64],
    };
    let group = Group {
        name: "g".to_owned(),
        options: vec![option("Q4_K"), option("IQ4_NL"), option("Q4_0")],
    };
    let capacity = Capacity {
        name: "file".to_owned(),
        constant: 0,
    };
    let problem = Problem::new(vec![capacity], vec![group]).unwrap();
    for limit in [0, 64, 1 << 40, u64::MAX] {
        let answer = solve(&problem, &[limit]);
        assert_eq!(problem.groups()[0].options[answer.choice[0]].name, "IQ4_NL");
        assert_eq!(answer.status == Status::BelowMinimum, limit < 64);
    }
}

#[test]
fn a_limited_search_reports_its_gap_and_does_not_depend_on_time() {
    let mut numbers = Numbers(9);
    // Bytes and loss nearly in proportion: the hardest kind.
    let groups: Plain = (0..60)
        .map(|_| {
            let option = |numbers: &mut Numbers| {
                let bytes = 1_000_000 + numbers.below(1_000_000);
                (
                    2_000_000 - bytes.cast_signed() + numbers.below(3).cast_signed(),
                    vec![bytes * 32],
                )
            };
            (0..20).map(|_| option(&mut numbers)).collect()
        })
        .collect();
    let problem = problem_of(&[0], &groups);
    let limit = limit_at(&problem, 0, 0.37) + 17;
    let solver = Solver::new(&problem);
    let with = |states, stop| {
        let effort = Effort { states, stop };
        solver.solve(&[limit], &effort).unwrap()
    };
    let short = with(100, None);
    assert_eq!(short.status, Status::Gap);
    assert!(short.gap() > 0 && short.loss >= short.least());
    assert_eq!(short, with(100, None));
    let stopped = with(1 << 20, Some(&(|| true)));
    assert_eq!((stopped.status, stopped.uses[0] <= limit), (Status::Gap, true));
    let full = solver.solve(&[limit], &Effort::default()).unwrap();
    assert!(full.loss <= short.loss);
    eprintln!("{:?}, {} states, gap {}", full.status, full.states, full.gap());
}

#[test]
fn several_capacities_at_size() {
    let plain = like_a_model(300, 12, 0.5, 7);
    // Half of the groups lie on a device of their own.
    let groups: Plain = plain
        .into_iter()
        .enumerate()
        .map(|(at, options)| {
            let on = |bytes: u64| {
                if at % 2 == 0 {
                    vec![bytes, bytes]
                } else {
                    vec![bytes, 0]
                }
            };
            options.into_iter().map(|(loss, uses)| (loss, on(uses[0]))).collect()
        })
        .collect();
    let problem = problem_of(&[4096, 1 << 30], &groups);
    let limits = [limit_at(&problem, 0, 0.3), limit_at(&problem, 1, 0.15)];
    let begin = Instant::now();
    let effort = Effort {
        states: 200_000,
        stop: None,
    };
    let answer = Solver::new(&problem).solve(&limits, &effort).unwrap();
    eprintln!(
        "{:?}, gap {:e}, {} states, {:?}",
        answer.status,
        answer.relative_gap().unwrap(),
        answer.states,
        begin.elapsed()
    );
    assert!(answer.uses.iter().zip(&limits).all(|(used, limit)| used <= limit));
    assert!(answer.relative_gap().unwrap() <= 5e-3);
    assert!(answer.multipliers.numerators.iter().all(|price| *price > 0));
}

#[test]
fn invalid_problems_are_rejected() {
    let capacity = |constant| Capacity {
        name: "file".to_owned(),
        constant,
    };
    let candidate = |name: &str, loss, uses: &[u64]| Candidate {
        name: name.to_owned(),
        loss,
        uses: uses.to_vec(),
    };
    let group = |name: &str, options: &[Candidate]| Group {
        name: name.to_owned(),
        options: options.to_vec(),
    };
    let fine = group("a", &[candidate("x", 1, &[1])]);
    let refused = |capacities: Vec<Capacity>, groups: Vec<Group>| Problem::new(capacities, groups).unwrap_err();
    assert_eq!(refused(vec![], vec![]), ProblemError::Capacities { found: 0 });
    let one = || vec![capacity(0)];
    assert!(matches!(
        refused(one(), vec![group("a", &[])]),
        ProblemError::NoOptions { .. }
    ));
    assert!(matches!(
        refused(one(), vec![fine.clone(), fine.clone()]),
        ProblemError::GroupTwice { .. }
    ));
    let twice = group("a", &[candidate("x", 1, &[1]), candidate("x", 2, &[1])]);
    assert!(matches!(refused(one(), vec![twice]), ProblemError::OptionTwice { .. }));
    let short = group("a", &[candidate("x", 1, &[])]);
    assert!(matches!(refused(one(), vec![short]), ProblemError::Uses { .. }));
    let dear = group("a", &[candidate("x", i64::MIN, &[1])]);
    assert_eq!(refused(one(), vec![dear]), ProblemError::LossTooLarge);
    assert!(matches!(
        refused(vec![capacity(u64::MAX)], vec![fine.clone()]),
        ProblemError::UseTooLarge { .. }
    ));
    let problem = Problem::new(one(), vec![fine]).unwrap();
    assert!(Solver::new(&problem).solve(&[1, 2], &Effort::default()).is_err());
    let empty = Problem::new(one(), vec![]).unwrap();
    assert_eq!(solve(&empty, &[5]).status, Status::Optimal);
}
