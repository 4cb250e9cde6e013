"""A person without root rights, with a checkout, a store and keys of their own."""

from pathlib import Path

from ordinary import ordinary_user
from tool import Tool


def test_an_ordinary_user_builds_the_same_image_to_the_bit(workshop: Tool, tmp_path: Path) -> None:
    user = ordinary_user(workshop, tmp_path)
    assert user.build() == workshop.build()
    assert "sound" in user.run("verify")
