"""What a run writes as it goes: rows of metrics, TensorBoard, a trace of some steps."""
