"""Restarting this machine."""

from obelisk.system.command import run


def reboot() -> None:
    """Ask systemd to restart the machine in good order. Returns before it does."""
    run(["systemctl", "--no-block", "reboot"], timeout_s=60)
