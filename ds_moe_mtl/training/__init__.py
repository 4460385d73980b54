"""How a model is trained: ranks, engine, loop, checkpoints."""
