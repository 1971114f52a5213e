//! `general.file_type`: the number that llama.cpp prints as a file's type.

use std::collections::BTreeMap;

use crate::mix::Mix;
use crate::policy::ModelFacts;
use crate::policy::role::counting_order;
use crate::tensor_type::TensorType;

/// Added by llama.cpp to a file type that it guessed.
const GUESSED: u32 = 1024;

/// Returns the number that `llama-quantize` writes as `general.file_type`: the mix's own, or for COPY that of the
/// source, guessed as llama.cpp guesses it where the source has none.
pub fn file_type_of(mix: Mix, model: &ModelFacts) -> u32 {
    mix.ftype().or(model.file_type).unwrap_or_else(|| {
        let mut counts = BTreeMap::<TensorType, usize>::new();
        let mut most = (0, TensorType::F32);
        for index in counting_order(model.tensors.iter().map(|tensor| tensor.name.as_str())) {
            let ty = model.tensors[index].ty;
            let count = counts.entry(ty).or_default();
            *count += 1;
            if *count > most.0 {
                most = (*count, ty);
            }
        }
        usual_file_type(most.1).unwrap_or(0) | GUESSED
    })
}

/// Returns the file type that llama.cpp takes for a file mostly of one type.
pub(crate) fn usual_file_type(ty: TensorType) -> Option<u32> {
    use TensorType as T;
    let mix = match ty {
        T::Q3_K => Mix::Q3_K_M,
        T::Q4_K => Mix::Q4_K_M,
        T::Q5_K => Mix::Q5_K_M,
        T::IQ2_S => Mix::IQ2_S,
        T::MXFP4 => return None,
        // The quantizer has no mix of this name, but the number is defined.
        T::NVFP4 => return Some(39),
        other => Mix::from_name(other.name())?,
    };
    mix.ftype()
}
