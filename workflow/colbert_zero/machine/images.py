"""Build and check Apptainer images, whose file names hold the digest of all that an image is built from.

    python -m colbert_zero.machine.images --name torch --output FILE [--bootstrap docker|debootstrap] [--mirror URL]
        [--certificates FILE]

An image is built from its definition in `containers/`, its lock in `envs/`, and the arguments of the build. The name of
its file holds the digest of all three, so a changed lock gives another image, and the old image stays. The label
`colbert-zero.contents` holds the digest of definition and lock alone: it tells whether an image that was built
elsewhere has the same contents.
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import KEY_DIGITS
from colbert_zero.graph.console import UserError, log, run_reporting_errors
from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.local_files import absolute_or_in, problem_with_file
from colbert_zero.graph.locks import acquire_lock
from colbert_zero.graph.paths import REPOSITORY

IMAGE_NAMES = ("torch", "lucene")
CONTENTS_LABEL = "colbert-zero.contents"
APPTAINER_TO_BUILD, APPTAINER_TO_RUN = (1, 2), (1, 1)
"""The first Apptainer versions that build these definitions, and that run their images without privileges."""
BUILD_SPACE_GB = {"torch": 16, "lucene": 2}
"""Upper bound of what a build needs in the temporary folder."""
LOCK_WAIT_SECONDS = 7200.0
"""How long to wait for another process that builds the same image."""
USER_BINDS_VARIABLE = "COLBERT_ZERO_BIND"
"""Environment variable: keeps the folders that the user's own environment binds into images."""
PLAIN = r"[\w.,~@%+=/-]"
"""A character of a path that means nothing but itself, wherever a command has it."""
MKSQUASHFS_ARGS = "-comp zstd -Xcompression-level 3"
"""Half the time of mksquashfs's default compression, and a tenth more bytes."""

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
"""Patterns of Apptainer's messages, and what the user can do about each."""


@dataclass(frozen=True)
class Image:
    """The image that some rules run in.

    Attributes:
        name: `torch` or `lucene`.
        folder: The folder of the file, if the workflow builds the image.
        configured: The image that the config names, if any: the path of a file, or an address pinned by a digest.
        build_options: How to build it: `bootstrap`, `mirror` and `certificates`.
    """

    name: str
    folder: Path
    configured: str | None
    build_options: Mapping[str, str | None]

    @property
    def definition(self) -> Path:
        """The Apptainer definition file."""
        return REPOSITORY / "containers" / f"{self.name}.def"

    @property
    def lock(self) -> Path:
        """The lock file with the image's Python packages."""
        return REPOSITORY / "envs" / f"{self.name}.txt"

    @property
    def contents_digest(self) -> str:
        """Digest of definition and lock."""
        return digest(canonical_json([file_digest(self.definition), file_digest(self.lock)]))[:KEY_DIGITS]

    @property
    def file(self) -> Path:
        """The file that a build writes."""
        certificates = self.build_options["certificates"]
        arguments = {**self.build_options, "certificates": file_digest(Path(certificates)) if certificates else None}
        key = digest(canonical_json([self.contents_digest, arguments]))[:KEY_DIGITS]
        return self.folder / f"{self.name}-{key}.sif"

    @property
    def address(self) -> str:
        """The path or address that Apptainer runs."""
        return self.configured or str(self.file)

    @property
    def is_built_here(self) -> bool:
        """Whether the workflow builds the image."""
        return self.configured is None

    def check(self) -> None:
        """Check the image's path, and the contents of a file that the config names.

        Raises:
            UserError: The file does not exist, or it was built from another definition or lock.
        """
        if self.configured is None or "://" in self.configured:
            return
        setting = f"config.yaml: images.{self.name}: {self.configured}"
        if not Path(self.configured).is_file():
            raise UserError(f"{setting} does not exist; leave the setting out, and the image is built")
        label = read_labels(Path(self.configured)).get(CONTENTS_LABEL, "none")
        if label != self.contents_digest:
            raise UserError(
                f"{setting} was built from other contents ({CONTENTS_LABEL} is {label}, {self.contents_digest} here): "
                f"build it from this clone's containers/ and envs/, or leave the setting out"
            )


