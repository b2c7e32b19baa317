"""Validate research object crates without a network, with the packages of `.venv/validators`.

    PYTHONPATH=.venv/validators python tests/validate_crate.py required|recommended|optional CRATE ...

Writes a line of JSON: of each crate, what each issue is. The JSON-LD context of RO-Crate 1.1, which the validator would
download, is the copy that a release of ro-crate-py has; nothing else of the crates is looked up.
"""

import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from requests import Response
from rocrate_validator.models import Severity, ValidationSettings
from rocrate_validator.services import validate
from rocrate_validator.utils.http import OFFLINE_CACHE_MISS_STATUS, HttpRequester

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
PROFILE = "provenance-run-crate"


def answer(_, url, **__):
    """What the network would."""
    response = Response()
    response.url, response.status_code = url, OFFLINE_CACHE_MISS_STATUS
    if url == CONTEXT:
        response.status_code = 200
        response.headers["Content-Type"] = "application/ld+json"
        response._content = files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()
    return response


def issues(crate, severity):
    """What is wrong with a crate."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ValidationSettings(
            rocrate_uri=crate,
            profile_identifier=PROFILE,
            requirement_severity=Severity[severity.upper()],
            offline=True,
            cache_path=Path(folder) / "cache",
        )
        result = validate(settings)
    return [f"{issue.severity.name} {issue.check.identifier}: {issue.message}" for issue in result.get_issues()]


if __name__ == "__main__":
    severity, *crates = sys.argv[1:]
    HttpRequester.get = answer
    print(json.dumps({crate: issues(crate, severity) for crate in crates}))
