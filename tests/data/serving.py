"""A server for downloads that serves its files badly, as their addresses say."""

import hashlib
from http.server import BaseHTTPRequestHandler

from sabr.data.download import Digest

BODY = bytes(range(256)) * 2000
DIGEST = Digest("sha256", hashlib.sha256(BODY).hexdigest())


class Handler(BaseHTTPRequestHandler):
    """Serves server.files; the first folder of an address says how badly."""

    def do_GET(self):
        _, manner, name = self.path.split("/", 2)
        body = self.server.files[name]
        asked, same = self.headers.get("Range"), self.headers.get("If-Range", '"v1"') == '"v1"'
        self.server.requests.append((manner, asked, self.headers.get("If-Range")))
        start = 0
        if manner == "unsatisfiable" and asked:
            return self.answer(416, b"")
        if manner == "corrupt":
            body = b"x" + body[1:]
        if manner == "short":
            body = body[:-1]
        if asked and same and manner in ("good", "breaks", "corrupt"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        end = start + 200_000 if manner in ("breaks", "truncates") else len(body)
        return self.answer(206 if start else 200, body[start:end], len(body) - start, start)

    def answer(self, status, data, length=0, start=0):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"v1"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{start + length}")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *args):
        pass


def left(folder):
    """Names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())
