"""The chores of fine-tuning a PyTorch model, each done right in one call, in your own training loop.

The public names are in ``__init__.pyi``; each is imported on first use, so that ``import ftkit`` does not import torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
