"""The agent that a trial boot carries in an extra initrd: a shell script that tries things and reports on a virtio-serial port.

It exists only in a boot without Secure Boot that QEMU loads directly; no image and no signed UKI ever holds it. Each result is one line:
NAME, exit status, milliseconds and the base64 of the output (of its last MiB, should it be longer), parted by spaces. `end` comes last.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from obelisk.machine import HOOK
from obelisk.model.spec import Spec
from obelisk.trial import measurements

PORT = "obelisk.trial"

_HOOK = """\
units=/run/systemd/system
mkdir -p $units/multi-user.target.d /run/obelisk-trial
cat /usr/lib/obelisk-trial/agent >/run/obelisk-trial/agent
cat /usr/lib/obelisk-trial/unit >$units/obelisk-trial.service
echo "[Unit]
Wants=obelisk-trial.service" >$units/multi-user.target.d/trial.conf
"""

_UNIT = """\
[Unit]
Description=Trial
After=multi-user.target obelisk-health.service
[Service]
# Simple, so that the boot counts as finished while this runs and can be analysed.
Type=simple
ExecStart=/bin/bash /run/obelisk-trial/agent
"""

_PROLOGUE = """\
exec 2>&1
port=/dev/virtio-ports/obelisk.trial
# A quick machine is up before udev has come to this device.
until [ -e "$port" ]; do sleep 0.1; done
say() { echo "$@" >"$port"; }
try() { # NAME TIMEOUT COMMAND_IN_BASE64
    local began now status
    read -r began _ </proc/uptime
    timeout --kill-after=5 "$2" bash -c "$(base64 -d <<<"$3")" >/run/obelisk-trial/out 2>&1 </dev/null
    status=$?
    read -r now _ </proc/uptime
    say "$1" "$status" "$((10#${now/./} * 10 - 10#${began/./} * 10))" "$(tail -c 1048576 /run/obelisk-trial/out | base64 -w0)"
}
"""

# Each way in which root itself might change the root file system; every one has to fail.
READ_ONLY = """\
tried=
refused() { tried+="$1; "; if (eval "$1") 2>/dev/null; then echo "succeeded: $1"; exit 1; fi; }
refused 'touch /obelisk-trial'
refused 'touch /usr/bin/obelisk-trial'
refused 'echo x >>/etc/passwd'
refused 'mkdir /usr/lib/obelisk-trial-new'
refused 'rm /etc/os-release'
refused 'mount -o remount,rw /'
refused 'mount -o remount,rw /dev/mapper/root / && touch /obelisk-trial'
refused 'dd if=/dev/zero of=/dev/mapper/root bs=4096 count=1 conv=notrunc oflag=direct'
findmnt -no FSTYPE,OPTIONS / || grep ' / ' /proc/mounts
echo "refused, as they must be: $tried"
"""


# Each unit that failed, with the last that it said.
FAILED_UNITS = """\
systemctl --failed --no-legend --no-pager --plain | while read -r unit rest; do
    echo "$unit: $rest"
    journalctl -b --no-pager -o cat -u "$unit" | tail -n 8
done
"""

# What passed before systemd started is kernel time to systemd. It analyses boots that are finished: on a busy machine the last jobs, which
# nothing waits for, take a while.
BOOT_TIME = """\
while read -r milestone seconds; do echo "$milestone after $seconds s"; done </run/obelisk/start
for _ in {1..50}; do systemd-analyze time >/dev/null 2>&1 && break; sleep 0.5; done
systemd-analyze time --no-pager
systemd-analyze blame --no-pager | grep -v '\\.device$' | head -12
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that the agent tries."""

    name: str
    command: str
    timeout_s: int = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a probe."""

    status: int
    duration_ms: int
    output: str


def probes(spec: Spec) -> tuple[Probe, ...]:
    """What is tried in a guest, in order: the fixed probes and the tests of the spec (named `test/…`)."""
    return (
        Probe("health", "cat /run/obelisk/health.json"),
        Probe("read-only", READ_ONLY),
        Probe("canary", "cat /usr/share/obelisk/canary >/dev/null"),
        Probe("machine", "cat /etc/machine-id; journalctl --list-boots --no-pager"),
        Probe("failed", FAILED_UNITS),
        *(Probe(f"test/{test.name}", test.command, test.timeout_s) for test in spec.tests),
        Probe("time", BOOT_TIME),
        Probe("journal", "journalctl -b --no-pager -o short-monotonic"),
    )


def script(wanted: Sequence[Probe]) -> str:
    """The agent that tries `wanted` in order, reports, and switches the machine off."""
    lines = [f"try {probe.name} {probe.timeout_s} {b64encode(probe.command.encode()).decode()}\n" for probe in wanted]
    return f"{_PROLOGUE}{''.join(lines)}say end 0 0 Cg==\nsystemctl poweroff\n"


def injected(wanted: Sequence[Probe], measured: tuple[bytes, ...] = ()) -> dict[str, bytes | str]:
    """The files of the extra initrd. `measured` is what the TPM is told first; see `obelisk.trial.measurements`."""
    return {
        **measurements.files(measured),
        HOOK: (_HOOK + (measurements.REPEAT if measured else "")).encode(),
        "usr/lib/obelisk-trial/agent": script(wanted).encode(),
        "usr/lib/obelisk-trial/unit": _UNIT.encode(),
    }


def findings(said: str) -> dict[str, Finding]:
    """The results by probe, of as many lines as have arrived whole."""
    found = {}
    for line in said.splitlines():
        words = line.split(" ")
        if len(words) == 4 and words[1].isdigit() and words[2].lstrip("-").isdigit():  # noqa: PLR2004 - the fields of a line
            found[words[0]] = Finding(int(words[1]), int(words[2]), b64decode(words[3] or "").decode(errors="replace"))
    return found
