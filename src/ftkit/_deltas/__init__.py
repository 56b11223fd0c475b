"""Deltas: what fine-tuning changed in a model, and nothing else."""
