"""Obelisk: immutable operating-system images, described in one file, proven before they run."""

__version__ = "0.1.0"
