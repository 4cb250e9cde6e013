"""A virtual machine from an image, for tests and to look at."""

from obelisk.machine.machine import HOOK, LATE_TIMER, Machine, initrd_with

__all__ = ["HOOK", "LATE_TIMER", "Machine", "initrd_with"]
