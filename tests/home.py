"""A small HTTP server, as an instance in a network namespace has it: `home.py IMAGE PORT PLACE`.

It imports next to nothing: what starts beside others, on the same processors, is to cost them as little as can be.
"""

import asyncio
import signal
import sys


class Answering(asyncio.Protocol):
    """One connection to an instance. `/` has the image's name; `/slow/TENTHS` the same, in so many letters, ten a second."""

    image = ""
    open: "set[Answering]" = set()  # noqa: RUF012 - all of the process
    ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.data = b""
        self.open.add(self)

    def connection_lost(self, _why: Exception | None) -> None:
        self.open.discard(self)
        if Answering.ending and not self.open:
            asyncio.get_running_loop().stop()

    def data_received(self, data: bytes) -> None:
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, self.data = self.data.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            close = Answering.ending or b"connection: close" in head.lower()
            if path.startswith("/slow/"):
                self.slowly = asyncio.ensure_future(self.drip(int(path[6:])))
                return
            status = "503 No" if path == "/health" and self.image.startswith("bad") else "200 OK"
            body = self.image.encode()
            more = "Connection: close\r\n" if close else ""
            self.transport.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)
            if close:
                self.transport.close()

    async def drip(self, tenths: int) -> None:
        body = self.image.ljust(tenths).encode()
        self.transport.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        for letter in body:
            self.transport.write(bytes([letter]))
            await asyncio.sleep(0.1)
        self.transport.close()


def serve(image: str, port: int) -> None:
    """An instance: it answers until it is told to end, and then until its connections have ended."""
    if image.startswith("dead"):
        sys.exit(1)
    Answering.image = image
    loop = asyncio.new_event_loop()
    loop.run_until_complete(loop.create_server(Answering, "", port, backlog=1024))

    def end() -> None:
        Answering.ending = True
        if not Answering.open:
            loop.stop()

    loop.add_signal_handler(signal.SIGTERM, end)
    loop.run_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
