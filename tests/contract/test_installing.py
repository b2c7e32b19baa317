"""Installing takes what the lock names, whatever appeared upstream since; what goes wrong is one line."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[2] / "envs" / "install.py"


def load(root):
    """`envs/install.py`, for another clone."""
    spec = importlib.util.spec_from_file_location("install", INSTALL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ROOT, module.ENVIRONMENT = root, root / ".venv"
    return module


def wheel(folder, name, version, *requires):
    """A package without content; returns its line for a lock."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: email\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{info}/METADATA", metadata + "".join(f"Requires-Dist: {text}\n" for text in requires))
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with an environment of its own, and a registry (a folder) in which a newer release has appeared."""
    root = tmp_path_factory.mktemp("clone")
    (root / "envs").mkdir()
    registry = root / "registry"
    registry.mkdir()
    pinned = wheel(registry, "pinned", "1.0")
    wheel(registry, "pinned", "2.0", "nowhere==1")
    (root / "envs" / "host.txt").write_text(pinned + wheel(registry, "user", "1.0", "pinned[email]>=1.0"))
    load(root).make_environment()
    return root


@pytest.fixture
def offline(clone, monkeypatch):
    """No registry but the folder."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(clone / "registry"))
    return clone


def installed(root):
    return sorted(
        path.name for path in root.glob(".venv/lib/python3*/site-packages/*.dist-info") if path.name[0] in "pu"
    )


def test_a_release_that_appears_upstream_changes_nothing(offline):
    install = load(offline)
    install.pip_install("--require-hashes", "-r", offline / "envs" / "host.txt")
    assert {"pinned-1.0.dist-info", "user-1.0.dist-info"} <= set(installed(offline))


def test_what_is_installed_is_compiled_even_beside_a_file_that_is_no_python(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name, text in {"good.py": "x = 1\n", "template.py": "{{ x }\n"}.items():
        (tmp_path / name).write_text(text)
    load(offline).compile_modules(tmp_path)
    assert [path.name.split(".")[0] for path in tmp_path.glob("__pycache__/*.pyc")] == ["good"]


def said(module, name, capsys, monkeypatch):
    """What `main` writes, and that it fails."""
    monkeypatch.setattr(sys, "argv", ["install.py", name])
    assert module.main() == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("installing ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_registry_out_of_reach_is_one_line(offline, monkeypatch, capsys):
    install = load(offline)
    monkeypatch.setattr(install, "check_space", lambda name: None)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    (offline / "envs" / "host.txt").write_text("absent==1.0 --hash=sha256:" + "0" * 64 + "\n")
    assert "the package registry cannot be reached: check the network" in said(install, "host", capsys, monkeypatch)


def test_a_file_that_is_not_the_locks_is_one_line(offline, monkeypatch, capsys):
    install = load(offline)
    monkeypatch.setattr(install, "check_space", lambda name: None)
    (offline / "envs" / "host.txt").write_text("pinned==2.0 --hash=sha256:" + "0" * 64 + "\n")
    assert "a download is not the file that the lock names" in said(install, "host", capsys, monkeypatch)


def test_too_little_space_is_one_line(tmp_path, monkeypatch, capsys):
    install = load(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 10**9))
    assert "1.0 GB free, and installing takes 7.0 GB there: free some" in said(install, "local", capsys, monkeypatch)
    assert not install.ENVIRONMENT.exists()


def test_a_host_that_becomes_a_laptop_is_asked_for_the_space_of_one(tmp_path, monkeypatch):
    install = load(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 0))
    install.ENVIRONMENT.mkdir()
    (install.ENVIRONMENT / "host").touch()
    install.check_space("host")
    with pytest.raises(install.InstallError, match=r"takes 7\.0 GB"):
        install.check_space("local")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        ("ERROR: ... [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "point PIP_CERT to"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no file of torch==2.11.0 for this Python"),
        ("PermissionError: [Errno 13] Permission denied: '.venv/x'", "this folder cannot be written to"),
        ("WARNING: x\nERROR: something new\n", "ERROR: something new"),
        ("", "pip ended without a reason"),
    ],
)
def test_what_pip_says_becomes_one_line(tmp_path, output, line):
    assert line in load(tmp_path).cause_of(output)


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0), (2, 7, 18)])
def test_another_python_is_refused(tmp_path, version):
    install = load(tmp_path)
    with pytest.raises(install.InstallError, match=r"found; 3\.11 to 3\.13 is needed: make PYTHON=python3\.12$"):
        install.check_python(version)


def test_a_python_without_venv_is_refused_before_anything_is_made(tmp_path):
    """As Debian's is without the package python3-venv: the module venv is there, ensurepip is not."""
    (tmp_path / "envs").mkdir()
    shutil.copy(INSTALL, tmp_path / "envs")
    (tmp_path / "ensurepip.py").write_text("raise ModuleNotFoundError('ensurepip')")
    done = subprocess.run(
        [sys.executable, "envs/install.py", "local"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot make environments: install its venv module (Debian: apt install python3" in line
    assert not (tmp_path / ".venv").exists()


def test_old_pythons_can_read_the_installer():
    """Syntax of Python 3.7, so that an older Python than 3.11 says that it is too old."""
    import ast

    ast.parse(INSTALL.read_text(), feature_version=(3, 7))
