"""A small local server that speaks as much of the Hugging Face Hub's API as fetching needs, for tests."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".parquet", ".safetensors", ".gz")
"""Files of these kinds are listed and served as large ones: with their SHA-256."""

API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<hub>[^/]+/[^/]+)/(?P<verb>revision|tree)/(?P<revision>[^/]+)")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<hub>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """What is served, and what was asked.

    Attributes:
        address: For HF_ENDPOINT.
        cuts: By path, after how many bytes each of its next responses breaks off; used up one by one.
        statuses: By path, the HTTP status of each request for its bytes; used up one by one, then all is well.
        corrupt: Paths that are served with the right size and other bytes.
        astray: Paths that are listed besides, and are not there.
        token: If set, whoever does not send it is refused.
        gated: Repositories whose terms nobody has accepted.
        ranges: The (path, Range header) of the requests that had one.
        gets: The paths whose bytes were asked for, in order.
        tokens: The Authorization headers that came.
    """

    address: str = ""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    astray: list[str] = field(default_factory=list)
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    _repositories: dict[tuple[str, str], dict[str, Path]] = field(default_factory=dict)

    def add(self, hub: str, folder: Path, kind: str = "datasets") -> str:
        """Serve a folder's files as a new commit, the head of main, of a repository; return the commit."""
        content = "".join(f"{path}{path.read_bytes()!r}" for path in sorted(folder.rglob("*")) if path.is_file())
        commit = hashlib.sha1((hub + content).encode()).hexdigest()
        self._repositories.setdefault((kind, hub), {}).update({commit: folder, "main": folder})
        return commit

    def find(self, kind: str, hub: str, revision: str) -> tuple[str, Path] | str:
        """The (commit, folder) of a revision, or the Hub's code for why not."""
        if hub in self.gated:
            return "GatedRepo"
        if (kind, hub) not in self._repositories:
            return "RepoNotFound"
        revisions = self._repositories[kind, hub]
        if revision not in revisions:
            return "RevisionNotFound"
        folder = revisions[revision]
        return next(commit for commit, other in revisions.items() if commit != "main" and other == folder), folder


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            authorization = self.headers.get("Authorization")
            if authorization:
                hub.tokens.append(authorization)
            if hub.token and authorization != f"Bearer {hub.token}":
                self._refuse(401, "RepoNotFound")
            elif match := API.fullmatch(path):
                self._api(**match.groupdict())
            elif match := RESOLVE.fullmatch(path):
                kind = "datasets" if match["kind"] else "models"
                self._file(hub.find(kind, match["hub"], match["revision"]), match["path"], body)
            else:
                self._refuse(404, "EntryNotFound")

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _api(self, kind: str, hub: str, verb: str, revision: str) -> None:
            found = served.find(kind, hub, revision)
            if isinstance(found, str):
                self._refuse(403 if found == "GatedRepo" else 404, found)
                return
            commit, folder = found
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if verb == "revision":
                self._json({"id": hub, "sha": commit, "siblings": [{"rfilename": name} for name in names]})
            else:
                entries = [_entry(path, name) for path, name in zip(files, names, strict=True)]
                self._json([*entries, *({**entries[0], "path": path} for path in served.astray)])

        def _file(self, found: tuple[str, Path] | str, name: str, body: bool) -> None:
            if isinstance(found, str):
                self._refuse(403 if found == "GatedRepo" else 404, found)
                return
            commit, folder = found
            if not (folder / name).is_file():
                self._refuse(404, "EntryNotFound")
                return
            status = hub.statuses[name].pop(0) if body and hub.statuses.get(name) else 200
            if status != 200:
                self._refuse(status, "Unavailable")
                return
            content = (folder / name).read_bytes()
            etag = _entry(folder / name, name).get("lfs", {}).get("oid") or _git(content)
            if name in hub.corrupt:
                content = bytes(len(content))
            start, size = 0, len(content)
            if asked := self.headers.get("Range"):
                hub.ranges.append((name, asked))
                start = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return
            hub.gets.append(name)
            cut = hub.cuts[name].pop(0) if hub.cuts.get(name) else size
            self.wfile.write(content[start : start + cut])
            if start + cut < size:
                self.wfile.flush()
                self.close_connection = True

    served = hub
    return Handler


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: Path, name: str) -> dict[str, object]:
    content = path.read_bytes()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _git(content)}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a free local port, as long as the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
