//! What gradients take, from the sizes in a model's header.

/// The sizes of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Layers.
    pub layers: u64,
    /// Numbers of the residual stream of a token.
    pub embedding: u64,
    /// Numbers of a token's queries in a layer: heads times the length of one.
    pub queries: u64,
    /// Numbers of a token's keys and values in a layer.
    pub keys_and_values: u64,
    /// Heads of queries.
    pub heads: u64,
    /// Numbers of the inner layer of the feed-forward network; of a mixture, of all experts that a token uses together.
    pub inner: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// Tokens of a chunk.
    pub context: u64,
}

impl Shape {
    /// Returns the bytes of the values that the gradients of one layer take: the inputs of its products and norms, queries, keys and
    /// values before and after their norms, weights of the attention, and both halves of the gated unit.
    pub fn layer_bytes(&self) -> u64 {
        let token = 4 * self.embedding
            + 3 * self.queries
            + 2 * self.keys_and_values
            + self.heads * self.context
            + 3 * self.inner;
        token * self.context * 4
    }

    /// Returns the bytes of logits, their gradient and its copy.
    fn logit_bytes(&self) -> u64 {
        2 * self.context * self.vocabulary * 4
    }

    /// Returns into how many parts the layers are cut if the values of a part may take `limit` bytes.
    pub fn parts(&self, limit: u64) -> u64 {
        let together = (limit / self.layer_bytes().max(1)).max(1);
        self.layers.div_ceil(together).max(1)
    }

    /// Returns the memory that gradients take beside the model and its context if the values of a part may take `limit` bytes: those
    /// values, what parts begin with, logits, and the gradients of one layer.
    pub fn bytes(&self, limit: u64) -> u64 {
        let parts = self.parts(limit);
        let values = self.layer_bytes() * self.layers.div_ceil(parts);
        let begins = 2 * self.context * self.embedding * 4 * parts;
        values + begins + self.logit_bytes() + self.layer_bytes()
    }

    /// Returns how often the model computes a chunk for its gradients: once, and all parts but the last one again.
    pub fn forward_passes(&self, limit: u64) -> f64 {
        let parts = self.parts(limit) as f64;
        1.0 + (parts - 1.0) / parts
    }

    /// Returns the multiplications of forge's own products for a chunk: one for each weight that a token uses, as in the computation of the
    /// model, and two products of matrices for each one of the attention. `weights` is the number of weights that a token uses.
    pub fn multiplications(&self, weights: u64) -> u64 {
        let attention = 4 * self.context * self.queries * self.layers;
        self.context * (weights + attention)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3 8B.
    const LARGE: Shape = Shape {
        layers: 32,
        embedding: 4096,
        queries: 4096,
        keys_and_values: 2048,
        heads: 32,
        inner: 14336,
        vocabulary: 128_256,
        context: 512,
    };

    #[test]
    fn a_model_is_computed_in_parts_that_fit_into_the_limit() {
        let layer = LARGE.layer_bytes();
        assert!((150 << 20..220 << 20).contains(&layer), "{layer}");
        assert_eq!(LARGE.parts(u64::MAX), 1);
        assert_eq!(LARGE.parts(layer * 8), 4);
        assert_eq!(LARGE.parts(1), 32);
        assert!((LARGE.forward_passes(layer * 8) - 1.75).abs() < 1e-12);
        assert!(LARGE.bytes(1 << 30) < 3 << 30);
        assert!(LARGE.bytes(u64::MAX) > 6 << 30);
    }
}
