"""Training checkpoints: save, resume, keep the best and the last."""
