"""A virtual machine from an image, for tests and to look at."""

from obelisk.machine.machine import HOOK, LATE_TIMER, Machine, initrd_with, unpack_uki

__all__ = ["HOOK", "LATE_TIMER", "Machine", "initrd_with", "unpack_uki"]
