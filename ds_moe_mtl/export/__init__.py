"""What is made of a run off-line: a model folder of a checkpoint, the same run on other ranks."""
