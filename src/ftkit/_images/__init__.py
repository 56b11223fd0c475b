"""Find what is wrong with a folder of images, set it aside, and undo it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
