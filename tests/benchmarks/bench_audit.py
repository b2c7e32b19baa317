"""How fast `colbert-zero verify` reads: against OpenSSL on the same bytes and cores, and on many small artifacts.

    make bench-audit
    python tests/benchmarks/bench_audit.py [--megabytes N] [--artifacts N] [--threads N] [--folder FOLDER] [--quick]

The bytes are in the system's memory when either reads them, so the disk is not measured. OpenSSL gets as many processes
as there are threads, and each of them one file after the other. Memory is measured with an eighth of the bytes as well:
it must not grow with them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from colbert_zero.graph.artifact import MANIFEST_FILE, RECORD, SPEC_FILE, Spec, file_digests, input_records
from measured import Measured, measure, table, work_folder

MEGABYTE = 2**20
FILE_MEGABYTES = 64
TIMES = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:00+00:00"}


def write_artifact(study: Path, spec: Spec, files: dict[str, bytes], inputs: dict[str, dict[str, str]]) -> None:
    """Write an artifact as a step publishes it."""
    folder = study / spec.folder
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / SPEC_FILE).write_text(spec.text, encoding="utf-8")
    package = "0" * 64
    manifest = {
        "record": RECORD,
        "name": spec.name,
        "spec": spec.digest,
        "inputs": inputs,
        "outputs": file_digests(folder),
        "facts": {},
        "seconds": 0.0,
        "peak_memory_mb": 100,
        "threads": 1,
        "arguments": [],
        "code": {"digest": package, "parts": {"package": package}, "commit": None, "changed": []},
        "packages": {},
        "python": "3.11",
        "platform": "Linux",
        "processor": "a processor",
        "cores": 2,
        "memory_mb": 1000,
        "image": None,
        "attempts": [{**TIMES, "end": "published", "host": "node", "name": spec.name, "code": package}],
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def large_study(study: Path, megabytes: int) -> list[Path]:
    """Write artifacts of a few large files each; return the files."""
    block = os.urandom(MEGABYTE)
    paths = []
    for number in range(max(1, megabytes // FILE_MEGABYTES)):
        # The first bytes differ, so no two files are the same.
        spec = Spec("shards", "large", {"number": number})
        write_artifact(study, spec, {"rows.bin": number.to_bytes(8) + block * FILE_MEGABYTES}, {})
        paths.append(study / spec.folder / "rows.bin")
    return paths


def small_study(study: Path, artifacts: int) -> None:
    """Write a chain of artifacts of three small files each."""
    study.mkdir()
    os.chdir(study)
    before: Spec | None = None
    for number in range(artifacts):
        spec = Spec("shards", "small", {"number": number}, {"source": [before.name]} if before else {})
        files = {f"{name}.bin": hashlib.sha256(f"{number} {name}".encode()).digest() * 100 for name in "abc"}
        write_artifact(Path(), spec, files, input_records(spec))
        before = spec


def verify(study: Path, threads: int) -> Measured:
    """Verify a study, which has no config and so is never called clean."""
    program = Path(sys.executable).with_name("colbert-zero")
    return measure(["sh", "-c", f"{program} verify --threads {threads} || [ $? = 2 ]"], study)


def openssl(paths: list[Path], threads: int, folder: Path) -> Measured:
    """OpenSSL's digests of the same files."""
    (folder / "names").write_text("\n".join(map(str, paths)))
    each = -(-len(paths) // threads)
    return measure(["sh", "-c", f"xargs -P {threads} -n {each} openssl dgst -sha256 < names"], folder)


def main() -> None:
    """Measure, print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=8192, help="bytes of large files; they should fit the memory")
    parser.add_argument("--artifacts", type=int, default=10_000, help="small artifacts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=work_folder, help="where to write; by default in TMPDIR")
    parser.add_argument("--quick", action="store_true", help="a tenth of all, to try this program")
    options = parser.parse_args()
    megabytes, artifacts = options.megabytes, options.artifacts
    if options.quick:
        megabytes, artifacts = megabytes // 10, artifacts // 10
    lines: list[tuple[object, ...]] = []

    def add(name: str, size: str, measured: Measured) -> Measured:
        lines.append((name, size, f"{measured.seconds:.1f}", measured.anonymous))
        return measured

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        add("ours", f"{megabytes // 8} MiB", _read_twice(folder / "eighth", megabytes // 8, options.threads)[0])
        ours, theirs = _read_twice(folder / "large", megabytes, options.threads)
        add("ours", f"{megabytes} MiB", ours)
        add("openssl", f"{megabytes} MiB", theirs)
        small_study(folder / "small", artifacts)
        small = add("ours", f"{artifacts} artifacts", verify(folder / "small", options.threads))
        os.chdir("/")
    print(table(("", "what", "seconds", "MiB, no files"), lines))
    print(
        f"{theirs.seconds / ours.seconds:.2f} of OpenSSL's rate; {10_000 * small.seconds / artifacts:.1f} s for 10,000 "
        f"small artifacts; {lines[1][3]} MiB for 8 times the bytes that take {lines[0][3]} MiB"
    )


def _read_twice(study: Path, megabytes: int, threads: int) -> tuple[Measured, Measured]:
    """Our time and OpenSSL's for a study of large files, which is deleted; both after a first reading."""
    paths = large_study(study, megabytes)
    openssl(paths, threads, study)
    theirs, ours = openssl(paths, threads, study), verify(study, threads)
    for path in paths:
        path.unlink()
    return ours, theirs


if __name__ == "__main__":
    main()
