"""The ways in which a release can come to a host, and which of them is the cheapest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from obelisk.release.client.hashtree import Run

OnBytes = Callable[[int], None]
_REQUEST_BYTES = 16 << 10
"""What a request costs beside its bytes, in bytes: a round trip of some 10 ms on a line of 10 Mbit/s."""


class Way(Protocol):
    """One way to bring a release here. Its costs are known before anything is fetched."""

    @property
    def title(self) -> str:
        """How it goes, for people."""
        ...

    @property
    def download_bytes(self) -> int:
        """What has to be fetched yet."""
        ...

    @property
    def requests(self) -> int:
        """With how many requests."""
        ...

    @property
    def fetch_bytes(self) -> int:
        """What of it `fetch` brings."""
        ...

    @property
    def room_bytes(self) -> int:
        """How much room it takes in `incoming`."""
        ...

    @property
    def write_bytes(self) -> int:
        """To what `write` counts."""
        ...

    def fetch(self, incoming: Path, on_bytes: OnBytes) -> None:
        """Bring into a directory what has to be there before anything is written; `on_bytes` is told of all `fetch_bytes`.

        Raises:
            TransportError, TrustError, StateError: see `obelisk.release.client.remote.Mirrors.fetch`.
        """
        ...

    def write(self, incoming: Path, root: Path, tree: Path, *, on_bytes: OnBytes) -> tuple[int, list[Run]]:
        """Make the devices hold the image, and `incoming`/uki its kernel image; see `obelisk.host.source.Source.write`.

        `on_bytes` is told of `write_bytes`, or as many as there are to deal with yet.

        Raises:
            TransportError, TrustError: it cannot be fetched, or is not what it must be; nothing wrong was written.
        """
        ...


def by_cost(ways: Sequence[Way]) -> list[Way]:
    """The cheapest first."""
    return sorted(ways, key=lambda way: way.download_bytes + way.requests * _REQUEST_BYTES)
