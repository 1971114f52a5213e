use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn task(pool: Pool, cost: u64, inputs: &[usize], is_wanted: bool) -> Task {
    Task {
        pool,
        cost,
        inputs: inputs.to_vec(),
        is_wanted,
    }
}

/// What may run at once: model steps, disk steps, steps in all.
#[derive(Debug, Clone, Copy)]
struct Limits {
    models: usize,
    disk: usize,
    steps: usize,
}

const USUAL: Limits = Limits {
    models: 1,
    disk: 2,
    steps: usize::MAX,
};

impl Limits {
    fn of(self, pool: Pool) -> usize {
        match pool {
            Pool::Model => self.models,
            Pool::Disk => self.disk,
            Pool::Light => 8,
        }
    }
}

/// When each node starts and ends, if each takes `taken` of its place.
fn run(tasks: &[Task], limits: Limits, taken: impl Fn(usize) -> u64) -> Vec<(u64, u64)> {
    let mut states: Vec<State> = vec![State::Waiting; tasks.len()];
    let order = Order::new(tasks.to_vec(), &states);
    let mut times = vec![None; tasks.len()];
    let mut running: BTreeMap<usize, u64> = BTreeMap::new();
    let mut now = 0;
    loop {
        for node in 0..tasks.len() {
            let has_inputs = tasks[node].inputs.iter().all(|&input| states[input] == State::Done);
            if states[node] == State::Waiting && has_inputs {
                states[node] = State::Ready;
            }
        }
        loop {
            let of = |pool: Pool| running.keys().filter(|&&node| tasks[node].pool == pool).count();
            let free = |pool: Pool| (limits.of(pool) - of(pool)).min(limits.steps - running.len());
            let Some(node) = order.next(&states, free) else { break };
            assert_eq!(states[node], State::Ready);
            assert!(free(tasks[node].pool) > 0, "the pool is not full");
            states[node] = State::Running;
            let end = now + taken(node);
            assert_eq!(times[node].replace((now, end)), None, "a node runs once");
            running.insert(node, end);
        }
        let Some((&node, &end)) = running.iter().min_by_key(|(node, end)| (**end, **node)) else {
            break;
        };
        now = end;
        running.remove(&node);
        states[node] = State::Done;
    }
    times.into_iter().map(|time| time.expect("every node runs")).collect()
}

fn as_estimated(tasks: &[Task]) -> impl Fn(usize) -> u64 {
    |node| tasks[node].cost
}

/// A source, a text, two mixes with an evaluation each, and a policy that measures for long.
fn mixes_and_a_search() -> Vec<Task> {
    vec![
        task(Pool::Disk, 10, &[], false),
        // The search is ready first, and first in the graph.
        task(Pool::Model, 10_000, &[0], false),
        task(Pool::Disk, 20, &[0, 1], true),
        task(Pool::Model, 15, &[2], true),
        task(Pool::Disk, 20, &[0], true),
        task(Pool::Model, 15, &[4], true),
        task(Pool::Disk, 20, &[0], true),
        task(Pool::Model, 15, &[6], true),
        task(Pool::Light, 1, &[3, 5, 7], true),
    ]
}

#[test]
fn mixes_are_evaluated_before_a_long_search_starts() {
    for steps in [1, 2, usize::MAX] {
        let tasks = mixes_and_a_search();
        let times = run(&tasks, Limits { steps, ..USUAL }, as_estimated(&tasks));
        let search = times[1];
        assert!(times[5].1 <= search.0 && times[7].1 <= search.0, "{steps}: {times:?}");
        assert!(search.0 < 200);
        assert!(times[3].0 >= search.1);
    }
}

#[test]
fn a_search_does_not_wait_for_what_takes_about_as_long() {
    let mut tasks = mixes_and_a_search();
    for mix in [4, 6] {
        tasks[mix].cost = 9_000;
    }
    let times = run(&tasks, USUAL, as_estimated(&tasks));
    assert_eq!(times[1].0, 10, "{times:?}");
}

