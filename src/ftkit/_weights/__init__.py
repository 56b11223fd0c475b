"""Weights files and whole models: save, load, inspect, compare."""
