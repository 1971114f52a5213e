//! Tensors replaced in a loaded model: what is computed is what the candidate's file computes, bit for bit.

use std::ops::Deref;
use std::path::Path;

use forge::engine::Cancel;
use forge::engine::EngineError;
use forge::engine::LoadedModel;
use forge::engine::ModelFiles;
use forge::engine::Options;
use forge::engine::ProbeModel;
use forge::gguf::Model;
use forge::gguf::ModelTensor;
use forge::tensor_type::TensorType;

use crate::engine::chunks;
use crate::one_layer_project;
use crate::one_layer_project::build_well;
use crate::support::Forge;
use crate::support::moe_model;

const CONTEXT: u32 = 64;
const OPTIONS: Options = Options { threads: 1 };

type Logits<'a> =
    dyn FnMut(&mut dyn FnMut(usize, &[&[f32]]) -> Result<(), EngineError>) -> Result<(), EngineError> + 'a;

fn collected(compute: &mut Logits<'_>) -> Vec<u32> {
    let mut all = Vec::new();
    compute(&mut |_, rows| {
        all.extend(rows.concat().iter().map(|value| value.to_bits()));
        Ok(())
    })
    .unwrap();
    assert!(all.len() > 1000);
    all
}

fn of_file(path: &Path, chunk: &[i32]) -> Vec<u32> {
    let mut loaded = LoadedModel::open(ModelFiles::open(path).unwrap(), &OPTIONS, CONTEXT).unwrap();
    collected(&mut |each| loaded.logits(chunk, 8, &Cancel::new(), each))
}

fn of_replaced(probed: &mut ProbeModel, chunk: &[i32]) -> Vec<u32> {
    collected(&mut |each| probed.logits(chunk, 8, &Cancel::new(), each))
}

/// Bytes that begin where the engine can compute from them, or where it can't and they are copied.
struct Bytes {
    bytes: Vec<u8>,
    start: usize,
}

