"""Safe archive extraction: everything, verified, or nothing."""

from ftkit._archives.extract import ArchiveReport, extract_archive

__all__ = ["ArchiveReport", "extract_archive"]
