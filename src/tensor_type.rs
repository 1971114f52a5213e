//! Every tensor type: bits, block, row size, names in each engine's spelling.
