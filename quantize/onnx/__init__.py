"""ONNX folders: read, checked before use; and float ones that are sources."""
