"""Repositories of the Hugging Face Hub at one commit: what they hold, and whole downloads that outlive a failure."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from huggingface_hub import HfApi, hf_hub_download
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

from colbert_zero.graph.artifact import Job
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import link

CARD, CONFIGURATION = "README.md", "config:"
"""A glob `config:NAME` stands for the files that the repository's card gives for its configuration NAME."""


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one commit.

    Attributes:
        hub: `OWNER/NAME`.
        kind: `dataset` or `model`.
        commit: 40 hex digits.
        files: What the commit holds, by path.
        folder: Where its files are downloaded to; it outlives a failed attempt.
        threads: How many files are downloaded at once.
    """

    hub: str
    kind: str
    commit: str
    files: Mapping[str, RepoFile]
    folder: Path
    threads: int

    @classmethod
    def of(cls, job: Job, kind: str) -> Repository:
        """Look up `settings.hub` at `settings.revision`."""
        hub, revision, api = job.settings["hub"], job.settings["revision"], HfApi()
        with _explained(hub, revision):
            commit = str(api.repo_info(hub, repo_type=kind, revision=revision).sha)
            tree = list(api.list_repo_tree(hub, recursive=True, repo_type=kind, revision=commit))
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        for path in files:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise UserError(f"{hub} at {commit} lists {path!r}, a path out of its folder: it is not fetched")
        return cls(hub, kind, commit, files, job.state / commit, job.threads)

    @property
    def facts(self) -> dict[str, str]:
        """What the manifest keeps of it."""
        return {"hub": self.hub, "commit": self.commit}

    def matching(self, globs: Iterable[str]) -> list[str]:
        """The paths that any of the globs matches, sorted; `*` matches `/` too.

        Raises:
            UserError: There is none.
        """
        given = list(globs)
        patterns = [pattern for glob in given for pattern in self._patterns(glob)]
        found = [path for path in sorted(self.files) if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]
        if not found:
            raise UserError(
                f"{self.hub} at {self.commit} has no file that matches {', '.join(given)}; it has {first_few(self.files)}: "
                "correct the globs"
            )
        return found

    def _patterns(self, glob: str) -> list[str]:
        if not glob.startswith(CONFIGURATION):
            return [glob]
        name = glob.removeprefix(CONFIGURATION)
        if CARD not in self.files:
            raise UserError(f"{self.hub} at {self.commit} has no card to say which files {glob} are: give globs")
        self.download([CARD])
        configurations = (metadata_load(self.folder / CARD) or {}).get("configs") or []
        known = {configuration.get("config_name"): configuration for configuration in configurations}
        if name not in known or not known[name].get("data_files"):
            raise UserError(
                f"the card of {self.hub} at {self.commit} gives no files for the configuration {name}; it knows "
                f"{first_few(map(str, known))}: give globs"
            )
        return list(_data_files(known[name]["data_files"]))

    def download(self, paths: Sequence[str]) -> None:
        """Have `paths` in `folder`, whole and as the Hub lists them.

        Raises:
            UserError: The connection broke, or a file is not what the Hub says it is.
        """

        def download(path: str) -> None:
            hf_hub_download(self.hub, path, repo_type=self.kind, revision=self.commit, local_dir=self.folder)

        # The library goes on within a file only during one attempt; halves of killed ones would pile up.
        for left in self.folder.rglob("*.incomplete"):
            left.unlink()
        with _explained(self.hub, self.commit), ThreadPoolExecutor(self.threads) as pool:
            for _ in progress(pool.map(download, paths), len(paths), f"files of {self.hub}"):
                pass
        for path in paths:
            if not _intact(self.folder / path, self.files[path]):
                (self.folder / path).unlink()
                raise UserError(f"{self.hub}/{path} arrived damaged; run the same command again to get it anew")

    def publish(self, paths: Iterable[str], folder: Path) -> None:
        """Put downloaded files into `folder`, under their paths; they stay in the state until all is published."""
        for path in paths:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            link(self.folder / path, target)


@contextmanager
def _explained(hub: str, revision: str) -> Iterator[None]:
    """Turn what the Hub or the network refuse into one line; never the library's text, which holds addresses."""
    try:
        yield
    except HFValidationError:
        raise UserError(f"{hub!r} is not the name of a repository: OWNER/NAME is needed") from None
    except GatedRepoError:
        raise UserError(
            f"{hub} is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub} is not on the Hub, or not for everyone: check its name, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{hub} has no revision {revision}: check it on the repository's page") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{hub} cannot be fetched while HF_HUB_OFFLINE is set: unset it, or fetch elsewhere") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"the Hub refuses {hub} (HTTP {status}): check HF_TOKEN") from None
        raise UserError(f"the Hub answers HTTP {status} for {hub}: try again later, what has arrived is kept") from None
    except (httpx.HTTPError, EntryNotFoundError, FileMetadataError, XetDownloadError) as error:
        raise UserError(
            f"{hub}: the Hub cannot be reached, or broke off ({type(error).__name__}): check the network and "
            "HF_ENDPOINT, then run the same command again; what has arrived is kept"
        ) from None
    except OSError as error:
        if error.errno is not None:  # of this machine, such as a full disk
            raise
        raise UserError(
            f"{hub}: the download broke off: run the same command again; what has arrived is kept"
        ) from None


def _intact(path: Path, entry: RepoFile) -> bool:
    """Whether a file has the digest the Hub lists: SHA-256 of a large file, git's SHA-1 of any other."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return file_digest(path) == entry.lfs.sha256
    blob = b"blob %d\0" % entry.size + path.read_bytes()
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == entry.blob_id


def _data_files(value: Any) -> Iterator[str]:
    """The patterns in a card's `data_files`: a string, a list of them, or a list of splits with a `path`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _data_files(value["path"])
    else:
        for inner in value:
            yield from _data_files(inner)


def first_few(names: Iterable[str]) -> str:
    """At most five of `names`, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "nothing"
