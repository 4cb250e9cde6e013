"""Notes: POST adds a line of text, GET lists them all."""

import sqlite3
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATABASE = "/var/lib/notes/notes.sqlite"
LONGEST_BYTES = 4096


class Notes(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """List the notes."""
        with sqlite3.connect(DATABASE) as database:
            rows = database.execute("SELECT text FROM notes ORDER BY id").fetchall()
        self.answer(200, "".join(f"{text}\n" for (text,) in rows))

    def do_POST(self) -> None:
        """Add a note."""
        size = int(self.headers.get("Content-Length", "0"))
        if not 0 < size <= LONGEST_BYTES:
            self.answer(413, f"a note has 1 to {LONGEST_BYTES} bytes\n")
            return
        text = self.rfile.read(size).decode(errors="replace")
        with sqlite3.connect(DATABASE) as database:
            database.execute("INSERT INTO notes (text) VALUES (?)", (text,))
        self.answer(201, "kept\n")

    def answer(self, status: int, text: str) -> None:
        """Send plain text."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve for ever."""
    with sqlite3.connect(DATABASE) as database:
        database.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    ThreadingHTTPServer(("", 8000), Notes).serve_forever()


if __name__ == "__main__":
    main()
