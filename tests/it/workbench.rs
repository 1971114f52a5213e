//! Tensors replaced in a loaded model: what is computed is what the candidate's file computes, bit for bit.

use std::path::Path;

use forge::engine::Cancel;
use forge::engine::EngineError;
use forge::engine::LoadedModel;
use forge::engine::Options;
use forge::engine::Workbench;
use forge::gguf::Model;
use forge::tensor_type::TensorType;

use crate::cut;
use crate::cut::build_well;
use crate::engine::chunks;
use crate::support::Forge;
use crate::support::moe_model;

const CONTEXT: u32 = 64;
const OPTIONS: Options = Options { threads: 1 };

type Logits<'a> = dyn FnMut(&mut dyn FnMut(usize, &[f32]) -> Result<(), EngineError>) -> Result<(), EngineError> + 'a;

fn collected(compute: &mut Logits<'_>) -> Vec<u32> {
    let mut all = Vec::new();
    compute(&mut |_, logits| {
        all.extend(logits.iter().map(|value| value.to_bits()));
        Ok(())
    })
    .unwrap();
    assert!(all.len() > 1000);
    all
}

fn of_file(path: &Path, chunk: &[i32]) -> Vec<u32> {
    let mut loaded = LoadedModel::open(path, &OPTIONS, CONTEXT).unwrap();
    collected(&mut |each| loaded.logits(chunk, 8, &Cancel::new(), each))
}

fn of_bench(bench: &mut Workbench, chunk: &[i32]) -> Vec<u32> {
    collected(&mut |each| bench.logits(chunk, 8, &Cancel::new(), each))
}

/// Gives the model on the bench each tensor of a file that has another type than the model's own file.
fn put_on(bench: &mut Workbench, from: &Path, source: &Path) -> usize {
    let (from, source) = (Model::open(from).unwrap(), Model::open(source).unwrap());
    let mut replaced = 0;
    for (tensor, original) in from.tensors().iter().zip(source.tensors()) {
        assert_eq!(tensor.info.name, original.info.name);
        if bench.tensors().any(|name| name == tensor.info.name) && tensor.info.dims.len() > 1 {
            let mut bytes = vec![0; usize::try_from(tensor.info.len).unwrap()];
            from.read_tensor_at(tensor, 0, &mut bytes).unwrap();
            bench.replace(&tensor.info.name, tensor.info.ty, &bytes).unwrap();
            replaced += usize::from(tensor.info.ty != original.info.ty);
        }
    }
    replaced
}

fn compare(model: &Path, candidates: &[&Path], text: &str) {
    let chunk = chunks(model, text, CONTEXT as usize, 1).remove(0);
    let mut bench = Workbench::open(model, &OPTIONS, CONTEXT, &Cancel::new()).unwrap();
    let plain = of_file(model, &chunk);
    assert_eq!(of_bench(&mut bench, &chunk), plain, "as it was loaded");
    for candidate in candidates {
        assert!(put_on(&mut bench, candidate, model) > 3);
        let expected = of_file(candidate, &chunk);
        assert_ne!(expected, plain);
        assert_eq!(of_bench(&mut bench, &chunk), expected, "{}", candidate.display());
        // Another one straight away on the same tensors, then back.
        put_on(&mut bench, model, model);
        assert_eq!(of_bench(&mut bench, &chunk), plain, "after {}", candidate.display());
    }
}

#[test]
fn replaced_tensors_compute_as_the_candidates_file() {
    let forge = cut::project();
    build_well(&forge, &[]);
    let [a, b] = ["a", "b"].map(|name| forge.path(&format!("out/small/{name}.gguf")));
    compare(&forge.path("model.gguf"), &[&a, &b], &cut::text("held-out.txt"));
}

#[test]
fn replaced_experts_compute_as_the_candidates_file() {
    let forge = Forge::new();
    std::fs::copy(moe_model(), forge.path("model.gguf")).unwrap();
    forge.recipe(cut::BARE);
    build_well(&forge, &[]);
    let candidate = forge.path("out/bare/p.gguf");
    compare(&forge.path("model.gguf"), &[&candidate], &cut::text("held-out.txt"));
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_everything_as_it_was() {
    let forge = cut::project();
    let model = forge.path("model.gguf");
    let chunk = chunks(&model, &cut::text("held-out.txt"), CONTEXT as usize, 1).remove(0);
    let mut bench = Workbench::open(&model, &OPTIONS, CONTEXT, &Cancel::new()).unwrap();
    let name = "blk.0.ffn_down.weight";
    let file = Model::open(&model).unwrap();
    let info = &file
        .tensors()
        .iter()
        .find(|tensor| tensor.info.name == name)
        .unwrap()
        .info;
    let values: u64 = info.dims.iter().product();
    let bytes = |ty: TensorType| vec![0; usize::try_from(ty.row_bytes(values).unwrap()).unwrap()];
    let mut refused = |name: &str, ty: TensorType, bytes: &[u8]| match bench.replace(name, ty, bytes) {
        Err(EngineError::Replace { tensor, what }) => {
            assert_eq!(tensor, name);
            what
        }
        other => panic!("{other:?}"),
    };
    assert!(refused("blk.9.none", TensorType::Q4_0, &[]).contains("no such weight"));
    assert!(refused(name, TensorType::Q4_0, &[0; 10]).contains("10 bytes were given"));
    let larger = refused(name, TensorType::F32, &bytes(TensorType::F32));
    assert!(larger.contains("was loaded with"), "{larger}");
    assert_eq!(of_bench(&mut bench, &chunk), of_file(&model, &chunk));
}
