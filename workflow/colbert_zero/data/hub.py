"""Repositories of the Hugging Face Hub at one commit: list their files, and download them so that a retry resumes.

What the server answers is not trusted: commits, paths and ETags become names of files here, and its addresses could
take the token elsewhere. Each is checked before it is used.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import yaml
from huggingface_hub import HfApi, constants, hf_hub_download, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils._http import default_client_factory

from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Job
from colbert_zero.graph.console import RetryableError, UserError, progress
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import link_or_copy
from colbert_zero.graph.revisions import COMMIT_PATTERN

CARD_FILE = "README.md"
CONFIG_PREFIX = "config:"
"""A glob `config:NAME` stands for the files that the repository's card lists for its configuration NAME."""
MAXIMUM_CARD_GLOBS = 10_000
"""Globs that a configuration of a card may list; YAML's aliases make short cards that list billions."""
ETAG_PATTERN = re.compile(r'(W/)?"?[\w:+=-]*"?', re.ASCII)
"""The Hub's ETags are hex digits; huggingface_hub names a file after them."""
MAXIMUM_NAME_BYTES = 240
"""File systems allow 255, of which huggingface_hub takes up to 9 for its notes on a download."""
RESOLVE_SECONDS = 60.0
"""How long to wait for the commit of a name; the library would wait for ever."""
KEPT = "; files that have arrived are kept"


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one commit.

    Attributes:
        repo_id: `OWNER/NAME`.
        repo_type: `dataset` or `model`.
        commit: 40 hex digits.
        files: The files of the commit, by path.
        folder: The download folder; it survives a failed attempt.
        threads: How many files are downloaded at once.
    """

    repo_id: str
    repo_type: str
    commit: str
    files: Mapping[str, RepoFile]
    folder: Path
    threads: int

    @classmethod
    def look_up(cls, job: Job, repo_type: str, settings: Mapping[str, Any] | None = None) -> Repository:
        """Resolve `settings.revision` of `settings.hub` to a commit, and list the commit's files.

        Args:
            job: The artifact's.
            repo_type: `dataset` or `model`.
            settings: The artifact's by default.

        Raises:
            UserError: The Hub has no such repository or revision, or refuses it, or cannot be reached; or it answers
                with another commit than the one asked for, or with what is no commit or listing.
        """
        settings = settings or job.settings
        repo_id, revision, api = settings["hub"], settings["revision"], HfApi()
        set_client_factory(_make_client)
        with _hub_errors_in_one_line(repo_id, revision), _malformed_answers_in_one_line(repo_id):
            answer = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
            commit = _checked_commit(repo_id, revision, answer)
            tree = list(api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=commit))
        files = {str(entry.path): entry for entry in tree if isinstance(entry, RepoFile)}
        return cls(repo_id, repo_type, commit, files, job.state / commit, job.threads)

    @property
    def facts(self) -> dict[str, str]:
        """The repository's facts for the manifest."""
        return {"hub": self.repo_id, "commit": self.commit}

    def matching(self, globs: Iterable[str]) -> list[str]:
        """The paths that match any of the globs, sorted; `*` matches `/` too.

        Raises:
            UserError: No path matches.
        """
        globs = list(globs)
        patterns = [pattern for glob in globs for pattern in self._expand_config(glob)]
        paths = [path for path in sorted(self.files) if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]
        if not paths:
            raise UserError(
                f"{self.repo_id} at {self.commit} has no file that matches {', '.join(globs)}; it has "
                f"{first_few(self.files)}: correct the globs"
            )
        return paths

    def _expand_config(self, glob: str) -> list[str]:
        """Replace a glob `config:NAME` with the globs that the repository's card lists for NAME."""
        if not glob.startswith(CONFIG_PREFIX):
            return [glob]
        name = glob.removeprefix(CONFIG_PREFIX)
        if CARD_FILE not in self.files:
            raise UserError(f"{self.repo_id} at {self.commit} has no card that lists the files of {glob}: give globs")
        self.download([CARD_FILE])
        card = f"the card of {self.repo_id} at {self.commit}"
        try:
            configs = {
                config.get("config_name"): config
                for config in (metadata_load(self.folder / CARD_FILE) or {}).get("configs") or []
            }
            data_files = configs.get(name, {}).get("data_files") or []
            patterns = list(islice(_data_file_globs(data_files), MAXIMUM_CARD_GLOBS + 1))
        except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(f"{card} does not list configurations as cards do: give globs") from None
        if not patterns:
            raise UserError(
                f"{card} lists no files for the configuration {name}; it has {first_few(map(str, configs))}: give globs"
            )
        if len(patterns) > MAXIMUM_CARD_GLOBS:
            raise UserError(f"{card} lists more than {MAXIMUM_CARD_GLOBS} globs for {name}: give globs")
        return patterns

    def download(self, paths: Sequence[str]) -> None:
        """Download the files that `folder` lacks, and check size and digest of each file in `paths`.

        Raises:
            UserError: The connection broke; a file has another size or digest than the Hub lists, or a path that
                cannot be used here.
        """
        _check_paths(f"{self.repo_id} at {self.commit}", paths)

        def download(path: str) -> None:
            hf_hub_download(self.repo_id, path, repo_type=self.repo_type, revision=self.commit, local_dir=self.folder)

        # The library resumes a partial file only within one attempt; those of killed attempts would pile up.
        for partial_file in self.folder.rglob("*.incomplete"):
            partial_file.unlink()
        with (
            _hub_errors_in_one_line(self.repo_id, self.commit),
            _malformed_answers_in_one_line(self.repo_id),
            ThreadPoolExecutor(self.threads) as pool,
        ):
            for _ in progress(pool.map(download, paths), len(paths), f"files of {self.repo_id}"):
                pass
        for path in paths:
            if not _is_intact(self.folder / path, self.files[path]):
                (self.folder / path).unlink()
                raise UserError(f"{self.repo_id}/{path} arrived damaged; run the same command again to get it anew")

    def publish(self, paths: Iterable[str], folder: Path) -> None:
        """Link or copy downloaded files into `folder`, under their paths; the downloads stay until all is published."""
        for path in paths:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(self.folder / path, target)


