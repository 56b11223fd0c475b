"""Freeze, thaw and schedule parts of a model."""
