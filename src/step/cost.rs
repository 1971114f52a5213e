//! Rough costs of nodes, for the order in which a build starts them. A build does not depend on them in any other way.
//!
//! Costs are milliseconds on a machine with assumed speeds. On other machines all are wrong by about the same factor, and their
//! order stays the same.

use crate::graph::Node;
use crate::graph::NodeId;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Pool;
use crate::step::kind_of;
use crate::step::space::Headers;

/// Bytes that are read and hashed in a millisecond.
const HASHED: u64 = 1_000_000;
/// Bytes of a source that are quantized, or compared with their quantized bytes, in a millisecond.
const QUANTIZED: u64 = 300_000;
/// Bytes of a model, times tokens, that are computed in a millisecond. A weight of two bytes needs two operations for each token.
const COMPUTED: u128 = 200_000_000;
/// Bytes of text in a token, on average.
const BYTES_PER_TOKEN: u64 = 4;

/// Returns the cost of reading and hashing bytes.
pub(super) fn hashing(bytes: u64) -> u64 {
    bytes / HASHED
}

/// Returns the cost of quantizing so many bytes of a source.
pub(super) fn quantizing(bytes: u64) -> u64 {
    bytes / QUANTIZED
}

/// Returns the cost of running a model of so many bytes on tokens.
pub(super) fn computing(bytes: u64, tokens: u64) -> u64 {
    let cost = u128::from(bytes) * u128::from(tokens) / COMPUTED;
    u64::try_from(cost).unwrap_or(u64::MAX)
}

/// Returns the cost of running a model on chunks of a text; `chunks` is the maximum number of them.
pub(super) fn reading(
    (model, corpus): (&SourceName, &StepId),
    context: u32,
    chunks: Option<u64>,
    env: &Env<'_>,
    headers: &mut Headers<'_>,
) -> u64 {
    let bytes = headers.file_bytes(&NodeId::Source(model.as_str().to_owned()), env);
    let text = headers.file_bytes(&NodeId::Step(corpus.clone()), env);
    let most = chunks.map_or(u64::MAX, |chunks| chunks.saturating_mul(u64::from(context)));
    computing(bytes, (text / BYTES_PER_TOKEN).min(most))
}

/// Returns the cost of a node in milliseconds, at least 1: what its kind estimates, or what it took when it ran last, if that is more.
/// It may have taken less because it found most of its smaller actions in the store.
pub fn of(node: &Node, env: &Env<'_>, headers: &mut Headers<'_>) -> u64 {
    let kind = kind_of(node);
    let estimated = kind.cost(node, env, headers);
    let recorded = match kind.pool(node) {
        Pool::Light => None,
        Pool::Disk | Pool::Model => recorded(node, env),
    };
    estimated.max(recorded.unwrap_or_default()).max(1)
}

fn recorded(node: &Node, env: &Env<'_>) -> Option<u64> {
    let last = env.store.last(&env.recipe, &node.id.to_string())?;
    Some(env.store.lookup_shallow(&last.action).ok()??.cost_ms)
}
