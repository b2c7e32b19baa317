"""Tamperings of a finished study: kinds of changes to kinds of artifacts, each with the check that has to find it.

A change gets a `Forger` and an artifact of the kind, makes its change, and returns the artifact that has to be named
where that is another one. Where a change says `remade`, the records of everything above were made to agree with it, up
to the report's: then what consumers recorded no longer shows it.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from forger import KINDS, Forger, manifest_text

from colbert_zero.audit.expected import EXPECTED_FACTS, EXPECTED_FILES
from colbert_zero.audit.findings import Check
from colbert_zero.evaluation.values import VALUES_FILE, read_values, write_values
from colbert_zero.graph.artifact import MANIFEST_FILE, RECORD, SPEC_FILE, content_digest, file_digests
from colbert_zero.graph.config import CONFIG_FILE
from colbert_zero.graph.digests import file_digest

Change = Callable[[Forger, str], str | None]
"""Changes a study at an artifact; returns the name of the artifact at fault, or None if it is this one."""
Edit = Callable[[Forger, str, dict[str, Any]], object]
"""Changes an artifact's manifest in place."""


@dataclass(frozen=True)
class Tampering:
    """A change to a finished study.

    Attributes:
        name: What is done, in words.
        kind: The kind of artifact that it is done to.
        change: Does it.
        check: What has to find it.
    """

    name: str
    kind: str
    change: Change
    check: Check

    @property
    def title(self) -> str:
        """What is done to what."""
        return f"{self.kind}: {self.name}"

    def apply(self, root: Path) -> str:
        """Make the change to the study in `root`; return the name of the artifact at fault."""
        forger = Forger(root, self.title)
        name = forger.pick(self.kind)
        return self.change(forger, name) or name


