//! How many decisions of a mixture of experts come after a tensor.

use crate::policy::ModelFacts;
use crate::policy::Reason;
use crate::policy::quantizable::quantizable;
use crate::policy::role::Role;
use crate::policy::role::block_index;

/// Returns how many layers route tokens after a tensor was used: layers after its own, and its own if the tensor is one of attention.
pub fn routers_after(model: &ModelFacts, tensor: &str) -> u64 {
    let is_router = |name: &str, dims: &[u64]| quantizable(model, name, dims) == Err(Reason::ExpertRouter);
    let routers = model
        .tensors
        .iter()
        .filter(|tensor| is_router(&tensor.name, &tensor.dims));
    let layers = routers.filter_map(|router| block_index(&router.name));
    let after: Vec<i64> = match (Role::of(tensor), block_index(tensor)) {
        (Role::Output, _) => Vec::new(),
        (Role::Up | Role::Gate | Role::Down, Some(own)) => layers.filter(|layer| *layer > own).collect(),
        (_, Some(own)) => layers.filter(|layer| *layer >= own).collect(),
        (_, None) => layers.collect(),
    };
    after.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::TensorFacts;
    use crate::tensor_type::TensorType;

    #[test]
    fn attention_comes_before_the_router_of_its_layer() {
        let tensor = |name: &str| TensorFacts {
            name: name.to_owned(),
            ty: TensorType::F16,
            dims: vec![256, 256],
        };
        let names = [
            "token_embd.weight",
            "blk.0.attn_q.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.1.attn_q.weight",
            "blk.1.ffn_up.weight",
            "blk.2.ffn_gate_inp.weight",
            "blk.2.ffn_down_exps.weight",
            "output.weight",
        ];
        let model = ModelFacts {
            architecture: "llama".to_owned(),
            layers: 3,
            heads: 4,
            heads_kv: 4,
            experts: 4,
            is_70b: false,
            file_type: None,
            tensors: names.map(tensor).into(),
        };
        let after = |name| routers_after(&model, name);
        assert_eq!(after("token_embd.weight"), 2);
        assert_eq!((after(names[1]), after(names[3])), (2, 1));
        assert_eq!((after(names[4]), after(names[5])), (1, 1));
        assert_eq!((after(names[7]), after(names[8])), (0, 0));
    }
}
