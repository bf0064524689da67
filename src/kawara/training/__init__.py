"""How a model is trained: optimiser, schedule, averaging, checkpoints, and the one loop."""
