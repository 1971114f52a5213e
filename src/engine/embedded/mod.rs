//! llama.cpp and ggml behind safe functions: the only place of the crate, beside the memory map, with `unsafe`.

pub(super) mod adapter;
pub(super) mod checkpoint;
pub(super) mod collect;
pub(super) mod compare;
pub(super) mod cpu;
pub(super) mod gradient_model;
pub(super) mod identity;
pub(super) mod log;
pub(super) mod model;
pub(super) mod moments;
pub(super) mod probe_model;
pub(super) mod product;
pub(super) mod quantize;
pub(super) mod refine;
pub(super) mod sys;
pub(super) mod trace;
pub(super) mod vocabulary;
