"""A virtual machine from an image, for tests and to look at."""

from obelisk.machine.machine import Machine, initrd_with, unpack_uki

__all__ = ["Machine", "initrd_with", "unpack_uki"]
