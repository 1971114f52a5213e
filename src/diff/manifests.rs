//! Two manifests: outputs, recipes, sources, engines, actions, tensors. When and by which command they came to be is no
//! difference.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Part;
use super::Row;
use super::candidates::tensors;
use super::recipes;
use super::tensor::Tensor;
use crate::digest::BlobDigest;
use crate::manifest::Manifest;
use crate::manifest::Resource;

pub(super) fn compare(a: &Manifest, b: &Manifest) -> Vec<Part> {
    let files = |resources: &[Resource], by_node: bool| -> BTreeMap<String, String> {
        let named = resources.iter().map(|resource| {
            let node = resource.annotations.get("node").filter(|_| by_node);
            let name = node.map_or_else(|| resource.name.clone(), |node| format!("{node} {}", resource.name));
            let hash = resource.digest.get("blake3").cloned().unwrap_or_default();
            let bytes = resource.annotations.get("bytes").cloned().unwrap_or_default();
            (name, format!("{hash}:{bytes}"))
        });
        named.collect()
    };
    let text = |a: Option<&String>, b: Option<&String>| Row::of(a.cloned(), b.cloned());
    let mut parts = vec![Part::of(
        "outputs",
        &files(&a.subject, false),
        &files(&b.subject, false),
        text,
    )];
    let (of_a, of_b) = (&a.predicate.build_definition, &b.predicate.build_definition);
    parts.extend(recipes::of_values(
        &of_a.external_parameters.recipe,
        &of_b.external_parameters.recipe,
    ));
    parts.push(Part::of(
        "inputs",
        &files(&of_a.resolved_dependencies, true),
        &files(&of_b.resolved_dependencies, true),
        text,
    ));
    parts.push(recipes::fields("engines", &engines(a), &engines(b)));
    parts.push(recipes::fields("actions", &actions(a), &actions(b)));
    parts.extend(tensors(&records(a), &records(b)));
    parts
}

fn engines(manifest: &Manifest) -> BTreeMap<String, Value> {
    let engines = manifest.predicate.forge.engines.values();
    let by_role = engines.map(|identity| {
        let role = identity.get("role").and_then(Value::as_str).unwrap_or("engine");
        (role.to_owned(), identity.clone())
    });
    by_role.collect()
}

/// The actions of steps. Those of tensors are compared with the tensors.
fn actions(manifest: &Manifest) -> BTreeMap<String, Value> {
    let actions = manifest.predicate.forge.actions.values();
    actions
        .filter_map(|action| Some((action.step.clone()?, action.document.clone())))
        .collect()
}

fn records(manifest: &Manifest) -> BTreeMap<String, Tensor> {
    let tensors = manifest.predicate.forge.tensors.iter().filter_map(|tensor| {
        let digest: BlobDigest = tensor.bytes.parse().ok()?;
        Some((
            tensor.name.clone(),
            Tensor {
                ty: tensor.ty.clone(),
                dims: tensor.dims.clone(),
                bytes: digest.len,
                digest: Some(digest.hash),
            },
        ))
    });
    tensors.collect()
}
