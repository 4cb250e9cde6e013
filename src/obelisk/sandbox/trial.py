"""Tries an application: its root is checked block by block, and its tests run inside its sandbox, with data that is thrown away."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from obelisk.errors import CommandError, TrustError
from obelisk.events import Sink, task
from obelisk.model.application import CONFINED, SOUND
from obelisk.model.policy import Layer, Policy
from obelisk.model.spec import TestCase
from obelisk.sandbox import services
from obelisk.sandbox.data import Data
from obelisk.sandbox.machine import this_machine
from obelisk.sandbox.ready import Directories, application_of, clear, home_of_user, make_ready
from obelisk.store import StoredImage
from obelisk.system.bubblewrap import Room
from obelisk.system.command import run
from obelisk.system.namespace import remove_tree

Found = tuple[str, bool, int, str]
"""Name of a scenario, whether it held, the milliseconds it took, and how one knows."""


def try_application(image: StoredImage, cases: Mapping[str, TestCase], room: Room, sink: Sink) -> tuple[Found, ...]:
    """What came of each scenario, in order; `cases` are named as the report names them.

    The policy is the image's own: what an operator adds is no property of the image.

    Raises:
        MissingFeatureError: this machine cannot confine it.
    """
    with fresh_directories(image) as directories:
        return tuple(_scenarios(image, cases, room, sink, directories))


@contextmanager
def fresh_directories(image: StoredImage) -> Iterator[Directories]:
    """Directories of this run's own, which go with all that was put in place in them."""
    usual = Directories.of(os.environ, root=this_machine().is_root)
    name = f"trial-{secrets.token_hex(4)}"
    directories = replace(usual, run=usual.run / name, data=usual.data / name)
    try:
        yield directories
    finally:
        clear(image, directories)
        remove_tree(directories.run)
        forget_data(image, directories)
        remove_tree(directories.data)


def forget_data(image: StoredImage, directories: Directories) -> None:
    """Throw away what an application has kept there."""
    Data(directories.data / image.manifest.name).remove()


def tried(policy: Policy) -> Policy:
    """The policy under which an application is tried. What is thrown away needs no bound on machines that can give it none."""
    return replace(policy, may_miss=policy.may_miss | {Layer.VOLUME})


def _scenarios(image: StoredImage, cases: Mapping[str, TestCase], room: Room, sink: Sink, directories: Directories) -> Iterator[Found]:
    policy = services.without_missing(tried(application_of(image).policy), directories.services, directories.installed)

    def start(*words: str) -> Path:
        ready = make_ready(image, policy, this_machine(), directories=directories, home=home_of_user(), room=lambda: room, command=words)
        return ready.start

    began = time.monotonic()
    with task(sink, "trial/root", "Checking every block of the root"):
        try:
            shell = start("/bin/sh", "-c")
        except TrustError as error:
            yield SOUND, False, _since(began), error.message
            return
    yield SOUND, True, _since(began), ""
    for name, command, expect, timeout_s in (
        (CONFINED, "true", "", 60),
        *((name, each.command, each.expect, each.timeout_s) for name, each in cases.items()),
    ):
        began = time.monotonic()
        with task(sink, f"trial/{name}", name):
            try:
                said = run([shell, command], timeout_s=timeout_s, show="the test").output
            except CommandError as error:
                yield name, False, _since(began), error.message
                continue
        yield name, expect in said, _since(began), said if expect in said else f"'{expect}' is not in what it said:\n{said}"


def _since(began: float) -> int:
    return round(1000 * (time.monotonic() - began))
