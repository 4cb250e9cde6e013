"""A unit of systemd that runs the probes: unit.py FILE FACTS. It gets the facts by standard input, and what it says is printed."""

import base64
import subprocess
import sys
from pathlib import Path

UNITS = Path("/run/systemd/system")


def main() -> int:
    unit, facts = Path(sys.argv[1]), sys.argv[2]
    told = Path("/run") / f"{unit.stem}.told"
    (UNITS / unit.name).write_text(unit.read_text())
    more = UNITS / f"{unit.name}.d/facts.conf"
    more.parent.mkdir(exist_ok=True)
    data = base64.b64encode(facts.encode()).decode()
    more.write_text(f"[Service]\nType=oneshot\nStandardInput=data\nStandardInputData={data}\nStandardOutput=truncate:{told}\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    done = subprocess.run(["systemctl", "start", unit.name], check=False)
    if done.returncode:
        subprocess.run(["systemctl", "status", "--no-pager", "--full", unit.name], stdout=sys.stderr, check=False)
    sys.stdout.write(told.read_text())
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
