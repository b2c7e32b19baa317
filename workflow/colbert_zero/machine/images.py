"""Apptainer images: named by what they are made of, built once, or given.

    python -m colbert_zero.machine.images --name torch --output FILE [--bootstrap docker|debootstrap] [--mirror URL]
        [--certificates FILE]

An image is made of its definition in `containers/`, its lock in `envs/`, and the arguments of the build. The digest of
these is in its file's name, so a changed lock is another image, and the old one stays. The digest of definition and
lock alone is in its label `colbert-zero.contents`, so an image that was built elsewhere can be told from another.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import KEY_DIGITS
from colbert_zero.graph.config import WORKFLOW
from colbert_zero.graph.console import UserError, log, run_reporting_errors
from colbert_zero.graph.digests import canonical, digest, file_digest
from colbert_zero.graph.locks import acquire_lock

NAMES = ("torch", "lucene")
CLONE = WORKFLOW.parent
LABEL = "colbert-zero.contents"
BUILDS, RUNS = (1, 2), (1, 1)
"""The first Apptainer that builds these definitions, and that runs their images without privileges."""
SPACE_GB = {"torch": 16, "lucene": 2}
"""What a build takes in the temporary folder, at most."""
PATIENCE = 7200.0
"""Seconds to wait for another process that builds the same image."""
BINDS = "COLBERT_ZERO_BIND"
"""Keeps the folders that the user's own environment has images see."""
FASTER = "-comp zstd -Xcompression-level 3"
"""For mksquashfs: half the time of the default, and a tenth more bytes."""

HINTS = (
    (
        r"no mapping entry found in /etc/subuid|fakeroot requires|could not use fakeroot",
        "this user has no range of ids in /etc/subuid and /etc/subgid: ask the site for one (usermod --add-subuids), "
        "or build the image elsewhere and name its file under images in config.yaml",
    ),
    (
        r"user namespace|unshare.*(denied|not permitted)|Failed to create (user|mount) namespace",
        "user namespaces are switched off here: ask the site to switch them on (user.max_user_namespaces, "
        "kernel.apparmor_restrict_unprivileged_userns), or for Apptainer with setuid",
    ),
    (
        r"debootstrap.*(not found|no such file|not in)|unable to locate debootstrap",
        "debootstrap is not on this machine's PATH: install it, or leave images.build.bootstrap at docker",
    ),
    (
        r"No space left on device|disk quota exceeded",
        "no space left: free some, or point APPTAINER_TMPDIR to a folder with more, then run the same command again",
    ),
    (
        r"could not open image|image file .* (doesn't|does not) exist|failed to open .*\.s[ci]",
        "the image cannot be read from this node: put it where all nodes see it (images in config.yaml)",
    ),
    (
        r"apptainer.*(command not found|has to be available)",
        "Apptainer is not on this node's PATH: ask the site, or load its module where jobs start",
    ),
)
"""What Apptainer says, and what a person can do about it."""


@dataclass(frozen=True)
class Image:
    """The image of some rules.

    Attributes:
        name: `torch` or `lucene`.
        folder: Where it is built.
        given: The path of its file or its address pinned by a digest, where the config names one.
        build: How to build it: `bootstrap`, `mirror` and `certificates`.
    """

    name: str
    folder: Path
    given: str | None
    build: Mapping[str, str | None]

    @property
    def definition(self) -> Path:
        """What it is built from."""
        return CLONE / "containers" / f"{self.name}.def"

    @property
    def lock(self) -> Path:
        """The Python packages it has."""
        return CLONE / "envs" / f"{self.name}.txt"

    @property
    def contents(self) -> str:
        """Digest of definition and lock."""
        return digest(canonical([file_digest(self.definition), file_digest(self.lock)]))[:KEY_DIGITS]

    @property
    def file(self) -> Path:
        """The file that building it makes."""
        certificates = self.build["certificates"]
        arguments = {**self.build, "certificates": file_digest(Path(certificates)) if certificates else None}
        key = digest(canonical([self.contents, arguments]))[:KEY_DIGITS]
        return self.folder / f"{self.name}-{key}.sif"

    @property
    def address(self) -> str:
        """What Apptainer runs."""
        return self.given or str(self.file)

    @property
    def is_ours(self) -> bool:
        """Whether the workflow builds it."""
        return self.given is None

    def check(self) -> None:
        """Look at an image that was given as a file, and at where another is built.

        Raises:
            UserError: It is not there, or was built from another definition or lock; or Snakemake cannot name it.
        """
        if " " in self.address:
            raise UserError(f"{self.address}: Snakemake runs no image with a space in its path; set images.folder")
        if self.given is None or "://" in self.given:
            return
        where = f"config.yaml: images.{self.name}: {self.given}"
        if not Path(self.given).is_file():
            raise UserError(f"{where} does not exist; leave the setting out, and the image is built")
        found = labels(Path(self.given)).get(LABEL, "none")
        if found != self.contents:
            raise UserError(
                f"{where} was built from other contents ({LABEL} is {found}, {self.contents} here): "
                f"build it from this clone's containers/ and envs/, or leave the setting out"
            )


