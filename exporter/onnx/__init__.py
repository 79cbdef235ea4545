"""A store as a folder for ONNX Runtime."""
