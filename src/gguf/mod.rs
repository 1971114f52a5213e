//! GGUF containers: bounded reading, streaming writing.