#[test]
fn a_search_does_not_wait_where_another_model_may_be_held() {
    let tasks = mixes_and_a_search();
    let times = run(&tasks, Limits { models: 2, ..USUAL }, as_estimated(&tasks));
    assert_eq!(times[1].0, 10, "{times:?}");
    assert!(times[7].1 < 100, "{times:?}");
}

#[test]
fn the_cheapest_result_is_first_and_shared_work_counts_once() {
    let tasks = [
        task(Pool::Model, 50, &[], false),
        task(Pool::Model, 10, &[0], true),
        task(Pool::Model, 55, &[], true),
        task(Pool::Model, 20, &[0], true),
    ];
    let order = Order::new(tasks.to_vec(), &[State::Waiting; 4]);
    // 55; then 50 + 10; then 20 more.
    assert_eq!(order.sorted, [2, 0, 1, 3]);
    // What is done does not count.
    let order = Order::new(
        tasks.to_vec(),
        &[State::Done, State::Waiting, State::Waiting, State::Waiting],
    );
    assert_eq!(order.sorted, [0, 1, 3, 2]);
}

#[test]
fn equal_costs_start_in_graph_order_and_the_longer_path_before_both() {
    let leaf = |cost| task(Pool::Light, cost, &[], false);
    let mut tasks = vec![leaf(1), leaf(1), leaf(1), leaf(2)];
    tasks.push(task(Pool::Light, 1, &[0, 1, 2, 3], true));
    let order = Order::new(tasks, &[State::Waiting; 5]);
    assert_eq!(order.sorted, [3, 0, 1, 2, 4]);
}

#[test]
fn a_table_waits_for_the_open_part_before_it() {
    let tasks = mixes_and_a_search();
    let mut states = vec![State::Done; tasks.len()];
    for open in [1, 2, 3, 8] {
        states[open] = State::Waiting;
    }
    let order = Order::new(tasks, &states);
    assert!(order.any_open_before(3, &states, &|node| node == 1));
    assert!(!order.any_open_before(5, &states, &|node| node == 1));
    states[1] = State::Done;
    assert!(!order.any_open_before(3, &states, &|node| node == 1));
}

/// Random graphs of up to 24 nodes.
fn graphs() -> impl Strategy<Value = Vec<Task>> {
    let node = (
        prop_oneof![Just(Pool::Model), Just(Pool::Disk), Just(Pool::Light)],
        prop_oneof![0..20_u64, 0..5_000_u64, Just(u64::MAX)],
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        any::<bool>(),
    );
    prop::collection::vec(node, 1..24).prop_map(|nodes| {
        let tasks = nodes
            .into_iter()
            .enumerate()
            .map(|(at, (pool, cost, inputs, is_wanted))| {
                let mut inputs: Vec<usize> = match at {
                    0 => Vec::new(),
                    _ => inputs.into_iter().map(|input| input.index(at)).collect(),
                };
                inputs.sort_unstable();
                inputs.dedup();
                task(pool, cost, &inputs, is_wanted)
            });
        tasks.collect()
    })
}

proptest! {
    /// `run` itself asserts that a node runs once and only where its pool has space.
    #[test]
    fn every_node_runs_once_after_its_inputs(
        tasks in graphs(),
        models in 1..3_usize,
        disk in 1..3_usize,
        steps in prop_oneof![Just(1_usize), Just(2), Just(usize::MAX)],
        taken in prop::collection::vec(0..3_000_u64, 24),
    ) {
        let limits = Limits { models, disk, steps };
        // Nodes take other times than estimated.
        let times = run(&tasks, limits, |node| taken[node]);
        for (node, task) in tasks.iter().enumerate() {
            for &input in &task.inputs {
                prop_assert!(times[input].1 <= times[node].0);
            }
        }
        prop_assert_eq!(times, run(&tasks, limits, |node| taken[node]));
    }
}
