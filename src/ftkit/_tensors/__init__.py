"""Tensors in files: raw bytes, the safetensors format, and typed JSON for everything around them."""
