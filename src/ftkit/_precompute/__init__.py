"""Compute what is frozen once: where it ends in a model, what passes over, a file that keeps it, runs that use it."""
