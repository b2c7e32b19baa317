"""Install one of the locks into .venv, and this package with it.

    python3 envs/install.py local|host|browser|peers|pretrained|validators

All but `local` and `host` go into folders of these names in `.venv`, beside the environment's packages: only a process
with such a folder first on its PYTHONPATH sees it. Of `pretrained`, a model, nothing is imported.

A lock is whole: it names every package that is needed, at one version, with the digests of its files. So pip resolves
nothing (`--no-deps`): a release that appears upstream tomorrow changes nothing here. What goes wrong is said in one
line; pip's own words are in `.venv/install.log`.

This file is run by any Python a machine may have, before anything is installed: standard library only, and no syntax
newer than Python 3.7, so that an old Python can say that it is too old.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)
"""The first and the last Python that the locks are made for."""
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
BESIDE = ("browser", "peers", "pretrained", "validators")
"""The locks that are installed beside the environment's packages, each in a folder of its name."""
SPACE_GB = {"local": 7.0, "host": 0.6, "browser": 0.3, "peers": 0.3, "pretrained": 0.2, "validators": 0.2}
"""What the installed packages take on Linux, rounded up."""
DOWNLOADS_GB = {"local": 1.0, "host": 0.1, "browser": 0.1, "peers": 0.1, "pretrained": 0.2, "validators": 0.1}
"""What the largest downloads of a lock take in the temporary folder while they are unpacked."""

CAUSES = (
    (
        r"No space left on device|Disk quota exceeded|Errno 28|Errno 122",
        "no space left: free some in this folder and in the temporary one (TMPDIR), then run the same command again",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "the package registry's certificate is not trusted here: point PIP_CERT to your site's CA bundle",
    ),
    (
        r"DO NOT MATCH THE HASHES|Hashes are required",
        "a download is not the file that the lock names: try again; if it stays so, the registry or a mirror of it is "
        "damaged",
    ),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Read timed out|ProxyError"
        r"|Connection (broken|refused|aborted|reset)|Failed to establish a new connection"
        r"|Temporary failure in name resolution",
        "the package registry cannot be reached: check the network, and the proxy and index that `pip config list` "
        "shows",
    ),
    (
        r"Permission denied|Errno 13|Read-only file system",
        "this folder cannot be written to: clone the repository where you may write",
    ),
    (
        r"No matching distribution found for (?P<package>\S+)",
        "the package registry gives no file of {package} for this Python and machine: check that it can be reached "
        "and, if it is a mirror, that it is up to date; Linux on x86-64 or arm64 is needed",
    ),
)
"""What pip says, and what a person can do about it."""


class InstallError(Exception):
    """A reason why nothing could be installed, in one line."""


