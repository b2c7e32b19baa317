"""Sign texts with OpenSSH keys, and tell whose signature a file holds: `ssh-keygen -Y`, of OpenSSH 8.1 or later."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from colbert_zero.graph.console import UserError

FINGERPRINT_DIGITS = 12
"""Hex digits of a public key's digest: they tell the signatures of several people apart."""
MAGIC = b"SSHSIG"


def sign(text: str, key: Path, namespace: str) -> str:
    """Sign a text.

    Args:
        text: The text.
        key: The file of a private key; or of the public key, if the agent holds the private one.
        namespace: What the signature is for: a signature for one thing is none for another.

    Returns:
        The armoured signature.

    Raises:
        UserError: The key is none, or cannot be used; or OpenSSH is too old.
    """
    if not key.is_file():
        raise UserError(f"{key} is no file: name the file of an SSH key (ssh-keygen -t ed25519 makes one)")
    done = _ssh_keygen(["sign", "-q", "-f", str(key), "-n", namespace], text)
    if done.returncode or not done.stdout:
        raise UserError(_why_not_signed(key, done.stderr))
    return done.stdout


def _why_not_signed(key: Path, said: str) -> str:
    if "passphrase" in said:
        return f"{key} has a passphrase, and it was not given: ssh-add {key}, then run the same command again"
    if "option" in said or "usage" in said:
        return f"this ssh-keygen cannot sign ({_last_line(said)}): OpenSSH 8.1 or later is needed"
    if "bad permissions" in said or "too open" in said:
        return f"{key} can be read by others, so OpenSSH refuses it: chmod 600 {key}"
    if "load public key" in said:
        return f"{key} is no SSH key, or lacks its public half beside it: ssh-keygen -t ed25519 makes a pair"
    return f"{key} cannot sign: {_last_line(said)}"


def _last_line(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "ssh-keygen gave no reason")


def fingerprint(signature: str) -> str:
    """The first hex digits of the SHA-256 of the public key that a signature names.

    Raises:
        ValueError: It is no signature.
    """
    lines = [line for line in signature.splitlines() if not line.startswith("-----")]
    try:
        blob = base64.b64decode("".join(lines), validate=True)
        if not blob.startswith(MAGIC):
            raise ValueError("no magic")
        _, length = struct.unpack_from(">II", blob, len(MAGIC))
    except (binascii.Error, struct.error, ValueError):
        raise ValueError("no signature of OpenSSH") from None
    start = len(MAGIC) + struct.calcsize(">II")
    return hashlib.sha256(blob[start : start + length]).hexdigest()[:FINGERPRINT_DIGITS]


def fits(text: str, signature: Path, namespace: str) -> bool:
    """Whether a signature is one of this text and for this, whoever made it."""
    return _ssh_keygen(["check-novalidate", "-n", namespace, "-s", str(signature)], text).returncode == 0


def allowed_signers(text: str, signature: Path, signers: Path, namespace: str) -> list[str]:
    """The names by which a file of allowed signers knows the key that signed a text; none if it does not allow it now.

    Args:
        text: The text.
        signature: The file of its signature.
        signers: Lines of names and public keys, as `ssh-keygen` describes under ALLOWED SIGNERS.
        namespace: What the signature must be for.
    """
    place = ["-f", str(signers), "-s", str(signature)]
    names = _ssh_keygen(["find-principals", *place], "").stdout.splitlines()
    return [
        name for name in names if _ssh_keygen(["verify", *place, "-n", namespace, "-I", name], text).returncode == 0
    ]


def _ssh_keygen(arguments: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    """Run `ssh-keygen -Y`; without a terminal it has none to ask for a passphrase on."""
    try:
        return subprocess.run(
            ["ssh-keygen", "-Y", *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=not sys.stdin.isatty(),
        )
    except FileNotFoundError:
        raise UserError("there is no ssh-keygen: install OpenSSH 8.1 or later") from None