def planned_images(settings: Mapping[str, Any], study: Path) -> dict[str, Image]:
    """The images by name, from the config's section `images`.

    Args:
        settings: The section.
        study: The study's folder; paths in the section are relative to it.

    Raises:
        UserError: The CA bundle that the section names is no file.
    """
    options = dict(settings["build"])
    if options["certificates"]:
        certificates = absolute_or_in(study, options["certificates"]).resolve()
        options["certificates"] = str(certificates)
        problem = problem_with_file(certificates)
        if problem:
            raise UserError(f"config.yaml: images.build.certificates: {certificates} {problem}")
    default = REPOSITORY / "resources" / "images"
    folder = absolute_or_in(study, settings["folder"]).resolve() if settings["folder"] else default
    configured = {name: settings[name] for name in IMAGE_NAMES}
    return {
        name: Image(
            name, folder, str(absolute_or_in(study, path).resolve()) if path and "://" not in path else path, options
        )
        for name, path in configured.items()
    }


def check_paths(study: Path, images: Iterable[Image]) -> None:
    """Check the paths that Snakemake writes as they are into the commands that run images.

    Raises:
        UserError: A path has a character that means something to a shell or to Apptainer.
    """
    for image in images:
        if "://" not in image.address:
            _check_path(image.address, PLAIN, f"the image {image.name} cannot run from here; set images.folder")
    # Snakemake puts this one in quotes.
    _check_path(str(study.resolve()), f"{PLAIN}| ", "a study here cannot run in images; rename the folder")


def _check_path(path: str, allowed: str, consequence: str) -> None:
    refused = sorted(set(re.sub(allowed, "", path)))
    if refused:
        raise UserError(f"{path} has {' '.join(map(repr, refused))} in it: {consequence}")


def image_environment(study: Path, environment: Mapping[str, str], scratch: str | None = None) -> dict[str, str]:
    """The environment variables that decide which folders and devices of the machine images see.

    Args:
        study: The study's folder, which images see in any case.
        environment: The variables of this process, which runs images or starts other processes that do.
        scratch: A further folder that images see, with variables in its name.

    Raises:
        UserError: Apptainer cannot bind a folder, because of its name.
    """
    user_binds = environment.get(USER_BINDS_VARIABLE)
    if user_binds is None:
        names = ("APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND", "SINGULARITY_BINDPATH")
        user_binds = next((environment[name] for name in names if environment.get(name)), "")
    data_folders = [study / name for name in ("resources", "results", "logs", "benchmarks")]
    link_targets = [folder.resolve() for folder in data_folders if folder.is_symlink()]
    scratch_folders = [Path(os.path.expandvars(scratch))] if scratch else []
    folders = dict.fromkeys([REPOSITORY / "workflow", Path(tempfile.gettempdir()), *link_targets, *scratch_folders])
    # Apptainer cannot bind a missing folder, such as another machine's scratch folder. It always binds /tmp.
    binds = [str(folder) for folder in folders if folder.is_dir() and folder != Path("/tmp")]  # noqa: S108
    for folder in binds:
        if set(folder) & {",", ":"}:
            raise UserError(f"{folder}: Apptainer cannot show a folder with a comma or colon in its name to an image")
    variables = {USER_BINDS_VARIABLE: user_binds, "APPTAINER_BIND": ",".join(filter(None, [user_binds, *binds]))}
    # The same as --nv, which would warn on every node without a GPU.
    return variables | ({"APPTAINER_NV": "1"} if Path("/dev/nvidiactl").exists() else {})