def some(words: str, number: int, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """`number` of the kinds, in their order: for the same words always the same."""
    chosen = random.Random(words).sample(kinds, min(number, len(kinds)))
    return [kind for kind in kinds if kind in chosen]


# --- An artifact's files ---


def flip(forger: Forger, name: str) -> None:
    path = forger.file(name)
    data = bytearray(path.read_bytes())
    data[forger.random.randrange(len(data))] ^= 1 << forger.random.randrange(8)
    path.write_bytes(data)


def truncate(forger: Forger, name: str) -> None:
    path = forger.file(name)
    os.truncate(path, path.stat().st_size - 1)


def append(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.write_bytes(path.read_bytes() + b"\n")


def empty(forger: Forger, name: str) -> None:
    os.truncate(forger.file(name), 0)


def zero(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.write_bytes(bytes(path.stat().st_size))


def put_another_file(forger: Forger, name: str) -> None:
    path = forger.file(name)
    others = [file for other in forger.names for file in forger.files(other)]
    different = [file for file in others if file.read_bytes() != path.read_bytes()]
    shutil.copy(forger.random.choice(different), path)


def remove_file(forger: Forger, name: str) -> None:
    forger.file(name).unlink()


def remove_all_files(forger: Forger, name: str) -> None:
    for path in forger.files(name):
        path.unlink()


def rename_file(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.rename(path.with_name(f"{path.name}.old"))


def rename_case(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.rename(path.with_name(path.name.upper()))


def move_into_a_folder(forger: Forger, name: str) -> None:
    path = forger.file(name)
    (path.parent / "moved").mkdir()
    path.rename(path.parent / "moved" / path.name)


def link_outside(forger: Forger, name: str) -> None:
    path = forger.file(name)
    outside = forger.root.with_name(f"outside-{path.name}")
    path.rename(outside)
    path.symlink_to(outside)


def link_inside(forger: Forger, name: str) -> None:
    path = forger.file(name)
    (forger.root / "results/kept").mkdir()
    kept = path.rename(forger.root / "results/kept" / path.name)
    path.symlink_to(os.path.relpath(kept, path.parent))


def link_nowhere(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.unlink()
    path.symlink_to(path.name)


def put_a_folder(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.unlink()
    path.mkdir()


def put_a_pipe(forger: Forger, name: str) -> None:
    path = forger.file(name)
    path.unlink()
    os.mkfifo(path)


def add(file: str, forger: Forger, name: str) -> None:
    path = forger.folder(name) / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"added\n")


def add_folder(forger: Forger, name: str) -> None:
    (forger.folder(name) / "empty").mkdir()


def add_pipe(forger: Forger, name: str) -> None:
    os.mkfifo(forger.folder(name) / "pipe")


def add_link_to_folder(forger: Forger, name: str) -> None:
    (forger.folder(name) / "data").symlink_to(forger.root / "data", target_is_directory=True)


def add_dangling_link(forger: Forger, name: str) -> None:
    (forger.folder(name) / "more").symlink_to("nowhere")


FILES: dict[str, tuple[int, Change]] = {
    "a bit of a file flipped": (13, flip),
    "a file truncated": (3, truncate),
    "a file longer": (3, append),
    "a file emptied": (3, empty),
    "a file zeroed": (2, zero),
    "a file of another artifact": (4, put_another_file),
    "a file removed": (4, remove_file),
    "all files removed": (2, remove_all_files),
    "a file renamed": (3, rename_file),
    "a file in capitals": (1, rename_case),
    "a file in a folder": (2, move_into_a_folder),
    "a link to outside": (3, link_outside),
    "a link to elsewhere in the study": (3, link_inside),
    "a link to nowhere": (2, link_nowhere),
    "a link to itself": (2, link_to_itself),
    "a folder in a file's place": (2, put_a_folder),
    "a pipe in a file's place": (2, put_a_pipe),
    "a file added": (3, partial(add, "notes.txt")),
    "a hidden file added": (3, partial(add, ".notes")),
    "a file added in a folder": (2, partial(add, "more/notes.txt")),
    "a name with line ends added": (1, partial(add, "a\n0 findings\n")),
    "a name that is not text added": (1, partial(add, os.fsdecode(b"\xff.bin"))),
    "an empty folder added": (3, add_folder),
    "a pipe added": (2, add_pipe),
    "a link to a folder added": (2, add_link_to_folder),
    "a link to nowhere added": (2, add_dangling_link),
}
"""By what is done to an artifact's files: to how many kinds, and how. The artifact alone shows it."""


# --- An artifact's spec and its folder ---


def write_spec(text: str | bytes, forger: Forger, name: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    (forger.folder(name) / SPEC_FILE).write_bytes(data)


def edit_spec(edit: Callable[[dict[str, Any]], object], forger: Forger, name: str) -> None:
    spec = forger.spec(name)
    edit(spec)
    write_spec(json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False), forger, name)


def reformat_spec(forger: Forger, name: str) -> None:
    write_spec(json.dumps(forger.spec(name), indent=1), forger, name)


def take_spec(forger: Forger, name: str) -> None:
    other = forger.random.choice([other for other in forger.names if other != name])
    shutil.copy(forger.folder(other) / SPEC_FILE, forger.folder(name) / SPEC_FILE)


def remove_spec(forger: Forger, name: str) -> None:
    (forger.folder(name) / SPEC_FILE).unlink()


def link_spec(forger: Forger, name: str) -> None:
    path = forger.folder(name) / SPEC_FILE
    path.symlink_to(path.rename(forger.root / "spec-elsewhere.json"))


SPECS: dict[str, tuple[int, Change]] = {
    "a setting edited": (5, partial(edit_spec, lambda spec: spec["settings"].update(seed=8))),
    "the label edited": (3, partial(edit_spec, lambda spec: spec.update(label="other"))),
    "the kind edited": (2, partial(edit_spec, lambda spec: spec.update(kind="others"))),
    "the inputs removed": (3, partial(edit_spec, lambda spec: spec.update(inputs={}, more=1))),
    "the spec reformatted": (3, reformat_spec),
    "the spec of another": (3, take_spec),
    "the spec removed": (3, remove_spec),
    "the spec emptied": (2, partial(write_spec, "")),
    "a spec that is a list": (2, partial(write_spec, "[]")),
    "a spec that is {}": (2, partial(write_spec, "{}")),
    "a spec that is not UTF-8": (1, partial(write_spec, b"\xff\xfe{}")),
    "a spec that is a link": (2, link_spec),
}
"""By what is done to an artifact's spec: to how many kinds, and how. The artifact alone shows it."""


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def relabel_folder(forger: Forger, name: str) -> str:
    folder = forger.folder(name)
    return name_of(folder.rename(folder.with_name(f"relabelled-{name[-12:]}")))


def rename_key(forger: Forger, name: str) -> str:
    folder = forger.folder(name)
    return name_of(folder.rename(folder.with_name(folder.name[:-1] + ("0" if folder.name[-1] != "0" else "1"))))


def copy_folder(label: str, forger: Forger, name: str) -> str:
    folder = forger.folder(name)
    return name_of(shutil.copytree(folder, folder.with_name(f"{label}-{name[-12:]}")))


def copy_to_another_kind(forger: Forger, name: str) -> str:
    folder = forger.folder(name)
    other = "shards" if name.startswith("runs/") else "runs"
    return name_of(shutil.copytree(folder, forger.root / "results" / other / folder.name))


def move_to_another_kind(forger: Forger, name: str) -> str:
    copy_to_another_kind(forger, name)
    shutil.rmtree(forger.folder(name))
    return name


def move_root(forger: Forger, name: str) -> str:
    folder = forger.folder(name)
    parent = "results" if folder.parent.parent.name == "resources" else "resources"
    target = forger.root / parent / name
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return name


def swap_folders(forger: Forger, name: str) -> None:
    other = next(each for each in forger.of_kind(name.split("/")[0]) if each != name)
    first, second, spare = forger.folder(name), forger.folder(other), forger.root / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


def swap_contents(forger: Forger, name: str) -> None:
    """All but the specs and manifests of two artifacts of a kind, with the outputs made to fit."""
    other = next(each for each in forger.of_kind(name.split("/")[0]) if each != name)
    swap_folders(forger, name)
    for file in (SPEC_FILE, MANIFEST_FILE):
        first, second, spare = forger.folder(name) / file, forger.folder(other) / file, forger.root / "spare"
        first.rename(spare)
        second.rename(first)
        spare.rename(second)
    forger.fit(name)
    forger.fit(other)


def link_folder_outside(forger: Forger, name: str) -> None:
    folder = forger.folder(name)
    folder.symlink_to(folder.rename(forger.root.with_name("moved-away")), target_is_directory=True)


def link_folder_to_another(forger: Forger, name: str) -> None:
    shutil.rmtree(forger.folder(name))
    other = forger.random.choice([other for other in forger.names if other != name])
    forger.folder(name).symlink_to(forger.folder(other), target_is_directory=True)


def link_folder_nowhere(forger: Forger, name: str) -> None:
    shutil.rmtree(forger.folder(name))
    forger.folder(name).symlink_to("nowhere")


def put_a_file(forger: Forger, name: str) -> None:
    shutil.rmtree(forger.folder(name))
    forger.folder(name).write_text("not a folder")


def empty_folder(forger: Forger, name: str) -> None:
    shutil.rmtree(forger.folder(name))
    forger.folder(name).mkdir()


def remove_folder(forger: Forger, name: str) -> None:
    shutil.rmtree(forger.folder(name))


def remove_with_records(forger: Forger, name: str) -> None:
    consumers = forger.consumers(name)
    remove_folder(forger, name)
    for consumer in consumers:
        (forger.folder(consumer) / MANIFEST_FILE).unlink()


def remove_kind(forger: Forger, name: str) -> None:
    shutil.rmtree(forger.folder(name).parent)


def hide_folder(forger: Forger, name: str) -> None:
    folder = forger.folder(name)
    folder.rename(folder.with_name(f".{folder.name}"))


PAIRED = ("sources", "shards", "candidates", "models", "indexes", "runs", "measures", "batches")
"""Kinds of which the study has more than one artifact."""

BELOW = KINDS[:-1]
"""Kinds that others are made from."""

FOLDERS: dict[str, tuple[tuple[str, ...], int, Check, Change]] = {
    "the folder relabelled": (KINDS, 3, Check.ARTIFACT, relabel_folder),
    "a digit of the folder's key changed": (KINDS, 3, Check.ARTIFACT, rename_key),
    "a copy under another label": (KINDS, 3, Check.ARTIFACT, partial(copy_folder, "copied")),
    "a copy under a label with a control character": (KINDS, 1, Check.ARTIFACT, partial(copy_folder, "\x1b[31mred")),
    "a copy among another kind": (KINDS, 3, Check.ARTIFACT, copy_to_another_kind),
    "moved to another kind": (BELOW, 2, Check.CONSUMERS, move_to_another_kind),
    "moved between resources and results": (BELOW, 3, Check.CONSUMERS, move_root),
    "two folders swapped": (PAIRED, 3, Check.ARTIFACT, swap_folders),
    "the files of two artifacts swapped, outputs forged": (PAIRED[:-1], 5, Check.CONSUMERS, swap_contents),
    "a link to a folder outside": (KINDS, 3, Check.ARTIFACT, link_folder_outside),
    "a link to another artifact": (KINDS, 2, Check.ARTIFACT, link_folder_to_another),
    "a link to nowhere for a folder": (KINDS, 2, Check.ARTIFACT, link_folder_nowhere),
    "a file for a folder": (BELOW, 2, Check.CONSUMERS, put_a_file),
    "the folder emptied": (BELOW, 2, Check.CONSUMERS, empty_folder),
    "the folder removed": (BELOW, 4, Check.CONSUMERS, remove_folder),
    "the kind's folder removed": (BELOW, 2, Check.CONSUMERS, remove_kind),
    "the folder hidden": (BELOW, 2, Check.CONSUMERS, hide_folder),
    "the folder removed, and its consumers' manifests": (BELOW, 2, Check.STUDY, remove_with_records),
}
"""By what is done to an artifact's folder: to which kinds, to how many of them, what shows it, and how."""


# --- A manifest as text ---


def write_manifest(text: str | bytes, forger: Forger, name: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    (forger.folder(name) / MANIFEST_FILE).write_bytes(data)


def rewrite_manifest(rewrite: Callable[[bytes], bytes], forger: Forger, name: str) -> None:
    path = forger.folder(name) / MANIFEST_FILE
    before = path.read_bytes()
    after = rewrite(before)
    assert after != before
    path.write_bytes(after)


def remove_manifest(forger: Forger, name: str) -> None:
    (forger.folder(name) / MANIFEST_FILE).unlink()


def take_manifest(forger: Forger, name: str) -> None:
    other = forger.random.choice([other for other in forger.names if other != name])
    shutil.copy(forger.folder(other) / MANIFEST_FILE, forger.folder(name) / MANIFEST_FILE)


def link_manifest(forger: Forger, name: str) -> None:
    path = forger.folder(name) / MANIFEST_FILE
    path.symlink_to(path.rename(forger.root.with_name("manifest-elsewhere.json")))


def put_a_folder_for_the_manifest(forger: Forger, name: str) -> None:
    remove_manifest(forger, name)
    (forger.folder(name) / MANIFEST_FILE).mkdir()


def put_a_pipe_for_the_manifest(forger: Forger, name: str) -> None:
    remove_manifest(forger, name)
    os.mkfifo(forger.folder(name) / MANIFEST_FILE)


MANIFESTS: dict[str, tuple[int, Change]] = {
    "the manifest removed": (3, remove_manifest),
    "the manifest of another": (3, take_manifest),
    "a manifest that is a list": (2, partial(write_manifest, "[]\n")),
    "a manifest that is {}": (2, partial(write_manifest, "{}\n")),
    "a manifest that is null": (1, partial(write_manifest, "null\n")),
    "a manifest that is a number": (1, partial(write_manifest, "1e999\n")),
    "a manifest that is text": (1, partial(write_manifest, '"manifest"\n')),
    "a manifest that is not JSON": (1, partial(write_manifest, "outputs: {}\n")),
    "an empty manifest": (2, partial(write_manifest, "")),
    "a manifest of null bytes": (1, partial(write_manifest, bytes(4096))),
    "a manifest that is not UTF-8": (1, partial(rewrite_manifest, lambda text: text.replace(b"vm", b"v\xff", 1))),
    "a manifest in UTF-16": (1, partial(rewrite_manifest, lambda text: text.decode().encode("utf-16"))),
    "a manifest with a byte order mark": (1, partial(rewrite_manifest, lambda text: b"\xef\xbb\xbf" + text)),
    "a manifest without its end": (2, partial(rewrite_manifest, lambda text: text[: len(text) // 2])),
    "a manifest nested without end": (1, partial(write_manifest, "[" * 200_000)),
    "a manifest that is a link": (2, link_manifest),
    "a folder for the manifest": (1, put_a_folder_for_the_manifest),
    "a pipe for the manifest": (1, put_a_pipe_for_the_manifest),
}
"""By what is done to a manifest as a file: to how many kinds, and how. The artifact alone shows it."""


def repeat_key(text: bytes) -> bytes:
    return text.replace(b"{\n", b'{\n "seconds": 1000.0,\n', 1)


def number_that_is_none(text: bytes) -> bytes:
    value = json.loads(text)
    value["seconds"] = math.nan
    return manifest_text(value).encode()


# --- What a manifest says ---


def set_value(*path: Any, value: Any) -> Edit:
    def edit(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in path[:-1]:
            inner = inner[key]
        assert json.dumps(inner[path[-1]]) != json.dumps(value)
        inner[path[-1]] = value

    return edit


def drop(field: str) -> Edit:
    def edit(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
        del manifest[field]

    return edit


def output(change: Callable[[dict[str, Any], str], object]) -> Edit:
    """Change the entry of one of the outputs."""

    def edit(forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
        outputs = manifest["outputs"]
        change(outputs, forger.random.choice(sorted(outputs)))

    return edit


def move_output(path: str) -> Edit:
    """Let an entry stand for the same bytes at another path."""

    def edit(forger: Forger, name: str, manifest: dict[str, Any]) -> None:
        outputs, folder = manifest["outputs"], forger.folder(name)
        file = forger.random.choice(sorted(outputs))
        target = path.format(folder=folder, file=file)
        outputs[target] = outputs.pop(file)
        moved = folder / target
        if moved.resolve() != (folder / file).resolve():
            moved.parent.mkdir(parents=True, exist_ok=True)
            (folder / file).rename(moved)

    return edit


def attempt(**values: Any) -> Edit:
    def edit(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
        last = manifest["attempts"][-1]
        assert any(last.get(key) != value for key, value in values.items())
        last |= values

    return edit


def attempts(change: Callable[[list[dict[str, Any]]], object]) -> Edit:
    def edit(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
        change(manifest["attempts"])

    return edit


def add_earlier(**values: Any) -> Edit:
    """Put an earlier attempt before the one that published; `values` is what is wrong with it."""
    return attempts(lambda all_: all_.insert(0, all_[0] | {"end": "killed"} | values))


def publish_twice(all_: list[dict[str, Any]]) -> None:
    all_.append(dict(all_[-1]))


def killed_last(all_: list[dict[str, Any]]) -> None:
    all_.append({key: value for key, value in all_[0].items() if key != "ended"} | {"end": "killed"})


def backdate(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
    for each in manifest["attempts"]:
        each |= {"started": "2020-01-01T00:00:00+00:00", "ended": "2020-01-01T00:00:09+00:00"}


def older_record(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
    """Say that an earlier version made it, as that version would have."""
    for key in ("record", "spec", "arguments", "processor", "cores", "memory_mb"):
        del manifest[key]
    manifest["inputs"] = {name: record["files"] for name, record in manifest["inputs"].items()}
    manifest["code"] = {key: manifest["code"][key] for key in ("digest", "commit")}
    for each in manifest["attempts"]:
        for key in ("code", "name", "history"):
            each.pop(key, None)


def first_input(change: Callable[[dict[str, Any], str], object]) -> Edit:
    def edit(_forger: Forger, _name: str, manifest: dict[str, Any]) -> None:
        change(manifest["inputs"], min(manifest["inputs"]))

    return edit


def add_input(forger: Forger, name: str, manifest: dict[str, Any]) -> None:
    other = next(each for each in forger.in_order if each not in manifest["inputs"] and each != name)
    entry = {
        "spec": file_digest(forger.folder(other) / SPEC_FILE),
        "files": "0" * 64,
        "manifest": file_digest(forger.folder(other) / MANIFEST_FILE),
    }
    manifest["inputs"][other] = entry


DIGEST = "0" * 64
MADE = KINDS[3:]
"""Kinds that are made from others."""
FIELDS = (
    *("arguments", "attempts", "code", "cores", "facts", "image", "inputs", "memory_mb", "name", "outputs", "packages"),
    *("peak_memory_mb", "platform", "processor", "python", "seconds", "spec", "threads"),
)
"""The fields of a manifest but for `record`, without which it is an older one."""

EDITS: dict[str, tuple[tuple[str, ...], Edit]] = {
    "a digest of an output changed": (KINDS, output(lambda outputs, file: outputs[file].update(sha256=DIGEST))),
    "a size of an output changed": (KINDS, output(lambda outputs, file: outputs[file].update(bytes=1))),
    "a size of an output as text": (
        KINDS,
        output(lambda outputs, file: outputs[file].update(bytes=str(outputs[file]["bytes"]))),
    ),
    "an output's digest removed": (KINDS, output(lambda outputs, file: outputs[file].pop("sha256"))),
    "an output that is null": (KINDS, output(lambda outputs, file: outputs.update({file: None}))),
    "an output not listed": (KINDS, output(lambda outputs, file: outputs.pop(file))),
    "an output listed that is not there": (
        KINDS,
        output(lambda outputs, file: outputs.update({"more.bin": outputs[file]})),
    ),
    "no outputs": (KINDS, set_value("outputs", value={})),
    "an output above the folder": (KINDS, move_output("../../../moved-{file}")),
    "an output with an absolute path": (KINDS, move_output("{folder}/{file}")),
    "an output by a roundabout path": (KINDS, move_output("more/../{file}")),
    "the name of another": (KINDS, set_value("name", value="runs/bm25.dev-000000000000")),
    "the spec's digest of another": (KINDS, set_value("spec", value=DIGEST)),
    "no attempts": (KINDS, set_value("attempts", value=[])),
    "an attempt that is not one": (KINDS, set_value("attempts", value=["published"])),
    "the last attempt killed": (KINDS, attempts(killed_last)),
    "the last attempt without end": (KINDS, attempts(lambda all_: all_[-1].pop("ended"))),
    "the last attempt failed": (KINDS, attempt(end="MemoryError: ")),
    "an attempt that ended before it started": (KINDS, attempt(ended="2026-01-01T00:00:00+00:00")),
    "a time that is none": (KINDS, attempt(started="yesterday")),
    "a time in the future": (KINDS, attempt(started="2999-01-01T00:00:00+00:00", ended="2999-01-01T00:00:01+00:00")),
    "published twice": (KINDS, attempts(publish_twice)),
    "attempts out of order": (
        KINDS,
        add_earlier(started="2999-01-01T00:00:00+00:00", ended="2999-01-02T00:00:00+00:00"),
    ),
    "an attempt at another artifact": (KINDS, attempt(name="models/other-000000000000")),
    "an attempt by other code": (KINDS, attempt(code=DIGEST)),
    "an attempt that says what no step records": (("models", "runs", "reports"), attempt(note="fast")),
    "no thread": (("models", "measures", "reports"), set_value("threads", value=0)),
    "older than its inputs": (MADE, backdate),
    "an attempt that ends at another step": (("models",), attempt(end_step=5)),
    "an attempt that starts after its end": (("models",), attempt(start_step=1000)),
    "an attempt that starts in the middle": (("models",), attempt(start_step=2)),
    "an attempt with another history": (("models",), attempt(history=DIGEST)),
    "no inputs": (MADE, set_value("inputs", value={})),
    "an input not recorded": (MADE, first_input(lambda inputs, name: inputs.pop(name))),
    "an input recorded that the spec has not": (KINDS, add_input),
    "an input's spec changed": (MADE, first_input(lambda inputs, name: inputs[name].update(spec=DIGEST))),
    "an input's manifest not recorded": (MADE, first_input(lambda inputs, name: inputs[name].pop("manifest"))),
    "an input recorded as before": (
        MADE,
        first_input(lambda inputs, name: inputs.update({name: inputs[name]["files"]})),
    ),
    "the version of the record removed": (KINDS, lambda _f, _n, manifest: manifest.pop("record")),
    "the version of the record lowered": (KINDS, set_value("record", value=1)),
    "a record of the future": (KINDS, set_value("record", value=RECORD + 1)),
    "a version that is text": (KINDS, set_value("record", value=str(RECORD))),
    "a code digest that is not its part's": (KINDS, set_value("code", "digest", value=DIGEST)),
    "code without parts": (KINDS, set_value("code", "parts", value={})),
    "a negative time": (KINDS, set_value("seconds", value=-1.0)),
    "threads that are a truth": (KINDS, set_value("threads", value=True)),
    **{f"no {field}": (KINDS, drop(field)) for field in FIELDS[::2]},
    **{f"{field} that is a list of itself": (KINDS, set_value(field, value=[[field]])) for field in FIELDS[1::2]},
}
"""By what is wrong with a manifest: to which kinds it is done, and how. Everything above is remade."""
SHOWN_BY = {
    "older than its inputs": Check.CONSUMERS,
    "an attempt that ends at another step": Check.NUMBERS,
    "an attempt that starts after its end": Check.NUMBERS,
    "an attempt that starts in the middle": Check.NUMBERS,
    "an attempt with another history": Check.NUMBERS,
    "an input's spec changed": Check.CHAIN,
}
"""What shows those of `EDITS` that the artifact alone does not."""
RECORDS: dict[str, Edit] = {
    "another processor": set_value("processor", value="Another"),
    "another package": set_value("packages", "torch", value="2.0.0"),
    "other rules": set_value("code", "parts", "rules", value=DIGEST),
    "another commit": set_value("code", "commit", value=DIGEST[:40]),
    "an image": set_value("image", value={"org.label-schema.build-date": "now"}),
    "a second more": lambda _forger, _name, manifest: manifest.update(seconds=manifest["seconds"] + 1),
    "another Python": set_value("python", value="3.12.1"),
    "more memory": set_value("peak_memory_mb", value=1),
    "other arguments": set_value("arguments", value=["--device", "cuda"]),
    "another host": attempt(host="node1"),
}
"""By what a manifest says otherwise of how the artifact was made, as it could be: how it is edited. The chain shows it;
if everything above is remade, only a signature does."""


def with_edit(edit: Edit, forger: Forger, name: str) -> None:
    forger.edit_manifest(name, partial(edit, forger, name))


def with_edit_remade(edit: Edit, forger: Forger, name: str) -> None:
    with_edit(edit, forger, name)
    forger.remake_chain(name)


# --- Numbers ---


def more(value: Any) -> Any:
    """Another value of the same form."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value + 0.05
        case str():
            return f"{value}x"
        case list():
            return [more(value[0]), *value[1:]] if value else [1]
        case dict():
            return {key: more(inner) if key == min(value) else inner for key, inner in value.items()} or {"x": 1}
    return 1


FACTS = {
    "sources": ("rows", "files"),
    "collections": (
        *("documents", "queries", "judgements", "positive_judgements", "unjudged_queries", "empty_documents"),
        *("judgements_of_unknown_documents",),
    ),
    "bases": ("parameters", "vocabulary"),
    "shards": ("rows", "rows_by_shard", "read", "characters"),
    "candidates": ("candidates", "rows", "rows_without_candidates"),
    "negatives": ("rows", "kept", "rows_kept", "rows_by_shard"),
    "scores": ("rows", "rows_by_shard"),
    "batches": ("steps", "steps_by_source"),
    "models": ("steps", "final_loss", "parameters", "samples", "stage"),
    "indexes": ("documents", "queries", "dimensions", "encoding"),
    "runs": ("retrieved",),
    "measures": ("means", "queries", "queries_without_results"),
    "reports": ("means", "reference"),
}
"""Facts that can be counted again from files, by kind."""


def change_fact(fact: str, forger: Forger, name: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["facts"][fact] = more(manifest["facts"][fact])

    forger.edit_manifest(name, edit)


def change_fact_remade(fact: str, forger: Forger, name: str) -> None:
    change_fact(fact, forger, name)
    forger.remake_chain(name)


def raise_means(forger: Forger, name: str) -> None:
    """+0.05 on every mean of all measures, and the report made again from them."""
    for measures in forger.of_kind("measures"):
        forger.edit_manifest(
            measures,
            lambda manifest: manifest["facts"].update(
                means={key: value + 0.05 for key, value in manifest["facts"]["means"].items()}
            ),
        )
    forger.make_again(forger.report)


def raise_values(forger: Forger, name: str) -> None:
    """The values of a row's queries are raised; files, means and records fit; the report is made again from them."""
    folder = forger.folder(name)
    values = read_values(folder / VALUES_FILE)
    raised = {measure: dict.fromkeys(of_queries, 1.0) for measure, of_queries in values.items()}
    write_values(folder, ((query, measure, raised[measure][query]) for measure in raised for query in raised[measure]))

    def edit(manifest: dict[str, Any]) -> None:
        manifest["facts"]["means"] = dict.fromkeys(manifest["facts"]["means"], 1.0)
        manifest["outputs"] = file_digests(folder)

    forger.edit_manifest(name, edit)
    forger.make_again(forger.report)


def drop_a_query(forger: Forger, name: str) -> None:
    """The worst query of a row is left out of all rows' values; all above fits."""
    ranked = read_values(forger.folder(name) / VALUES_FILE)["nDCG@10"]
    worst = min(ranked, key=lambda query: ranked[query])
    for measures in forger.of_kind("measures"):
        folder = forger.folder(measures)
        kept = {
            measure: {query: value for query, value in row.items() if query != worst}
            for measure, row in read_values(folder / VALUES_FILE).items()
        }
        write_values(folder, ((query, measure, kept[measure][query]) for measure in kept for query in kept[measure]))
        means = {measure: math.fsum(row.values()) / len(row) for measure, row in kept.items()}
        facts = forger.manifest(measures)["facts"] | {"means": means, "queries": len(ranked) - 1}
        forger.edit_manifest(measures, partial(dict.update, facts=facts))
        forger.fit(measures)
    forger.make_again(forger.report)


def move_row(forger: Forger, name: str) -> str:
    """The values of the best row stand in the place of another's; all above fits."""
    best = max(forger.of_kind("measures"), key=lambda each: forger.manifest(each)["facts"]["means"]["nDCG@10"])
    worst = min(forger.of_kind("measures"), key=lambda each: forger.manifest(each)["facts"]["means"]["nDCG@10"])
    shutil.copy(forger.folder(best) / VALUES_FILE, forger.folder(worst) / VALUES_FILE)
    facts = forger.manifest(best)["facts"]
    forger.edit_manifest(worst, partial(dict.update, facts=facts))
    forger.fit(worst)
    forger.make_again(forger.report)
    return worst


def table_cell(file: str, old: str, new: str, forger: Forger, name: str) -> None:
    path = forger.folder(name) / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    forger.fit(name)


def row_mean(forger: Forger) -> float:
    return float(forger.manifest(forger.report)["facts"]["means"]["all"])


def row_text(forger: Forger) -> str:
    return f"{100 * row_mean(forger):.2f}"


def raise_cell(file: str, forger: Forger, name: str) -> None:
    # In the CSV, four digits of the value itself: as printed it is rounded.
    text = row_text(forger) if file != "table.csv" else str(row_mean(forger))[2:6]
    table_cell(file, text, "99.99" if file != "table.csv" else "9999", forger, name)


def edit_page(old: str, new: str, forger: Forger, name: str) -> None:
    """Edit what the page says beside its table of results."""
    path = forger.folder(name) / "report.html"
    head, mark, tail = path.read_text(encoding="utf-8").rpartition(old)
    assert mark
    path.write_text(head + new + tail, encoding="utf-8")
    forger.fit(name)


def edit_statistics(edit: Callable[[dict[str, Any]], object], forger: Forger, name: str) -> None:
    """Edit what the report says of the first comparison that is no better than chance."""
    path = forger.folder(name) / "statistics.json"
    statistics = json.loads(path.read_bytes())
    edit(next(each for each in statistics["comparisons"] if each["p_corrected"] > 0.01))
    path.write_text(json.dumps(statistics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    forger.fit(name)


def bold_another(forger: Forger, name: str) -> None:
    path = forger.folder(name) / "table.md"
    path.write_text(path.read_text(encoding="utf-8").replace("**", "  "), encoding="utf-8")
    forger.fit(name)


def swap_rows(forger: Forger, name: str) -> None:
    path = forger.folder(name) / "table.md"
    text = path.read_text(encoding="utf-8")
    text = text.replace("untrained        ", "\0").replace("distillation-only", "untrained        ")
    path.write_text(text.replace("\0", "distillation-only"), encoding="utf-8")
    forger.fit(name)


def remove_row(forger: Forger, name: str) -> None:
    path = forger.folder(name) / "table.md"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "bm25" not in line), encoding="utf-8")
    forger.fit(name)


def edit_run(forger: Forger, name: str) -> None:
    """The judged document of each query gets the highest score, in the line in which it is."""
    path = forger.folder(name) / "run.trec"
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line[0][1:] == line[2][1:]:
            line[4] = "1000.0"
    path.write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
    forger.fit(name)


def edit_run_remade(forger: Forger, name: str) -> None:
    edit_run(forger, name)
    forger.remake_chain(name)


def raise_the_judged(forger: Forger, name: str) -> None:
    """In each query the judged document changes places with the first: what a step could have written."""
    path = forger.folder(name) / "run.trec"
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    for query in {line[0] for line in lines}:
        of_query = [line for line in lines if line[0] == query]
        judged = next((line for line in of_query if line[2][1:] == query[1:]), of_query[0])
        of_query[0][2], judged[2] = judged[2], of_query[0][2]
    path.write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
    forger.fit(name)


def raise_the_judged_remade(forger: Forger, name: str) -> None:
    raise_the_judged(forger, name)
    forger.remake_chain(name)


def raise_the_judged_and_measure(forger: Forger, name: str) -> None:
    """The run is measured again and reported, by the steps themselves."""
    raise_the_judged(forger, name)
    for follower in forger.followers(name):
        forger.make_again(follower)


def edit_qrels(forger: Forger, name: str) -> None:
    path = forger.folder(name) / "qrels" / "test.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("q0\td0\t1", "q0\td5\t1"), encoding="utf-8")
    forger.fit(name)


def edit_qrels_remade(forger: Forger, name: str) -> None:
    edit_qrels(forger, name)
    forger.remake_chain(name)


def edit_source_remade(forger: Forger, name: str) -> str:
    """A letter of a row is another; all above fits."""
    name = next(each for each in forger.of_kind("sources") if "lines" in each)
    path = forger.folder(name) / "lines.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(" a", " b", 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    forger.fit(name)
    forger.remake_chain(name)
    return name


def swap_weights(forger: Forger, name: str) -> str:
    names = [each for each in forger.of_kind("models") if each.startswith("models/distillation")]
    first, second = (forger.folder(each) / "model.safetensors" for each in names)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    for each in names:
        forger.fit(each)
    return names[0]


def swap_weights_remade(forger: Forger, name: str) -> str:
    at_fault = swap_weights(forger, name)
    forger.remake_chain(*(each for each in forger.of_kind("models") if each.startswith("models/distillation")))
    return at_fault


def edit_losses(forger: Forger, name: str) -> None:
    path = forger.folder(name) / "losses.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["loss"] /= 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    forger.fit(name)


def edit_losses_remade(forger: Forger, name: str) -> None:
    edit_losses(forger, name)
    forger.remake_chain(name)


def drop_steps_remade(forger: Forger, name: str) -> None:
    path = forger.folder(name) / "losses.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    forger.fit(name)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["attempts"][-1] |= {"history": file_digest(path), "end_step": len(lines) - 1}

    forger.edit_manifest(name, edit)
    forger.remake_chain(name)


def edit_parquet(forger: Forger, name: str) -> None:
    """A row of a table is left out; the manifest fits."""
    path = next(path for path in forger.files(name) if path.suffix == ".parquet")
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)
    forger.fit(name)


def edit_parquet_remade(forger: Forger, name: str) -> None:
    edit_parquet(forger, name)
    forger.remake_chain(name)


def shuffle_parquet(forger: Forger, name: str) -> None:
    """The rows of a table are turned around; the manifest fits, and all counts are as before."""
    path = next(path for path in forger.files(name) if path.suffix == ".parquet")
    table = pq.read_table(path)
    turned = table.take(pa.array(range(table.num_rows - 1, -1, -1)))
    assert not turned.equals(table)
    pq.write_table(turned, path)
    forger.fit(name)


def shuffle_parquet_remade(forger: Forger, name: str) -> None:
    shuffle_parquet(forger, name)
    forger.remake_chain(name)


def flip_fitted(forger: Forger, name: str) -> None:
    flip(forger, name)
    forger.fit(name)


def remove_facts(forger: Forger, name: str) -> None:
    forger.edit_manifest(name, partial(dict.update, facts={}))
    forger.remake_chain(name)


def remove_a_fact(forger: Forger, name: str) -> None:
    fact = forger.random.choice(EXPECTED_FACTS[name.partition("/")[0]])
    forger.edit_manifest(name, lambda manifest: manifest["facts"].pop(fact))
    forger.remake_chain(name)


def remove_file_remade(forger: Forger, name: str) -> None:
    (forger.folder(name) / forger.random.choice(EXPECTED_FILES[name.partition("/")[0]])).unlink()
    forger.fit(name)
    forger.remake_chain(name)


def edit_lines_remade(edit: Callable[[list[list[str]]], None], forger: Forger, name: str) -> None:
    """Edit the lines of a run, each a list of its fields."""
    path = forger.folder(name) / "run.trec"
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    edit(lines)
    path.write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
    forger.fit(name)
    forger.remake_chain(name)


def repeat_document(lines: list[list[str]]) -> None:
    lines[1][2] = lines[0][2]


def score_that_is_none(lines: list[list[str]]) -> None:
    lines[0][4] = "nan"


def raise_above_one(forger: Forger, name: str) -> None:
    folder = forger.folder(name)
    values = read_values(folder / VALUES_FILE)
    write_values(folder, ((query, measure, 2.0) for measure, of_queries in values.items() for query in of_queries))
    facts = forger.manifest(name)["facts"] | {"means": dict.fromkeys(values, 2.0)}
    forger.edit_manifest(name, partial(dict.update, facts=facts))
    forger.fit(name)
    forger.report_again()


def write_again(forger: Forger, name: str) -> None:
    """The same step made it again, at another time: the same files, another record."""
    before = {path.name: path.read_bytes() for path in forger.files(name)}
    forger.make_again(name)
    assert before == {path.name: path.read_bytes() for path in forger.files(name)}
    forger.edit_manifest(name, lambda manifest: manifest.update(seconds=manifest["seconds"] + 1))


def claim_to_be_given(forger: Forger, name: str) -> None:
    """More documents were encoded for another index than there are."""
    forger.edit_manifest(name, lambda it: it["facts"].update(given_documents=it["facts"]["documents"] + 1))
    forger.remake_chain(name)


TABLES = ("shards", "candidates", "negatives", "scores", "measures")
"""Kinds of which every file is a table."""

NUMBERS: dict[str, tuple[tuple[str, ...], Check, Change]] = {
    "means raised and the report made again": (("measures",), Check.NUMBERS, raise_means),
    "more documents given than there are, remade": (("indexes",), Check.NUMBERS, claim_to_be_given),
    "a query left out and the report made again": (("measures",), Check.NUMBERS, drop_a_query),
    "a cell of table.md, outputs forged": (("reports",), Check.NUMBERS, partial(raise_cell, "table.md")),
    "a cell of table.csv, outputs forged": (("reports",), Check.NUMBERS, partial(raise_cell, "table.csv")),
    "a cell of report.html, outputs forged": (("reports",), Check.NUMBERS, partial(raise_cell, "report.html")),
    "the legend of the page, outputs forged": (("reports",), Check.NUMBERS, partial(edit_page, "Seed 7", "Seed 8")),
    "a bar of the page, outputs forged": (
        ("reports",),
        Check.NUMBERS,
        partial(edit_page, "<rect ", '<rect class="x" '),
    ),
    "a p value lowered, outputs forged": (
        ("reports",),
        Check.NUMBERS,
        partial(edit_statistics, lambda each: each.update(p=0.001, p_holm=0.004, p_max_t=0.004, p_corrected=0.004)),
    ),
    "an interval moved, outputs forged": (
        ("reports",),
        Check.NUMBERS,
        partial(edit_statistics, lambda each: each.update(interval=[0.01, 0.02])),
    ),
    "a difference raised, outputs forged": (
        ("reports",),
        Check.NUMBERS,
        partial(edit_statistics, lambda each: each.update(difference=each["difference"] + 0.05)),
    ),
    "bold removed, outputs forged": (("reports",), Check.NUMBERS, bold_another),
    "two rows swapped, outputs forged": (("reports",), Check.NUMBERS, swap_rows),
    "a row removed, outputs forged": (("reports",), Check.NUMBERS, remove_row),
    "a run edited, outputs forged": (("runs",), Check.CONSUMERS, edit_run),
    "a run edited, remade": (("runs",), Check.NUMBERS, edit_run_remade),
    "judgements edited, outputs forged": (("collections",), Check.CONSUMERS, edit_qrels),
    "judgements edited, remade": (("collections",), Check.NUMBERS, edit_qrels_remade),
    "a letter of a source edited, remade": (("sources",), Check.NUMBERS, edit_source_remade),
    "weights of two models swapped, outputs forged": (("models",), Check.CONSUMERS, swap_weights),
    "losses edited, outputs forged": (("models",), Check.CONSUMERS, edit_losses),
    "losses edited, remade": (("models",), Check.NUMBERS, edit_losses_remade),
    "a step's loss left out, remade": (("models",), Check.NUMBERS, drop_steps_remade),
    "a table without its last row, outputs forged": (TABLES, Check.CONSUMERS, edit_parquet),
    "a table without its last row, remade": (TABLES, Check.NUMBERS, edit_parquet_remade),
    "a table turned around, outputs forged": (TABLES[:4], Check.CONSUMERS, shuffle_parquet),
    "a bit flipped, outputs forged": (KINDS[:-1], Check.CONSUMERS, flip_fitted),
    "facts removed, remade": (("collections", "shards", "models", "measures", "reports"), Check.NUMBERS, remove_facts),
    "a fact removed, remade": (
        tuple(kind for kind in EXPECTED_FACTS if kind in KINDS)[1:],
        Check.NUMBERS,
        remove_a_fact,
    ),
    "a file removed, remade": (
        tuple(kind for kind in EXPECTED_FILES if kind in KINDS),
        Check.NUMBERS,
        remove_file_remade,
    ),
    "a document twice in a run, remade": (("runs",), Check.NUMBERS, partial(edit_lines_remade, repeat_document)),
    "a score that is none, remade": (("runs",), Check.NUMBERS, partial(edit_lines_remade, score_that_is_none)),
    "values above 1 and the report made again": (("measures",), Check.NUMBERS, raise_above_one),
    "made again with the same files": (("shards", "runs", "measures"), Check.CHAIN, write_again),
}
"""By what is done to a study's numbers: to which kinds, what shows it, and how."""


# --- The study and its config ---


def config(old: str, new: str, forger: Forger, _name: str) -> str:
    """Edit the config after the run."""
    forger.edit_config(old, new)
    return forger.report


def rekey(old: str, new: str, forger: Forger, name: str) -> str:
    """Change a setting in an artifact, and give all that rests on it the names that follow; the config is as it was."""

    def edit(spec: dict[str, Any]) -> None:
        settings = json.dumps(spec["settings"])
        assert old in settings
        spec["settings"] = json.loads(settings.replace(old, new))

    forger.rekey(name, edit)
    return forger.report


def exchange_measures(forger: Forger, name: str) -> str:
    """In the report's spec, two rows have each other's measures."""

    def edit(spec: dict[str, Any]) -> None:
        inputs = spec["inputs"]
        inputs["all"], inputs["untrained"] = inputs["untrained"], inputs["all"]

    forger.rekey(name, edit)
    return forger.report


def leave_out_a_row(forger: Forger, name: str) -> str:
    def edit(spec: dict[str, Any]) -> None:
        del spec["inputs"]["bm25"], spec["settings"]["rows"]["bm25"]

    forger.rekey(name, edit)
    forger.record_inputs(forger.report)
    return forger.report


def write_config(text: str, forger: Forger, _name: str) -> str:
    (forger.root / CONFIG_FILE).write_text(text, encoding="utf-8")
    return CONFIG_FILE


def remove_config(forger: Forger, _name: str) -> str:
    (forger.root / CONFIG_FILE).unlink()
    return CONFIG_FILE


def without_report(change: Change) -> Change:
    def do(forger: Forger, name: str) -> str:
        change(forger, name)
        return "there is no report"

    return do


def remove_everything(forger: Forger, _name: str) -> str:
    for folder in ("resources", "results"):
        shutil.rmtree(forger.root / folder)
    return "there is no artifact"


CONFIGS: dict[str, tuple[str, Change]] = {
    "a prompt edited": ("reports", partial(config, 'query: "search_query: "', 'query: "query: "')),
    "the seed changed": ("reports", partial(config, "seed: 7", "seed: 8")),
    "the study renamed": ("reports", partial(config, "study: kept", "study: other")),
    "a recipe renamed": ("reports", partial(config, "distillation-only:", "distilled:")),
    "a baseline removed": ("reports", partial(config, "  bm25: { bm25: {} }\n  untrained", "  untrained")),
    "a collection renamed": ("reports", partial(config, "  dev: {", "  test: {")),
    "a learning rate changed": ("reports", partial(config, "learning_rate: 3.0e-3", "learning_rate: 2.0e-3")),
    "a stage left out": ("reports", partial(config, "[unsupervised, supervised, distillation]", "[unsupervised]")),
    "a miner's depth changed": (
        "reports",
        partial(config, "bm25: { bm25: {}, depth: 10 }", "bm25: { bm25: {}, depth: 9 }"),
    ),
    "a branch made from another prompt": ("models", partial(rekey, '"search_query: "', '"query: "')),
    "a branch made from another seed": ("shards", partial(rekey, '"seed": 7', '"seed": 8')),
    "a branch made from another depth": ("candidates", partial(rekey, '"depth": 10', '"depth": 9')),
    "a branch made from another learning rate": (
        "models",
        partial(rekey, '"learning_rate": 0.00', '"learning_rate": 0.01'),
    ),
    "runs of another depth": ("runs", partial(rekey, '"depth": 100', '"depth": 1000')),
    "measures of other names": ("measures", partial(rekey, "nDCG@10", "nDCG@20")),
    "a report of exchanged rows": ("reports", exchange_measures),
    "a report without a row": ("reports", leave_out_a_row),
    "the report removed": ("reports", without_report(remove_folder)),
    "the report emptied": ("reports", without_report(empty_folder)),
    "the report hidden": ("reports", without_report(hide_folder)),
    "the reports removed": ("reports", without_report(remove_kind)),
    "everything removed": ("reports", remove_everything),
    "the config removed": ("reports", remove_config),
    "the config emptied": ("reports", partial(write_config, "")),
    "a config that is no YAML": ("reports", partial(write_config, "study: [")),
    "a config that is a list": ("reports", partial(write_config, "- study\n")),
}
"""By what is done to the config, or to artifacts that are then not the config's: to which kind, and how. A study whose
report is another than the one that the config plans may be unfinished as well: it cannot be told, and is not clean.
Each returns what the note about it names."""


# --- What only a signature shows ---


def older_study(forger: Forger, name: str) -> None:
    """Every record is made an older one."""
    for each in forger.in_order:
        forger.edit_manifest(each, partial(older_record, forger, each))
    for each in forger.in_order:
        records = {source: content_digest(forger.manifest(source)["outputs"]) for source in forger.inputs(each)}
        forger.edit_manifest(each, partial(dict.update, inputs=records))


def rekey_with_config(forger: Forger, name: str) -> None:
    """The config, and the branch that it changes, name a setting that was not used."""
    start = next(each for each in forger.of_kind("models") if each.startswith("models/unsupervised"))
    forger.edit_config("unsupervised: { sources", "unsupervised: { weight_decay: 0.1, sources")
    forger.rekey(start, lambda spec: spec["settings"].update(weight_decay=0.1))
    assert forger.plan().report.name == forger.report


def reported(change: Change) -> Change:
    """Let the report's files follow from what was changed."""

    def do(forger: Forger, name: str) -> str | None:
        at_fault = change(forger, name)
        forger.report_again()
        return at_fault

    return do


SIGNED: dict[str, tuple[str, Change]] = {
    "another config, and the branch that follows": ("reports", rekey_with_config),
    "all records made older ones": ("reports", older_study),
    "candidates turned around, remade": ("candidates", shuffle_parquet_remade),
    **{
        f"{words}, remade": (random.Random(words).choice(KINDS), partial(with_edit_remade, edit))
        for words, edit in RECORDS.items()
    },
    "document tokens of a model": ("models", partial(change_fact_remade, "document_tokens")),
    "candidates that found the positive": ("candidates", partial(change_fact_remade, "positives_found")),
}
"""By what is forged up to the report: in which kind, and how. All agrees, so that only a signature shows it."""
MEASURED: dict[str, tuple[str, Change]] = {
    "values raised and the report made again": ("measures", raise_values),
    "the values of another row, and the report made again": ("measures", move_row),
    "a run edited, remade without its measures": ("runs", raise_the_judged_remade),
}
"""By what is forged up to the report, but not below: what a measurement of the stored runs shows, or a signature."""
SEARCHED: dict[str, tuple[str, Change]] = {
    "a run edited, measured and reported again": ("runs", raise_the_judged_and_measure),
    "weights of two models swapped, remade": ("models", swap_weights_remade),
}
"""By what is forged up to the report, but not below: what a search with the stored models shows, or a signature."""


def tamperings() -> Iterator[Tampering]:
    """All tamperings that are findings without a signature."""
    for words, (number, change) in (FILES | SPECS | MANIFESTS).items():
        for kind in some(words, number):
            yield Tampering(words, kind, change, Check.ARTIFACT)
    for words, (kinds, number, check, change) in FOLDERS.items():
        for kind in some(words, number, kinds):
            yield Tampering(words, kind, change, check)
    for words, (kinds, edit) in EDITS.items():
        kind = random.Random(words).choice(kinds)
        check = SHOWN_BY.get(words, Check.ARTIFACT)
        yield Tampering(f"{words}, remade", kind, partial(with_edit_remade, edit), check)
    for words, edit in RECORDS.items():
        yield Tampering(words, random.Random(words).choice(BELOW), partial(with_edit, edit), Check.CHAIN)
    for words, rewrite in {"a key twice": repeat_key, "a number that is none": number_that_is_none}.items():
        yield Tampering(words, "reports", partial(rewrite_manifest, rewrite), Check.ARTIFACT)
    for kind, facts in FACTS.items():
        for fact in facts:
            yield Tampering(f"{fact} changed, remade", kind, partial(change_fact_remade, fact), Check.NUMBERS)
    for kind in BELOW:
        fact = random.Random(kind).choice(FACTS[kind])
        yield Tampering(f"{fact} changed", kind, partial(change_fact, fact), Check.CHAIN)
    for words, (kinds, check, change) in NUMBERS.items():
        for kind in kinds:
            yield Tampering(words, kind, change, check)


def of_study() -> Iterator[Tampering]:
    """All tamperings after which the study may be unfinished: it is not clean."""
    for words, (kind, change) in CONFIGS.items():
        yield Tampering(words, kind, change, Check.STUDY)


def signed() -> Iterator[Tampering]:
    """All tamperings that are findings with a signature alone, as everything up to the report fits."""
    for words, (kind, change) in (SIGNED | MEASURED | SEARCHED).items():
        yield Tampering(words, kind, change if change is older_study else reported(change), Check.SIGNATURE)


def computed() -> Iterator[tuple[int, Tampering]]:
    """Those of them that the ladder finds as well, by computing again, each with its level."""
    for level, changes in ((1, MEASURED), (2, SEARCHED)):
        for words, (kind, change) in changes.items():
            yield level, Tampering(words, kind, change, Check.SIGNATURE)
