"""Modules that images have in the place of larger ones of python-tuf and securesystemslib; see `obelisk.build.hostpart`."""
