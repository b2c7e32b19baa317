"""Statements and signatures of models in the format of OpenSSF Model Signing, from the digests that are on record.

A statement is one of in-toto (https://github.com/in-toto/attestation/tree/main/spec/v1): the name and SHA-256 of each
file of the model's folder, and one digest of them all. Signed with an elliptic-curve key it becomes a bundle of
Sigstore, which `model_signing verify key` accepts. https://github.com/sigstore/model-transparency
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Artifact
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import canonical_json, file_digest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
HASHES = {"P-256": "sha256", "P-384": "sha384", "P-521": "sha512"}
"""The hash that goes with a curve in Sigstore's bundles."""


def model_statement(model: Artifact) -> dict[str, Any]:
    """What a signature of a model says: the digest of each file in its folder, its spec and manifest among them."""
    digests = {file: str(entry["sha256"]) for file, entry in model.manifest["outputs"].items()}
    digests |= {SPEC_FILE: model.spec.digest, MANIFEST_FILE: file_digest(model.folder / MANIFEST_FILE)}
    names = sorted(digests, key=PurePosixPath)
    whole = hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in names)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": model.folder.name, "digest": {"sha256": whole}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
        },
    }


def is_pem_key(key: Path) -> bool:
    """Whether a file holds a private key as OpenSSL writes it, of which `signed_bundle` can make use."""
    with key.open("rb") as file:
        return re.match(rb"-----BEGIN (EC )?PRIVATE KEY-----|-----BEGIN EC PARAMETERS-----", file.read(100)) is not None


def signed_bundle(statement: str, key: Path) -> tuple[str, str]:
    """Sign a statement with an elliptic-curve key.

    Args:
        statement: Its JSON.
        key: The file of a private key on one of the curves of `HASHES`, in PEM, without a passphrase.

    Returns:
        The bundle's JSON, and the SHA-256 of the public key, in hex.

    Raises:
        UserError: There is no OpenSSL, or it cannot sign with the key.
    """
    payload = statement.encode()
    public = _openssl("pkey", "-in", str(key), "-pubout", key=key)
    curve = re.search(r"P-\d+", _openssl("pkey", "-in", str(key), "-noout", "-text", key=key).decode())
    if curve is None or curve[0] not in HASHES:
        raise UserError(
            f"{key} is not on one of the curves {', '.join(HASHES)}: openssl ecparam -name prime256v1 -genkey"
        )
    signed = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload
    signature = _openssl("dgst", f"-{HASHES[curve[0]]}", "-sign", str(key), key=key, text=signed)
    hint = hashlib.sha256(public).hexdigest()
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(signature), "keyid": ""}],
        },
    }
    return canonical_json(bundle) + "\n", hint


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _openssl(*arguments: str, key: Path, text: bytes = b"") -> bytes:
    try:
        done = subprocess.run(["openssl", *arguments], input=text, capture_output=True)
    except FileNotFoundError:
        raise UserError("there is no openssl: install OpenSSL, or sign with an SSH key") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or ["openssl gave no reason"]
        raise UserError(f"{key} cannot sign: {lines[0].strip()}")
    return done.stdout
