"""Archives that can't hurt: unpacked whole and checked, or not at all."""

from ftkit._archives.extract import ArchiveReport, extract_archive

__all__ = ["ArchiveReport", "extract_archive"]
