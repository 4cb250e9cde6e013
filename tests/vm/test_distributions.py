"""Images of other releases of Debian than the default one."""

import subprocess
from pathlib import Path

from tool import Tool


def test_a_debian_12_image_passes_its_trial(workshop: Tool, tmp_path: Path) -> None:
    tool = workshop.copied_to(tmp_path)
    try:
        with tool.changed("obelisk.toml", "debian:trixie", "debian:bookworm"):
            tool.run("lock", str(tool.spec))
            tool.build()
            assert tool.manifest()["distribution"] == "debian:bookworm"
            said = tool.run("test", str(tool.spec))
        assert "pass  boots with Secure Boot and becomes healthy" in said
        assert "pass  health page" in said
    finally:
        subprocess.run(["rm", "-rf", tmp_path], check=True)
