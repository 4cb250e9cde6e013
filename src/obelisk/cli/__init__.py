"""The command line: reads words, calls the rooms below, shows what they say. Takes no decisions."""

from obelisk.cli.main import main

__all__ = ["main"]