def resolve_commit(repo_type: str, repo_id: str, revision: str) -> str:
    """The commit that a revision of a repository stands for now; `HF_ENDPOINT` and `HF_TOKEN` are honoured.

    Args:
        repo_type: `dataset` or `model`.
        repo_id: `OWNER/NAME`.
        revision: A branch, a tag or a commit.

    Raises:
        RetryableError: The Hub cannot be reached, or may not be asked (`HF_HUB_OFFLINE`).
        UserError: The Hub has no such repository or revision, or refuses it, or its answer is no commit.
    """
    if constants.HF_HUB_OFFLINE:
        raise RetryableError(
            f"which commit {revision} of {repo_id} is cannot be looked up while HF_HUB_OFFLINE is set: unset it, or "
            "give a revision of 40 hex digits"
        )
    hide_addresses()
    set_client_factory(_make_client)
    with _hub_errors_in_one_line(repo_id, revision, kept=""), _malformed_answers_in_one_line(repo_id):
        found = HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=RESOLVE_SECONDS)
        return _checked_commit(repo_id, revision, found.sha)


def hide_addresses() -> None:
    """Keep the libraries' log lines, which would hold the signed addresses of files, from all logs."""
    for library in ("httpx", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _checked_commit(repo_id: str, revision: str, commit: Any) -> str:
    """The commit that the Hub answers, which must be one, and the pinned one if `revision` is a commit."""
    if not isinstance(commit, str) or not COMMIT_PATTERN.fullmatch(commit):
        raise UserError(f"{repo_id}: the Hub answers {commit!r:.80} for a commit, not 40 hex digits: check HF_ENDPOINT")
    pinned = revision.lower()
    if COMMIT_PATTERN.fullmatch(pinned) and commit != pinned:
        raise UserError(
            f"{repo_id}: the Hub answers with the commit {commit}, but {revision} was asked for: check HF_ENDPOINT"
        )
    return commit


def _check_paths(where: str, paths: Sequence[str]) -> None:
    """Raise a UserError for a path that leads out of its folder, or that means another file on some systems."""
    seen: dict[str, str] = {}
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    for path in paths:
        parts = path.split("/")
        if "\\" in path or ":" in parts[0] or {"", ".", ".."} & set(parts):
            raise UserError(f"{where} lists {path!r}, a path out of its folder: it is not fetched")
        if not path.isprintable() or path in folders or max(len(part.encode()) for part in parts) > MAXIMUM_NAME_BYTES:
            raise UserError(f"{where} lists {path!r:.300}, which cannot be a file's name here: it is not fetched")
        # huggingface_hub keeps its notes on downloads in .cache; the others are an artifact's own files.
        if parts[0].lower() in (".cache", SPEC_FILE, MANIFEST_FILE):
            raise UserError(f"{where} lists {path!r}, a name that is kept for other files here: correct the globs")
        other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if other != path:
            raise UserError(f"{where} lists {other!r} and {path!r}, one file on some systems: correct the globs")


def _make_client() -> httpx.Client:
    """The library's HTTP client, which also refuses to take the token elsewhere or an ETag that is a path."""
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _keep_token],
        "response": [*hooks["response"], _check_etag],
    }
    return client


