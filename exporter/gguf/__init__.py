"""A store as a GGUF file."""