impl Bytes {
    fn of(bytes: &[u8], shared: bool) -> Self {
        let mut padded = vec![0; bytes.len() + 64];
        let start = padded.as_ptr().align_offset(32) + if shared { 0 } else { 8 };
        padded.truncate(start + bytes.len());
        padded[start..].copy_from_slice(bytes);
        Self { bytes: padded, start }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// Gives the probed model a tensor of a file.
fn put(probed: &mut ProbeModel, file: &Model, tensor: &ModelTensor, shared: bool) {
    let mut bytes = vec![0; usize::try_from(tensor.info.len).unwrap()];
    file.read_tensor_at(tensor, 0, &mut bytes).unwrap();
    let bytes = Bytes::of(&bytes, shared);
    probed.replace(&tensor.info.name, tensor.info.ty, bytes).unwrap();
}

/// Gives the probed model each tensor of a file that has another type than the model's own file.
fn put_on(probed: &mut ProbeModel, from: &Path, source: &Path, shared: bool) -> usize {
    let (from, source) = (Model::open(from).unwrap(), Model::open(source).unwrap());
    let mut replaced = 0;
    for (tensor, original) in from.tensors().iter().zip(source.tensors()) {
        assert_eq!(tensor.info.name, original.info.name);
        if probed.tensors().any(|name| name == tensor.info.name) && tensor.info.dims.len() > 1 {
            put(probed, &from, tensor, shared);
            replaced += usize::from(tensor.info.ty != original.info.ty);
        }
    }
    replaced
}

fn compare(model: &Path, candidates: &[&Path], text: &str) {
    let chunk = chunks(model, text, CONTEXT as usize, 1).remove(0);
    let mut probed = ProbeModel::open(ModelFiles::open(model).unwrap(), &OPTIONS, CONTEXT, &Cancel::new()).unwrap();
    let plain = of_file(model, &chunk);
    assert_eq!(of_replaced(&mut probed, &chunk), plain, "as it was loaded");
    // Shared and copied, one straight away after the other on the same tensors; then back, by the model's own bytes or restored.
    for (round, shared) in [true, false, false, true, true].into_iter().enumerate() {
        for candidate in candidates {
            assert!(put_on(&mut probed, candidate, model, shared) > 3);
            let expected = of_file(candidate, &chunk);
            assert_ne!(expected, plain);
            assert_eq!(of_replaced(&mut probed, &chunk), expected, "{}", candidate.display());
            if round % 2 == 0 {
                put_on(&mut probed, model, model, !shared);
                assert_eq!(of_replaced(&mut probed, &chunk), plain, "after {}", candidate.display());
            }
        }
        let names: Vec<String> = probed.tensors().map(str::to_owned).collect();
        for name in &names {
            probed.restore(name);
        }
        assert_eq!(of_replaced(&mut probed, &chunk), plain, "restored");
    }
}

#[test]
fn replaced_tensors_compute_as_the_candidates_file() {
    let forge = one_layer_project::project();
    build_well(&forge, &[]);
    let [a, b] = ["a", "b"].map(|name| forge.path(&format!("out/small/{name}.gguf")));
    compare(
        &forge.path("model.gguf"),
        &[&a, &b],
        &one_layer_project::text("held-out.txt"),
    );
}

#[test]
fn replaced_experts_compute_as_the_candidates_file() {
    let forge = Forge::new();
    std::fs::copy(moe_model(), forge.path("model.gguf")).unwrap();
    forge.recipe(one_layer_project::BARE);
    build_well(&forge, &[]);
    let candidate = forge.path("out/bare/p.gguf");
    compare(
        &forge.path("model.gguf"),
        &[&candidate],
        &one_layer_project::text("held-out.txt"),
    );
}

/// Tries each tensor of a candidate alone, from what is kept of the chunk before it and from the beginning.
fn compare_kept(model: &Path, candidate: &Path, text: &str, context: u32) {
    let cancel = Cancel::new();
    let chunk = chunks(model, text, context as usize, 1).remove(0);
    let mut probed = ProbeModel::open(ModelFiles::open(model).unwrap(), &OPTIONS, context, &cancel).unwrap();
    let (from, own) = (Model::open(candidate).unwrap(), Model::open(model).unwrap());
    let mut tensors: Vec<(usize, usize)> = Vec::new();
    for (at, tensor) in from.tensors().iter().enumerate() {
        if tensor.info.ty != own.tensors()[at].info.ty {
            tensors.push((probed.place([tensor.info.name.as_str()]), at));
        }
    }
    tensors.sort_unstable();
    assert!(tensors.len() > 3 && tensors.iter().filter(|(place, _)| *place > 0).count() > 3);
    let put = |probed: &mut ProbeModel, at: usize| put(probed, &from, &from.tensors()[at], at.is_multiple_of(2));
    let restore = |probed: &mut ProbeModel, at: usize| probed.restore(&from.tensors()[at].info.name);
    let plain = of_replaced(&mut probed, &chunk);
    let (mut earlier, mut later) = (Vec::new(), Vec::new());
    for (place, at) in &tensors {
        probed.keep(&chunk, 8, *place, u64::MAX, &cancel).unwrap();
        put(&mut probed, *at);
        let before = probed.passed_over();
        earlier.push(of_replaced(&mut probed, &chunk));
        assert_eq!(probed.passed_over() > before, *place > 0, "tensor {at}");
        restore(&mut probed, *at);
    }
    assert_eq!(
        of_replaced(&mut probed, &chunk),
        plain,
        "the model itself, from the last place"
    );
    // What is kept is worth nothing once a tensor before it is another one.
    let (_, first) = tensors[0];
    put(&mut probed, first);
    let before = probed.passed_over();
    assert_eq!(of_replaced(&mut probed, &chunk), earlier[0]);
    assert_eq!(probed.passed_over(), before);
    restore(&mut probed, first);
    // Nothing is kept if nothing fits.
    probed
        .keep(&chunk, 8, tensors[tensors.len() - 1].0, 100, &cancel)
        .unwrap();
    let before = probed.passed_over();
    for (_, at) in &tensors {
        put(&mut probed, *at);
        later.push(of_replaced(&mut probed, &chunk));
        restore(&mut probed, *at);
    }
    assert_eq!(probed.passed_over(), before);
    assert!(earlier == later, "bits differ");
    assert!(earlier.iter().all(|logits| *logits != plain));
}

#[test]
fn beginning_at_the_tensor_that_changed_changes_no_bit() {
    let forge = one_layer_project::project();
    build_well(&forge, &[]);
    let (model, candidate) = (forge.path("model.gguf"), forge.path("out/small/a.gguf"));
    compare_kept(&model, &candidate, &one_layer_project::text("held-out.txt"), CONTEXT);
    // In two batches, of a model that says that it was trained for as much.
    for file in [&model, &candidate] {
        let mut bytes = std::fs::read(file).unwrap();
        let key = b"qwen3.context_length";
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
        // After the key, the number of the value's type; then the value.
        let value = at + key.len() + 4;
        assert_eq!(bytes[value..value + 4], 512_u32.to_le_bytes());
        bytes[value..value + 4].copy_from_slice(&1024_u32.to_le_bytes());
        std::fs::remove_file(file).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    compare_kept(&model, &candidate, &one_layer_project::text("held-out.txt"), 528);
}

#[test]
fn beginning_at_the_experts_that_changed_changes_no_bit() {
    let forge = Forge::new();
    std::fs::copy(moe_model(), forge.path("model.gguf")).unwrap();
    forge.recipe(one_layer_project::BARE);
    build_well(&forge, &[]);
    let candidate = forge.path("out/bare/p.gguf");
    compare_kept(
        &forge.path("model.gguf"),
        &candidate,
        &one_layer_project::text("held-out.txt"),
        CONTEXT,
    );
}

#[test]
fn tensors_that_do_not_fit_are_rejected_and_nothing_changes() {
    let forge = one_layer_project::project();
    let model = forge.path("model.gguf");
    let chunk = chunks(&model, &one_layer_project::text("held-out.txt"), CONTEXT as usize, 1).remove(0);
    let mut probed = ProbeModel::open(ModelFiles::open(&model).unwrap(), &OPTIONS, CONTEXT, &Cancel::new()).unwrap();
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
    let mut refused = |name: &str, ty: TensorType, bytes: &[u8]| match probed.replace(name, ty, Bytes::of(bytes, false))
    {
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
    assert_eq!(of_replaced(&mut probed, &chunk), of_file(&model, &chunk));
}
