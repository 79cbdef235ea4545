"""The GGUF container, for readers and writers."""
