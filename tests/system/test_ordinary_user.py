"""A person without root rights, with a checkout, a store and keys of their own."""

import subprocess
from dataclasses import replace
from pathlib import Path

from containers import image, layer
from ordinary import UID, ordinary_user
from tool import Tool


def test_an_ordinary_user_builds_the_same_image_to_the_bit(workshop: Tool, tmp_path: Path) -> None:
    app = workshop.home / "shop"
    app.mkdir()
    (app / "obelisk.toml").write_text('name = "shop"\nrole = "app"\n[app]\nimage = "image"\n')
    layers = [layer({"bin/": None, "bin/sh": Path("/bin/busybox").read_bytes(), "old": b""}), layer({"old": None}, owner=70)]
    image(app / "image", layers, {"Cmd": ["/bin/sh"]})
    made = replace(workshop, spec=app)
    made.run("lock", str(app))
    user = ordinary_user(workshop, tmp_path)
    subprocess.run(["cp", "-a", app, tmp_path / "home"], check=True)
    subprocess.run(["chown", "--recursive", f"{UID}:{UID}", tmp_path / "home/shop"], check=True)
    assert user.build() == workshop.build()
    # Of an OCI image too, and whoever owns what is in it.
    assert replace(user, spec=user.home / "shop").build() == made.build()
    assert "sound" in user.run("verify")
