"""A small local server for tests, with the part of the Hugging Face Hub's API that fetching needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".parquet", ".safetensors", ".gz")
"""Files with these suffixes are listed and served as large files: with their SHA-256."""

API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<hub>[^/]+/[^/]+)/(?P<verb>revision|tree)/(?P<revision>[^/]+)")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<hub>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """The served repositories, the faults to simulate, and a record of the requests.

    Attributes:
        address: The value for HF_ENDPOINT.
        cut_after: By path, the number of bytes after which each of the next responses breaks off.
        statuses: By path, the HTTP status of each of the next requests for the file's bytes; later ones succeed.
        corrupt: Paths that are served with the right size but other bytes.
        phantom_paths: Paths that are listed although they do not exist.
        token: If set, requests without it are refused.
        gated: Repositories whose terms nobody has accepted.
        range_requests: The (path, Range header) of the requests with such a header.
        downloads: The paths whose bytes were requested, in order.
        lookups: The (kind, repository, revision) whose commit was asked for, in order.
        authorizations: The Authorization headers of all requests.
        answers: By "sha", "tree", "next", "etag", "location" or "refresh": what is answered in place of the commit, the
            listing, the address of its next page, a file's ETag, its address, or its address for a Xet token. Bytes are
            answered as they are, other values as JSON.
    """

    address: str = ""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    phantom_paths: list[str] = field(default_factory=list)
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    range_requests: list[tuple[str, str]] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    lookups: list[tuple[str, str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    _repositories: dict[tuple[str, str], dict[str, Path]] = field(default_factory=dict)

    def add(self, hub: str, folder: Path, kind: str = "datasets") -> str:
        """Serve a folder's files as a new commit at the head of the repository's main branch; return the commit."""
        content = "".join(f"{path}{path.read_bytes()!r}" for path in sorted(folder.rglob("*")) if path.is_file())
        commit = hashlib.sha1((hub + content).encode()).hexdigest()
        self._repositories.setdefault((kind, hub), {}).update({commit: folder, "main": folder})
        return commit

    def tag(self, hub: str, name: str, commit: str, kind: str = "datasets") -> None:
        """Give a commit a name."""
        revisions = self._repositories[kind, hub]
        revisions[name] = revisions[commit]

    def find(self, kind: str, hub: str, revision: str) -> tuple[str, Path] | str:
        """The (commit, folder) of a revision, or the Hub's error code."""
        if hub in self.gated:
            return "GatedRepo"
        if (kind, hub) not in self._repositories:
            return "RepoNotFound"
        revisions = self._repositories[kind, hub]
        if revision not in revisions:
            return "RevisionNotFound"
        folder = revisions[revision]
        commits = (name for name in revisions if re.fullmatch("[0-9a-f]{40}", name))
        return next(commit for commit in commits if revisions[commit] == folder), folder


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
                hub.authorizations.append(authorization)
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
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(200)
            if isinstance(value, list) and "next" in hub.answers:
                self.send_header("Link", f'<{hub.answers["next"]}>; rel="next"')
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
                served.lookups.append((kind, hub, revision))
                sha = served.answers.get("sha", commit)
                self._json({"id": hub, "sha": sha, "siblings": [{"rfilename": name} for name in names]})
            elif "tree" in served.answers:
                self._json(served.answers["tree"])
            else:
                entries = [_entry(path, name) for path, name in zip(files, names, strict=True)]
                self._json([*entries, *({**entries[0], "path": path} for path in served.phantom_paths)])

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
            etag = _entry(folder / name, name).get("lfs", {}).get("oid") or _git_sha1(content)
            etag = hub.answers.get("etag", etag)
            if name in hub.corrupt:
                content = bytes(len(content))
            if not body and "location" in hub.answers:
                self.send_response(302)
                self.send_header("Location", hub.answers["location"])
                self.send_header("Content-Length", "0")
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", commit)
                self.end_headers()
                return
            start, size = 0, len(content)
            if requested := self.headers.get("Range"):
                hub.range_requests.append((name, requested))
                start = int(requested.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if requested else 200)
            if requested:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", commit)
            if "refresh" in hub.answers:
                self.send_header("X-Xet-Hash", "0" * 64)
                self.send_header("Link", f'<{hub.answers["refresh"]}>; rel="xet-auth"')
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return
            hub.downloads.append(name)
            cut = hub.cut_after[name].pop(0) if hub.cut_after.get(name) else size
            self.wfile.write(content[start : start + cut])
            if start + cut < size:
                self.wfile.flush()
                self.close_connection = True

    served = hub
    return Handler


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: Path, name: str) -> dict[str, object]:
    content = path.read_bytes()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _git_sha1(content)}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a Hub on a free local port within the context."""
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