def images(settings: Mapping[str, Any], study: Path) -> dict[str, Image]:
    """The images by name, as the config's section `images` has them; paths in it are relative to the study's folder.

    Raises:
        UserError: A file that it names does not exist.
    """
    build = dict(settings["build"])
    if build["certificates"]:
        build["certificates"] = str((study / build["certificates"]).resolve())
        if not Path(build["certificates"]).is_file():
            raise UserError(f"config.yaml: images.build.certificates: {build['certificates']} does not exist")
    folder = (study / settings["folder"]).resolve() if settings["folder"] else CLONE / "resources" / "images"
    given = {name: settings[name] for name in NAMES}
    return {
        name: Image(name, folder, str((study / path).resolve()) if path and "://" not in path else path, build)
        for name, path in given.items()
    }


def environment(study: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that say what of this machine a study's images see.

    Args:
        study: Its folder, which they see anyway.
        given: The environment of a process that runs images, or of one that starts such processes, here or elsewhere.

    Raises:
        UserError: A folder's name is not one that Apptainer can bind.
    """
    own = given.get(BINDS)
    if own is None:
        names = ("APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND", "SINGULARITY_BINDPATH")
        own = next((given[name] for name in names if given.get(name)), "")
    tops = [study / top for top in ("resources", "results", "logs", "benchmarks")]
    folders = [CLONE / "workflow", Path(tempfile.gettempdir()), *(top.resolve() for top in tops if top.is_symlink())]
    # What is not there, such as another machine's scratch folder, cannot be bound; /tmp is there anyway.
    seen = [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir() and folder != Path("/tmp")]  # noqa: S108
    for folder in seen:
        if set(folder) & {",", ":"}:
            raise UserError(f"{folder}: Apptainer cannot show a folder with a comma or colon in its name to an image")
    variables = {BINDS: own, "APPTAINER_BIND": ",".join(filter(None, [own, *seen]))}
    # As --nv, which would warn on every node without a GPU.
    return variables | ({"APPTAINER_NV": "1"} if Path("/dev/nvidiactl").exists() else {})


def labels(file: Path) -> dict[str, str]:
    """The labels of an image's file.

    Raises:
        UserError: Apptainer cannot read it.
    """
    done = subprocess.run(["apptainer", "inspect", "--json", "--labels", file], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{file} is not an image that Apptainer can read: {_last(done.stderr)}")
    found: dict[str, str] = json.loads(done.stdout)["data"]["attributes"]["labels"]
    return found


def check_apptainer(least: tuple[int, int]) -> None:
    """Look for an Apptainer of at least this version.

    Raises:
        UserError: There is none, or an older one.
    """
    needed = ".".join(map(str, least))
    try:
        said = subprocess.run(["apptainer", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"no apptainer on the PATH: load the site's module, or ask for Apptainer {needed} or later; "
            "to run without images, where the nodes see .venv with all of envs/local.txt: --sdm env-modules"
        ) from None
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < least:
        raise UserError(f"{said.strip()} is too old: {needed} or later is needed; load another module or ask the site")


def hint_for(said: str) -> str | None:
    """What a person can do about what Apptainer said, where it is known."""
    return next((hint for pattern, hint in HINTS if re.search(pattern, said, re.IGNORECASE)), None)


def _last(said: str) -> str:
    """The line that says why, of all that Apptainer said."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("FATAL", "ERROR"))]
    return (fatal or lines or ["nothing was said"])[-1]


def build(image: Image) -> None:
    """Build an image, beside and then renamed; one that is there is left alone.

    Raises:
        UserError: Apptainer is missing or failed, there is too little space, or the lock was edited meanwhile.
    """
    check_apptainer(BUILDS)
    file = image.file
    with acquire_lock(image.folder / f".{file.name}.lock", f"building {file}", wait=PATIENCE):
        if file.is_file():
            log.info("%s is already there", file)
            return
        temporary = Path(os.environ.get("APPTAINER_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108
        if not temporary.is_dir():
            raise UserError(f"{temporary}, where images are built, does not exist: set APPTAINER_TMPDIR to a folder")
        free = shutil.disk_usage(temporary).free // 10**9
        if free < SPACE_GB[image.name]:
            raise UserError(
                f"building {image.name} takes up to {SPACE_GB[image.name]} GB in {temporary}, where {free} GB are "
                "free: set APPTAINER_TMPDIR to a folder on a local disk with more"
            )
        partial = file.with_name(f".{file.name}.partial")
        try:
            _run(image, partial)
            if image.file != file:
                raise UserError(f"what the image {image.name} is made of was changed during its build: run again")
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        log.info("built %s, %.1f GB", file, file.stat().st_size / 1e9)


def _run(image: Image, output: Path) -> None:
    # What running images are told, such as folders to bind, is not for building them.
    prefixes = ("APPTAINER_BIND", "APPTAINER_NV", "SINGULARITY_BIND", "SINGULARITY_NV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    process = subprocess.Popen(
        _command(image, output),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    said: deque[str] = deque(maxlen=100)
    for line in process.stdout or ():
        sys.stderr.write(line)
        said.append(line)
    if process.wait():
        end = "".join(said)
        raise UserError(f"the image {image.name} could not be built: {hint_for(end) or _last(end)}")


def _command(image: Image, output: Path) -> list[str | Path]:
    arguments = {
        "bootstrap": image.build["bootstrap"],
        "mirror": image.build["mirror"],
        "certificates": image.build["certificates"],
        "lock": image.lock,
        "contents": image.contents,
    }
    command: list[str | Path] = ["apptainer", "build", "--force", "--mksquashfs-args", FASTER]
    if os.getuid() or _has_range("root"):
        command.append("--fakeroot")
    for name, value in arguments.items():
        if value is not None:
            command += ["--build-arg", f"{name}={value}"]
    return [*command, output, image.definition]


def _has_range(user: str) -> bool:
    """Whether a user has a range of ids to build with."""
    try:
        return any(line.startswith(f"{user}:") for line in Path("/etc/subuid").read_text().splitlines())
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", choices=NAMES, required=True, help="which image")
    parser.add_argument("--output", type=Path, required=True, help="its file; the digest in its name is checked")
    parser.add_argument("--bootstrap", choices=("docker", "debootstrap"), default="docker", help="where Debian is from")
    parser.add_argument("--mirror", help="the Debian mirror for debootstrap")
    parser.add_argument("--certificates", help="a CA bundle that downloads are checked with")
    options = parser.parse_args(argv)
    arguments = {name: getattr(options, name) or None for name in ("bootstrap", "mirror", "certificates")}
    image = Image(options.name, options.output.parent, None, arguments)

    def run() -> int:
        if image.file.name != options.output.name:
            raise UserError(f"{options.output}: what it is made of has changed; it would be {image.file.name} now")
        build(image)
        return 0

    return run_reporting_errors(run)


if __name__ == "__main__":
    sys.exit(main())
