"""What is made of a run off-line: folders for this package, for transformers and onnxruntime."""
