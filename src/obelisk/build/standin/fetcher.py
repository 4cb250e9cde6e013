"""`tuf.ngclient.urllib3_fetcher` on hosts, which have no urllib3: python-tuf imports it, and our client never uses it."""

from collections.abc import Iterator

from tuf.ngclient.fetcher import FetcherInterface


class Urllib3Fetcher(FetcherInterface):
    """Takes no one anywhere: give `Updater` a fetcher of your own."""

    def __init__(self, *_given: object, **_named: object) -> None:
        message = "hosts fetch through obelisk.system.http"
        raise NotImplementedError(message)

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(url)
