"""Repositories of the Hugging Face Hub at one commit: list their files, and download them so that a retry resumes."""

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
from colbert_zero.graph.local_files import link_or_copy

CARD_FILE = "README.md"
CONFIG_PREFIX = "config:"
"""A glob `config:NAME` stands for the files that the repository's card lists for its configuration NAME."""


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
    def look_up(cls, job: Job, repo_type: str) -> Repository:
        """Resolve `settings.revision` of `settings.hub` to a commit, and list the commit's files.

        Raises:
            UserError: The Hub has no such repository or revision, or refuses it, or cannot be reached.
        """
        repo_id, revision, api = job.settings["hub"], job.settings["revision"], HfApi()
        with _hub_errors_in_one_line(repo_id, revision):
            commit = str(api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha)
            tree = list(api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=commit))
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        for path in files:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise UserError(f"{repo_id} at {commit} lists {path!r}, a path out of its folder: it is not fetched")
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
        configs = {
            config.get("config_name"): config
            for config in (metadata_load(self.folder / CARD_FILE) or {}).get("configs") or []
        }
        if name not in configs or not configs[name].get("data_files"):
            raise UserError(
                f"the card of {self.repo_id} at {self.commit} lists no files for the configuration {name}; it has "
                f"{first_few(map(str, configs))}: give globs"
            )
        return list(_data_file_globs(configs[name]["data_files"]))

    def download(self, paths: Sequence[str]) -> None:
        """Download the files that `folder` lacks, and check size and digest of each file in `paths`.

        Raises:
            UserError: The connection broke, or a file has another size or digest than the Hub lists.
        """

        def download(path: str) -> None:
            hf_hub_download(self.repo_id, path, repo_type=self.repo_type, revision=self.commit, local_dir=self.folder)

        # The library resumes a partial file only within one attempt; those of killed attempts would pile up.
        for partial_file in self.folder.rglob("*.incomplete"):
            partial_file.unlink()
        with _hub_errors_in_one_line(self.repo_id, self.commit), ThreadPoolExecutor(self.threads) as pool:
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


@contextmanager
def _hub_errors_in_one_line(repo_id: str, revision: str) -> Iterator[None]:
    """Turn an error of the Hub or the network into one line, without the library's text, which holds addresses."""
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
        raise UserError(
            f"{repo_id} cannot be fetched while HF_HUB_OFFLINE is set: unset it, or fetch elsewhere"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"the Hub refuses {repo_id} (HTTP {status}): check HF_TOKEN") from None
        raise UserError(
            f"the Hub answers HTTP {status} for {repo_id}: try again later; files that have arrived are kept"
        ) from None
    except (httpx.HTTPError, EntryNotFoundError, FileMetadataError, XetDownloadError) as error:
        raise UserError(
            f"{repo_id}: the Hub cannot be reached, or broke off ({type(error).__name__}): check the network and "
            "HF_ENDPOINT, then run the same command again; files that have arrived are kept"
        ) from None
    except OSError as error:
        if error.errno is not None:  # an error of this machine, such as a full disk
            raise
        raise UserError(
            f"{repo_id}: the download broke off: run the same command again; files that have arrived are kept"
        ) from None


def _is_intact(path: Path, entry: RepoFile) -> bool:
    """Whether a file has the size and digest that the Hub lists: SHA-256 of a large file, git's SHA-1 of any other."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return file_digest(path) == entry.lfs.sha256
    blob = b"blob %d\0" % entry.size + path.read_bytes()
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == entry.blob_id


def _data_file_globs(value: Any) -> Iterator[str]:
    """The globs in a card's `data_files`: a string, a list of them, or a list of splits with a `path`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _data_file_globs(value["path"])
    else:
        for item in value:
            yield from _data_file_globs(item)


def first_few(names: Iterable[str]) -> str:
    """At most five of `names`, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "nothing"
