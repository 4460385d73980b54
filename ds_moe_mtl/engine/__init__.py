"""DeepSpeed's engine, made ours: its set-up, update, clipping, checkpoints read and reshaped."""
