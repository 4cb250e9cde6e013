"""Images of other releases of Debian than the default one."""

import subprocess
from pathlib import Path

from host import BOOT_S, Rack
from tool import Tool


def test_a_debian_12_image_starts_with_secure_boot_and_does_its_job(workshop: Tool, tmp_path: Path) -> None:
    tool = workshop.copied_to(tmp_path)
    try:
        with tool.changed("obelisk.toml", "debian:trixie", "debian:bookworm"):
            tool.run("lock", str(tool.spec))
            image = tool.build()
            assert tool.manifest()["distribution"] == "debian:bookworm"
        place = tmp_path / "rack"
        place.mkdir()
        rack = Rack(tool, place)
        with rack.host(rack.disk(rack.image(image)), rack.variables()) as machine:
            # Both of its health checks have passed then: the page is served, and SSH answers.
            machine.machine.wait_for("obelisk: web_1 healthy", timeout_s=BOOT_S)
            assert "Custom Secure Boot keys successfully enrolled" in machine.machine.text()
    finally:
        subprocess.run(["rm", "-rf", tmp_path], check=True)