def _keep_token(request: httpx.Request) -> None:
    """Raise a UserError if the token is about to be sent to another server than the Hub: in a listing's next page, say.

    Downloads redirected to a storage server do not come here with a token: the libraries take it off.
    """
    hub, url = httpx.URL(constants.ENDPOINT), request.url
    is_hub = (url.scheme, url.host, url.port) == (hub.scheme, hub.host, hub.port)
    is_known = url.scheme == "https" and url.host in constants.HF_URL_HOSTS
    if "authorization" in request.headers and not (is_hub or is_known):
        raise UserError(f"the Hub at {hub.host} asks to send the token to {url.host}: not done; check HF_ENDPOINT")


def _check_etag(response: httpx.Response) -> None:
    """Raise a UserError for an ETag that could not be the name of a file; only those of HEAD requests are used so."""
    etags = [response.headers.get(header, "") for header in ("etag", "x-linked-etag")]
    if response.request.method == "HEAD" and not all(map(ETAG_PATTERN.fullmatch, etags)):
        raise UserError(f"{response.url.host} answers with the ETags {etags!r:.200}: none of a Hub; check HF_ENDPOINT")


@contextmanager
def _malformed_answers_in_one_line(repo_id: str) -> Iterator[None]:
    """Turn what the library raises for an answer that is not the API's into one line."""
    try:
        yield
    except (HFValidationError, HfHubHTTPError):
        raise  # that of HTTP 400 is a ValueError too
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, httpx.InvalidURL) as error:
        raise UserError(
            f"{repo_id}: the answer is not one of the Hub's API ({type(error).__name__}): check HF_ENDPOINT"
        ) from None


@contextmanager
def _hub_errors_in_one_line(repo_id: str, revision: str, kept: str = KEPT) -> Iterator[None]:
    """Turn an error of the Hub or the network into one line, without the library's text, which holds addresses.

    `kept` ends the line of an error after which the same command may succeed.
    """
    try:
        yield
    except HFValidationError:
        raise UserError(f"{repo_id!r} is not the name of a repository: OWNER/NAME is needed") from None
    except GatedRepoError:
        raise UserError(
            f"{repo_id} is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{repo_id} is not on the Hub, or is private: check its name, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{repo_id} has no revision {revision}: check it on the repository's page") from None
    except OfflineModeIsEnabled:
        raise RetryableError(
            f"{repo_id} cannot be fetched while HF_HUB_OFFLINE is set: unset it, or fetch elsewhere"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"the Hub refuses {repo_id} (HTTP {status}): check HF_TOKEN") from None
        raise RetryableError(f"the Hub answers HTTP {status} for {repo_id}: try again later{kept}") from None
    except (httpx.HTTPError, EntryNotFoundError, FileMetadataError, XetDownloadError) as error:
        raise RetryableError(
            f"{repo_id}: the Hub cannot be reached, or broke off ({type(error).__name__}): check the network and "
            f"HF_ENDPOINT, then run the same command again{kept}"
        ) from None
    except OSError as error:
        if error.errno is not None:  # an error of this machine, such as a full disk
            raise
        raise UserError(f"{repo_id}: the Hub broke off: run the same command again{kept}") from None


def _is_intact(path: Path, entry: RepoFile) -> bool:
    """Whether a file has the size and digest that the Hub lists: SHA-256 of a large file, git's SHA-1 of any other."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return file_digest(path) == entry.lfs.sha256
    blob = b"blob %d\0" % entry.size + path.read_bytes()
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == entry.blob_id


def _data_file_globs(value: Any, depth: int = 0) -> Iterator[str]:
    """The globs in a card's `data_files`: a string, a list of them, or a list of splits with a `path`.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(value, str):
        yield value
    elif depth == 4:
        raise TypeError
    elif isinstance(value, Mapping):
        yield from _data_file_globs(value["path"], depth + 1)
    else:
        for item in value:
            yield from _data_file_globs(item, depth + 1)


def first_few(names: Iterable[str]) -> str:
    """At most five of `names`, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "nothing"