def read_labels(file: Path) -> dict[str, str]:
    """Read the labels of an image file.

    Raises:
        UserError: Apptainer cannot read the file.
    """
    done = subprocess.run(["apptainer", "inspect", "--json", "--labels", file], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{file} is not an image that Apptainer can read: {_error_line(done.stderr)}")
    labels: dict[str, str] = json.loads(done.stdout)["data"]["attributes"]["labels"]
    return labels


def check_apptainer(minimum: tuple[int, int]) -> None:
    """Check that Apptainer is on the PATH, in this version or a later one.

    Raises:
        UserError: There is no Apptainer, or an older one.
    """
    required = ".".join(map(str, minimum))
    try:
        version = subprocess.run(["apptainer", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"no apptainer on the PATH: load the site's module, or ask for Apptainer {required} or later; "
            "to run without images, where the nodes see .venv with all of envs/local.txt: --sdm env-modules"
        ) from None
    match = re.search(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < minimum:
        raise UserError(
            f"{version.strip()} is too old: {required} or later is needed; load another module or ask the site"
        )


def hint_for(output: str) -> str | None:
    """What the user can do about a failure, from the output of Apptainer; None if no known message is in it."""
    return next((hint for pattern, hint in HINTS if re.search(pattern, output, re.IGNORECASE)), None)


def _error_line(output: str) -> str:
    """The last error in Apptainer's output, or else its last line."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("FATAL", "ERROR"))]
    return (errors or lines or ["Apptainer printed nothing"])[-1]


def build_image(image: Image) -> None:
    """Build an image in a temporary file, then rename it; an image that is already there is left alone.

    Raises:
        UserError: Apptainer is missing or failed, there is too little space, or the lock was edited during the build.
    """
    check_apptainer(APPTAINER_TO_BUILD)
    file = image.file
    with acquire_lock(image.folder / f".{file.name}.lock", f"building {file}", wait_seconds=LOCK_WAIT_SECONDS):
        if file.is_file():
            log.info("%s is already there", file)
            return
        temporary = Path(os.environ.get("APPTAINER_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108
        if not temporary.is_dir():
            raise UserError(f"{temporary}, where images are built, does not exist: set APPTAINER_TMPDIR to a folder")
        free_gb = shutil.disk_usage(temporary).free // 10**9
        if free_gb < BUILD_SPACE_GB[image.name]:
            raise UserError(
                f"building {image.name} takes up to {BUILD_SPACE_GB[image.name]} GB in {temporary}, where {free_gb} GB "
                "are free: set APPTAINER_TMPDIR to a folder on a local disk with more"
            )
        partial = file.with_name(f".{file.name}.partial")
        try:
            _run_build(image, partial)
            if image.file != file:
                raise UserError(
                    f"the image {image.name}: its definition, lock or certificates changed during the build: run again"
                )
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        log.info("built %s, %.1f GB", file, file.stat().st_size / 1e9)


def _run_build(image: Image, output: Path) -> None:
    # Settings for running images, such as folders to bind, must not affect a build.
    prefixes = ("APPTAINER_BIND", "APPTAINER_NV", "SINGULARITY_BIND", "SINGULARITY_NV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    process = subprocess.Popen(
        _build_command(image, output),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    last_lines: deque[str] = deque(maxlen=100)
    for line in process.stdout or ():
        sys.stderr.write(line)
        last_lines.append(line)
    if process.wait():
        build_output = "".join(last_lines)
        raise UserError(
            f"the image {image.name} could not be built: {hint_for(build_output) or _error_line(build_output)}"
        )


def _build_command(image: Image, output: Path) -> list[str | Path]:
    build_arguments = {
        "bootstrap": image.build_options["bootstrap"],
        "mirror": image.build_options["mirror"],
        "certificates": image.build_options["certificates"],
        "lock": image.lock,
        "contents": image.contents_digest,
    }
    command: list[str | Path] = ["apptainer", "build", "--force", "--mksquashfs-args", MKSQUASHFS_ARGS]
    if os.getuid() or _has_subuid_range("root"):
        command.append("--fakeroot")
    for name, value in build_arguments.items():
        if value is not None:
            command += ["--build-arg", f"{name}={value}"]
    return [*command, output, image.definition]


def _has_subuid_range(user: str) -> bool:
    """Whether /etc/subuid has a range of ids for this user, as `--fakeroot` needs."""
    try:
        return any(line.startswith(f"{user}:") for line in Path("/etc/subuid").read_text().splitlines())
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and build the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", choices=IMAGE_NAMES, required=True, help="which image to build")
    parser.add_argument(
        "--output", type=Path, required=True, help="the file to write; the digest in its name must be the image's"
    )
    parser.add_argument("--bootstrap", choices=("docker", "debootstrap"), default="docker", help="where Debian is from")
    parser.add_argument("--mirror", help="the Debian mirror for debootstrap")
    parser.add_argument("--certificates", help="a CA bundle that verifies downloads")
    options = parser.parse_args(argv)
    build_options = {name: getattr(options, name) or None for name in ("bootstrap", "mirror", "certificates")}
    image = Image(options.name, options.output.parent, None, build_options)

    def run() -> int:
        if image.file.name != options.output.name:
            raise UserError(
                f"{options.output}: its definition, lock or options have changed; it would be {image.file.name} now"
            )
        build_image(image)
        return 0

    return run_reporting_errors(run)


if __name__ == "__main__":
    sys.exit(main())
