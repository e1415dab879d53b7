"""As much of S3 as the store needs, on loopback: PUT, GET, HEAD, DELETE, bulk delete and lists of pages."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET = "bucket"
ACCESS_KEY = "AKIDEXAMPLE"
SECRET = "hush-hush-secret"
_PAGE = 50


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class S3Server:
    """A server with one bucket. `status` makes it answer all requests so; `hold` makes it wait until it is set."""

    def __init__(self, clock: Callable[[], float], *, port: int = 0) -> None:
        self.clock = clock
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.status = 0
        self.short_by = 0
        """Bytes of a body that never come."""
        self.requests = 0
        self.go = threading.Event()
        self.go.set()
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # its client hung up before
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _handler(server: S3Server) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - one request handler
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.connections.append(self.connection)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def answer(
            self, status: int, body: bytes = b"", *, headers: dict[str, str] | None = None, short: int = 0
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str((headers or {}).pop("length", len(body))))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) - short])
            self.wfile.flush()
            self.close_connection = self.close_connection or short > 0

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with server.lock:
                server.requests += 1
            server.go.wait(30)
            url = urlsplit(self.path)
            query = parse_qs(url.query, keep_blank_values=True)
            _, bucket, *rest = unquote(url.path).split("/", 2)
            name = rest[0] if rest else ""
            if server.status:
                self.answer(server.status, b"<Error><Code>Told</Code></Error>" if self.command != "HEAD" else b"")
            elif f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
                self.answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>" if self.command != "HEAD" else b"")
            elif bucket != BUCKET:
                self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>" if self.command != "HEAD" else b"")
            else:
                self.serve(name, query, body)

        def serve(self, name: str, query: dict[str, list[str]], body: bytes) -> None:
            match self.command:
                case "PUT":
                    with server.lock:
                        server.objects[name] = (body, server.clock())
                    self.answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})  # noqa: S324
                case "GET" if query.get("list-type"):
                    self.answer(200, self.listing(query), headers={"Content-Type": "application/xml"})
                case "GET" | "HEAD":
                    self.send_object(name)
                case "DELETE":
                    with server.lock:
                        server.objects.pop(name, None)
                    self.answer(204)
                case "POST" if "delete" in query:
                    names = [unescape(found) for found in re.findall(r"<Key>(.*?)</Key>", body.decode())]
                    with server.lock:
                        for found in names:
                            server.objects.pop(found, None)
                    told = "".join(f"<Deleted><Key>{escape(found)}</Key></Deleted>" for found in names)
                    self.answer(200, f"<DeleteResult>{told}</DeleteResult>".encode())
                case _:
                    self.answer(501)

        def send_object(self, name: str) -> None:
            with server.lock:
                found = server.objects.get(name)
            if found is None:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>" if self.command == "GET" else b"")
                return
            data, modified_s = found
            headers = {
                "Last-Modified": format_datetime(datetime.fromtimestamp(modified_s, UTC), usegmt=True),
                "ETag": '"x"',
            }
            if self.command == "HEAD":
                self.answer(200, headers=headers | {"length": str(len(data))})
            else:
                self.answer(200, data, headers=headers, short=server.short_by)

        def listing(self, query: dict[str, list[str]]) -> bytes:
            prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
            with server.lock:
                names = sorted(name for name in server.objects if name.startswith(prefix) and name > after)
                shown = [(name, *server.objects[name]) for name in names[:_PAGE]]
            rows = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size><ETag>x</ETag>"
                f"<LastModified>{_iso(at)}</LastModified></Contents>"
                for name, data, at in shown
            )
            more = len(names) > _PAGE
            token = f"<NextContinuationToken>{escape(shown[-1][0])}</NextContinuationToken>" if more else ""
            truncated = str(more).lower()
            return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{rows}</ListBucketResult>".encode()

        do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_any  # noqa: N815 - names of the base class

    return Handler
