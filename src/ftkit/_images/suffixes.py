"""What names tell: which suffixes go with which content, which folders nobody made for a class."""

import os

#: What torchvision's ImageFolder takes for an image, by the suffix alone.
LISTED_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

#: Of each format, by Pillow's name for it; new files get the first.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".dib", ".bmp"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
    "ICO": (".ico",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "JXL": (".jxl",),
}

# Those that something else has, too: metrics of Type 1 fonts, plug-ins for sound and templates of Visio, car bodies in
# VDA-FS, projects of JBuilder, surveys in JobXML. Targa's third odd name goes with the other two: nobody expects it.
_SHARED = frozenset((".pfm", ".vst", ".vda", ".icb", ".jpx", ".jxl"))

#: What alone promises that a file is an image. What has another suffix never moves by default, whatever is in it.
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes) - _SHARED

LITTER_FOLDERS = frozenset(("__macosx", ".ipynb_checkpoints", "@eadir", ".trashes", ".spotlight-v100", ".fseventsd"))


def suffix_of(path: str) -> str:
    """The suffix of a file in lower case, as loaders see it: to them, one that is called ``.jpg`` ends in it.

    Example:
        >>> suffix_of("bees/.JPG"), suffix_of("bees.old/readme")
        ('.jpg', '')
    """
    _, dot, end = os.path.basename(path).rpartition(".")  # noqa: PTH119  (Path costs more)
    return f"{dot}{end}".lower() if dot else ""


def may_be_class(name: str) -> bool:
    """Whether a folder is one that people make: neither hidden nor left behind by a system or tool."""
    return name.lower() not in LITTER_FOLDERS and not name.startswith(".")
