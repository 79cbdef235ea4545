"""The quantized model on disk, and how a file or folder takes its name."""