def check_python(version: tuple = sys.version_info) -> None:
    """Refuse a Python that the locks are not made for, or one that cannot make environments."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise InstallError("Python {}.{} found; 3.11 to 3.13 is needed: make PYTHON=python3.12".format(*version[:2]))
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise InstallError(
            "{} cannot make environments: install its venv module (Debian: apt install python{}.{}-venv), or take "
            "another Python: make PYTHON=...".format(sys.executable, *version[:2])
        ) from None


def check_space(name: str) -> None:
    """Refuse to begin where the packages do not fit."""
    if (ENVIRONMENT / "installed").exists() or (name == "host" and (ENVIRONMENT / "host").exists()):
        return  # an update replaces what is there
    needs = {ROOT: SPACE_GB[name], Path(tempfile.gettempdir()): DOWNLOADS_GB[name]}
    for folder, needed in needs.items():
        free = shutil.disk_usage(str(folder)).free / 1e9
        if free < needed:
            raise InstallError(
                "{} has {:.1f} GB free, and installing takes {:.1f} GB there: free some{}".format(
                    folder, free, needed, "" if folder == ROOT else ", or set TMPDIR to a folder with more"
                )
            )


def cause_of(output: str) -> str:
    """What to do about a failed pip, in one line."""
    for pattern, advice in CAUSES:
        found = re.search(pattern, output)
        if found:
            return advice.format(**found.groupdict())
    errors = [line for line in output.splitlines() if line.lower().startswith("error")]
    return errors[-1] if errors else "pip ended without a reason"


def run(*arguments: object) -> tuple:
    """Run the environment's Python, its output appended to the log.

    Returns:
        Whether it succeeded, and what it wrote.
    """
    command = [str(ENVIRONMENT / "bin" / "python"), *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    lines = []
    with (ENVIRONMENT / "install.log").open("a", encoding="utf-8", errors="replace") as log:
        for line in process.stdout or ():
            log.write(line)
            lines.append(line)
            show_progress(lines)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    return process.wait() == 0, "".join(lines)


def show_progress(lines: list) -> None:
    """On a terminal, how many packages pip has looked at."""
    if sys.stderr.isatty() and lines[-1].startswith(("Collecting", "Installing")):
        count = sum(line.startswith("Collecting") for line in lines)
        doing = "installing all" if lines[-1].startswith("Installing") else f"package {count}"
        sys.stderr.write(f"\r\033[K  {doing} ...")
        sys.stderr.flush()


def make_environment() -> None:
    """Make the environment, unless it is there and has a pip that runs."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        pip = [str(python), "-m", "pip", "--version"]
        if subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return
    except OSError:
        pass  # there is none, or it was moved
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise InstallError(f"{ENVIRONMENT} could not be made: {cause_of(done.stdout)}")


def pip_install(*arguments: object) -> None:
    """Install what pip's arguments name and nothing else."""
    succeeded, output = run(
        "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--progress-bar", "off", *arguments
    )
    if not succeeded:
        raise InstallError("{} ({})".format(cause_of(output), ENVIRONMENT / "install.log"))


def install(name: str) -> None:
    """Install a lock: one of `BESIDE` into its own folder, another into the environment and this package with it."""
    lock = ROOT / "envs" / (name + ".txt")
    count = len(re.findall(r"^[A-Za-z0-9]\S*==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    folder = ENVIRONMENT / name if name in BESIDE else ENVIRONMENT
    packages = "{} package{}".format(count, "" if count == 1 else "s")
    sys.stderr.write(f"installing {packages} of {lock.relative_to(ROOT)} into {folder}\n")
    locked = ("--no-compile", "--require-hashes", "-r", lock)
    if name in BESIDE:
        install_beside(folder, *locked)
    else:
        pip_install(*locked)
        pip_install("--no-build-isolation", "--no-index", "--editable", ".")
        compile_modules(ENVIRONMENT / "lib")


def install_beside(folder: Path, *arguments: object) -> None:
    """Replace the folder by a new one, which takes its name when it is complete."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(str(unfinished), ignore_errors=True)
    pip_install("--target", unfinished, *arguments)
    compile_modules(unfinished)
    shutil.rmtree(str(folder), ignore_errors=True)
    unfinished.rename(folder)


def compile_modules(folder: Path) -> None:
    """Compile the modules in a folder, on all cores; pip would on one.

    Where Python may write no bytecode later (PYTHONDONTWRITEBYTECODE, or a folder that is not the user's), each step
    would compile PyTorch and transformers again, which takes longer than all else that it does before its work.
    """
    # A file that is no Python of this version is left as it is.
    run("-m", "compileall", "-qq", "-j", "0", "-x", "[/\\\\]tests[/\\\\]", folder)


def main() -> int:
    """Install the lock that is named on the command line."""
    names = sorted(SPACE_GB)
    if sys.argv[1:] not in [[name] for name in names]:
        sys.stderr.write("usage: python3 envs/install.py {}\n".format("|".join(names)))
        return 2
    try:
        check_python()
        check_space(sys.argv[1])
        make_environment()
        install(sys.argv[1])
    except (InstallError, OSError) as error:
        sys.stderr.write(f"colbert-zero: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("colbert-zero: interrupted; run the same command again\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
