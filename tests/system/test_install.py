"""An image onto a disk, or into a file; and never over something that was not named."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tool import Tool

GIB = 1 << 30


@pytest.fixture(scope="module")
def tool(workshop: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("install")
    copy = workshop.copied_to(home)
    copy.build()
    copy.run("export", str(copy.spec), "--output", str(home / "shipped.raw"))
    yield copy
    subprocess.run(["rm", "-rf", home], check=True)


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """The file as a block device, which goes with the last who has it open, so with this process at the latest."""
    device = Path(subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True).stdout.strip())
    with device.open("rb"):
        subprocess.run(["losetup", "--detach", device], check=True)
        yield device


def has_the_image(tool: Tool, disk: Path) -> bool:
    """Whether the disk begins with the image's own, partition by partition."""
    return subprocess.run(["cmp", "--bytes", str(2 * GIB + (200 << 20)), tool.home / "shipped.raw", disk], check=False).returncode == 0


def test_into_a_new_file_which_has_room_for_a_host(tool: Tool, tmp_path: Path) -> None:
    disk = tmp_path / "host.raw"
    said = tool.run("install", str(tool.spec), str(disk))
    assert "is on" in said
    assert has_the_image(tool, disk)
    assert disk.stat().st_size > 6 * GIB
    assert disk.stat().st_blocks * 512 < GIB
    assert [path.name for path in tmp_path.iterdir()] == ["host.raw"]


@pytest.mark.parametrize("words", [(), ("--erase", "other.raw")])
def test_what_exists_is_overwritten_only_when_it_is_named(tool: Tool, tmp_path: Path, words: tuple[str, ...]) -> None:
    disk = tmp_path / "host.raw"
    disk.write_bytes(b"precious")
    error = tool.refused("install", str(tool.spec), str(disk), *words, status=2)
    assert error["code"] == "install-erase"
    assert "--erase host.raw" in error["hint"]
    assert disk.read_bytes() == b"precious"
    tool.run("install", str(tool.spec), str(disk), "--erase", "host.raw")
    assert has_the_image(tool, disk)


def test_onto_a_device_over_what_was_there(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    with file.open("wb") as opened:
        opened.write(b"\xa5" * (64 << 20))
        opened.truncate(6 * GIB)
        opened.seek(6 * GIB - 4096)
        opened.write(b"\xa5" * 4096)
    with loop_device(file) as device:
        assert tool.refused("install", str(tool.spec), str(device), status=2)["code"] == "install-erase"
        tool.run("install", str(tool.spec), str(device), "--erase", device.name)
        listed = subprocess.run(["blkid", "--probe", "--match-tag", "PTTYPE", device], check=True, capture_output=True, text=True).stdout
    assert 'PTTYPE="gpt"' in listed
    with file.open("rb") as opened:
        opened.seek(6 * GIB - 4096)
        assert opened.read() == bytes(4096)


def test_a_device_in_use_or_without_room_is_refused(tool: Tool, tmp_path: Path) -> None:
    small = tmp_path / "small"
    with small.open("wb") as opened:
        opened.truncate(GIB)
    with loop_device(small) as device:
        assert tool.refused("install", str(tool.spec), str(device), "--erase", device.name, status=5)["code"] == "disk-small"
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        place = tmp_path / "mounted"
        place.mkdir()
        subprocess.run(["mount", device, place], check=True)
        try:
            assert tool.refused("install", str(tool.spec), str(device), "--erase", device.name, status=5)["code"] == "disk-busy"
        finally:
            subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(("target", "code"), [("/dev/null", "install-target"), ("/nowhere/disk", "install-directory")])
def test_what_is_no_disk_is_refused(tool: Tool, target: str, code: str) -> None:
    assert tool.refused("install", str(tool.spec), target, status=2)["code"] == code
