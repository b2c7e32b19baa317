"""What README.md, CONTRIBUTING.md and docs/ say runs: commands and configs here, and links and paths lead somewhere.

A block that cannot run in a test says `no-run` in its first line, and is in `NOT_RUN`. A config with a mistake says
`wrong`, and the console block after it quotes the error. `make` says what it would do, Snakemake plans. The commands
of a block that says `demo` run on the finished demo (`make test-demo`); here their words are understood.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise

import pytest
import yaml
from test_partial_reruns import CONTRACT

import loading_recipes
from colbert_zero import cli
from colbert_zero.graph.config import read_config, read_yaml
from colbert_zero.graph.console import UserError
from colbert_zero.graph.data_files import SCORES_ROLES
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.study import Study
from documents import PAGES, ROOT, Block, Command, all_blocks, blocks, commands, inlines, spans, tokens
from programs import laptop

KEPT = ROOT / "tests" / "fixtures" / "study-0.1.0"
EMBEDDED = read_config(ROOT / "local" / "config.yaml")
PAPER = read_config(ROOT / "config.yaml")
SCHEMA = read_yaml(WORKFLOW / "schemas" / "study.schema.yaml")
SETTINGS = SCHEMA["$defs"]["settings"]["properties"]
RESOURCES = SCHEMA["properties"]["resources"]["additionalProperties"]["properties"]
MINING = SCHEMA["properties"]["mining"]["additionalProperties"]["properties"]
ENCODER = SCHEMA["properties"]["miners"]["additionalProperties"]["properties"]["encoder"]["properties"]

MARKS = {"console": {"", "no-run", "demo"}, "yaml": {"", "wrong"}, "python": {""}, "mermaid": {""}, "text": {""}}
"""The languages of blocks, and the marks that a block of each may have."""
NOT_RUN = {
    ("CONTRIBUTING.md", "$ pre-commit install"),  # it writes into .git
    ("CONTRIBUTING.md", "$ python tests/contract/keys.py"),  # it writes the promised keys
    ("docs/release.md", "$ colbert-zero sign --key '~/.ssh/id_ed25519' --directory local"),  # it needs a key
    ("docs/release.md", "$ colbert-zero sign --key model-key.pem --release colbert-zero --directory local"),
    ("docs/release.md", "$ hf upload ORG/NAME results/releases/colbert-zero-KEY"),  # it publishes
}
"""Page and first command of each block that is not run."""
PATH = re.compile(r"(?:workflow|tests|docs|envs|containers|slurm|local|\.github)/[\w./*-]*")
"""A code span that names something of the repository."""


def tables(page):
    """The cells of each table, by row; a cell is its text without marks."""
    found = []
    for token, following in pairwise(tokens(page)):
        match token.type:
            case "table_open":
                found.append([])
            case "tr_open":
                found[-1].append([])
            case "th_open" | "td_open":
                found[-1][-1].append("".join(inner.content for inner in following.children))
    return found


def table_with(page, *header):
    (found,) = [table for table in tables(page) if table[0][: len(header)] == list(header)]
    return found


def slugs(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [following for token, following in pairwise(tokens(page)) if token.type == "heading_open"]
    texts = ["".join(inner.content for inner in heading.children) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def named(value):
    if isinstance(value, Block):
        return f"{value.page}:{value.line}"
    if isinstance(value, Command):
        return f"{value.block.page}:{value.block.line} {' '.join(value.words)}"
    return ": ".join(value)


each = partial(pytest.mark.parametrize, ids=named)


def test_each_block_is_of_a_kind_that_is_tested():
    for block in all_blocks():
        where = f"{block.page}:{block.line}"
        assert block.language in MARKS, f"{where}: {block.language or 'no language'}: say which, and test it here"
        assert block.mark in MARKS[block.language], f"{where}: {block.mark} is no mark of {block.language} blocks"


def test_blocks_that_are_not_run_are_listed():
    assert {
        (block.page, f"$ {shlex.join(commands(block)[0].words)}") for block in blocks("console", "no-run")
    } == NOT_RUN


# Configs


def merged(base, part):
    """`base`, changed where `part` says something else."""
    if not (isinstance(base, dict) and isinstance(part, dict)):
        return part
    return {**base, **{key: merged(base.get(key), value) for key, value in part.items()}}


def write_files(config, folder):
    """The local files and folders that a config names."""
    for source in config.get("sources", {}).values():
        if "file" in source:
            path = folder / source["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            names = {"query": "query", "document": "document"} | source.get("columns", {})
            row = json.dumps({names["query"]: "a question", names["document"]: "an answer"}).encode()
            path.write_bytes(gzip.compress(row) if path.suffix == ".gz" else row)
        if "scores" in source:
            (folder / source["scores"]).mkdir(parents=True, exist_ok=True)
            for role in SCORES_ROLES:
                (folder / source["scores"] / f"{role}.parquet").touch()
    for entry in (*config.get("models", {}).values(), *config["collections"].values()):
        if "folder" in entry:
            (folder / entry["folder"]).mkdir(parents=True, exist_ok=True)
            (folder / entry["folder"] / "README").touch()


def study_in(folder, config):
    """A study's folder, with all that its config names."""
    folder.mkdir(exist_ok=True)
    write_files(config, folder)
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def plan(part, folder):
    """Plan a config, or the paper's study with a part of a config in place of its own."""
    config = part if "study" in part and len(part) > 1 else merged(PAPER, part)
    return Study(config, study_in(folder, config), resolve=lambda *_: None)


def mapping_in(text):
    """The only key and its value, of a code span that is a line of YAML."""
    if not re.match(r"[A-Za-z_-]+: \S", text):
        return None
    ((key, value),) = yaml.safe_load(text).items()
    return key, value


def config_of(key, value):
    """The part of a config that a span stands for: a part, a setting of a stage or of mining, what a stage asks for."""
    if key in SCHEMA["properties"]:
        return {key: value}
    if key in SETTINGS:
        return {"stages": {"unsupervised": {key: value}}}
    if key in RESOURCES:
        return {"resources": {"unsupervised": {key: value}}}
    if key in MINING:
        return {"mining": {"fused": {key: value}}}
    if key in ENCODER:
        return {"miners": {"gte": {"encoder": {key: value}}}}
    return None


MAPPINGS = [(page, text) for page, text in spans() if mapping_in(text)]
PARTS = [(page, text) for page, text in MAPPINGS if config_of(*mapping_in(text))]
PROFILES = [(page, text) for page, text in MAPPINGS if not config_of(*mapping_in(text))]


@each("block", blocks("yaml"))
def test_config_is_planned(block, tmp_path):
    plan(yaml.safe_load(block.text), tmp_path / "study")


@each("span", PARTS)
def test_config_in_a_sentence_is_planned(span, tmp_path):
    plan(config_of(*mapping_in(span[1])), tmp_path / "study")


def test_a_key_in_a_sentence_is_a_key_of_the_schema():
    known = set(re.findall(r"\b([\w-]+): ", (WORKFLOW / "schemas" / "study.schema.yaml").read_text()))
    known |= set(re.findall(r"^ *([\w-]+):$", (WORKFLOW / "schemas" / "study.schema.yaml").read_text(), re.MULTILINE))
    assert [span for span in spans() if re.fullmatch(r"[a-z_]+:", span[1]) and span[1][:-1] not in known] == []


def test_the_table_of_parts_has_every_part_in_the_schemas_order():
    assert [row[0] for row in table_with("docs/studies.md", "part")[1:]] == list(SCHEMA["properties"])
    for row in table_with("docs/studies.md", "part")[1:]:
        assert row[2].startswith(f"{row[0]}: ")


def test_settings_of_a_stage_are_in_the_schema():
    for row in table_with("docs/training.md", "setting of a stage")[1:]:
        assert {word.partition(":")[0] for word in row[0].split(", ")} <= SETTINGS.keys()


# Commands


@pytest.fixture(scope="module")
def on_a_laptop(tmp_path_factory):
    """An environment without SLURM and Apptainer, and outside of any `make`."""
    path = laptop(tmp_path_factory.mktemp("laptop"))
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | {"PATH": path}


@pytest.fixture(scope="module")
def snakemake(on_a_laptop):
    """Status and output of a dry-run; two commands that differ in `-n` alone are one."""

    @cache
    def plan_with(words):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *words, "-n"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=on_a_laptop,
        )
        return done.returncode, done.stdout + done.stderr

    def dry_run(*words):
        return plan_with(tuple(word for word in words if word != "-n"))

    return dry_run


@pytest.fixture(scope="module")
def study_folders(tmp_path_factory):
    """The folder of the study that a block's commands run in: that of the last config before it on its page."""

    @cache
    def folder(block):
        configs = [other for other in all_blocks() if other.page == block.page and other.language == "yaml"]
        config = [other for other in configs if other.line < block.line][-1]
        part = yaml.safe_load(config.text)
        whole = merged(EMBEDDED, part) if config.mark == "wrong" else part
        return study_in(tmp_path_factory.mktemp("study"), whole)

    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return shutil.copytree(KEPT, tmp_path_factory.mktemp("kept") / "study")


@pytest.fixture(scope="module")
def finished(kept, tmp_path_factory):
    folder = shutil.copytree(kept, tmp_path_factory.mktemp("finished") / "study")
    # Its negatives, and so its report, have another key today: the report is put under that name.
    report = Study(read_config(folder / "config.yaml"), folder).report
    (kept,) = (folder / "results" / "reports").iterdir()
    (kept / "spec.json").write_text(report.text)
    kept.rename(folder / report.folder)
    return folder


def after_wrong_config(block):
    before = [other for other in all_blocks() if other.page == block.page and other.line < block.line]
    return bool(before) and before[-1].mark == "wrong"


def run_make(command, environment):
    """What `make` would do for a target where nothing is installed yet, which must be something."""
    done = subprocess.run(
        ["make", "-n", "--always-make", *command.words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment | {"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" not in done.stdout
    return done.stdout


def run_snakemake(command, snakemake, study_folders):
    """Plan: in the study's folder where the command names one, or where the config before it has a mistake."""
    words, wrong = command.words[1:], after_wrong_config(command.block)
    if "--directory" in words:
        at = words.index("--directory") + 1
        words = [*words[:at], str(study_folders(command.block)), *words[at + 1 :]]
    elif wrong:
        words = [*words, "--directory", str(study_folders(command.block))]
    status, output = snakemake(*words)
    assert status == (1 if wrong else 0), output
    assert wrong or "This was a dry-run" in output
    return output


def run_colbert_zero(command, kept, finished):
    """A command that looks at a study, at the kept one: `verify` at what is there, others at what is planned today."""
    words = command.words[1:]
    words[words.index("--directory") + 1] = str(kept if words[0] == "verify" else finished)
    done = subprocess.run(
        [sys.executable, "-m", "colbert_zero.cli", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(WORKFLOW)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@each("command", [command for block in blocks("console") for command in commands(block)])
def test_command_runs(command, on_a_laptop, snakemake, study_folders, kept, finished):
    match command.words[0].removeprefix(".venv/bin/"):
        case "make":
            output = run_make(command, on_a_laptop)
        case "snakemake":
            output = run_snakemake(command, snakemake, study_folders)
        case "colbert-zero":
            output = run_colbert_zero(command, kept, finished)
        case other:
            pytest.fail(f"{other}: say here how it is run, or mark the block no-run")
    printed = output.splitlines()
    for line in command.output:
        assert line in printed, output
    for count in re.findall(r"(\d+) jobs", command.comment):
        assert re.findall(r"^total +(\d+)$", output, re.MULTILINE)[-1] == count


@each("command", [command for block in blocks("console", "demo") for command in commands(block)])
def test_the_words_of_a_command_on_the_demo_are_understood(command):
    assert command.words[0] == "colbert-zero"
    assert str(cli.parse(command.words[1:]).directory) == "local"


@each("block", blocks("yaml", "wrong"))
def test_the_error_of_a_wrong_config_is_quoted(block, tmp_path):
    after = next(other for other in all_blocks() if other.page == block.page and other.line > block.line)
    with pytest.raises(UserError) as error:
        plan(yaml.safe_load(block.text), tmp_path / "study")
    assert [line for command in commands(after) for line in command.output] == [f"colbert-zero: {error.value}"]


def test_what_is_written_into_a_profile_is_taken(snakemake, tmp_path):
    """One profile with all of it: Snakemake refuses a key that is no option of its own or of an executor."""
    profile = yaml.safe_load((ROOT / "slurm" / "profile.yaml").read_text())
    for _, text in PROFILES:
        profile |= yaml.safe_load(text)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "profile.yaml").write_text(yaml.safe_dump(profile))
    whole = next(config for block in blocks("yaml") if "study" in (config := yaml.safe_load(block.text)))
    study = study_in(tmp_path / "study", whole)
    status, output = snakemake("--profile", str(tmp_path / "site"), "--directory", str(study))
    assert status == 0, output
    rules = {
        rule for file in WORKFLOW.glob("rules/*.smk") for rule in re.findall(r"^rule (\w+):", file.read_text(), re.M)
    }
    assert set(profile["set-resources"]) <= rules


@each("span", [(page, text) for page, text in spans() if text.startswith(("make ", "python "))])
def test_command_in_a_sentence_exists(span, on_a_laptop):
    words = shlex.split(span[1])
    if words[0] == "make":
        run_make(Command(None, words, "", []), on_a_laptop)
    else:
        assert (ROOT / words[1]).is_file()


def test_python_blocks_are_the_recipes_that_another_test_runs():
    """`tests/unit/models/test_loading.py`; what is written before the first of them is run here."""
    recipes = set(loading_recipes.recipes().values())
    others = [block for block in blocks("python") if block.text not in recipes]
    assert [block.page for block in others] == ["docs/loading.md"]
    names = {}
    exec(others[0].text, names)
    assert names["queries"] and names["documents"]
    assert {block.page for block in blocks("python")} == {"docs/loading.md"}


# Links, paths and names


def links():
    return [(page, token.attrs["href"]) for page in PAGES for token in inlines(page) if token.type == "link_open"]


@each("link", [link for link in links() if not link[1].startswith("https://")])
def test_link_leads_to_a_page_and_a_heading(link):
    page, href = link
    path, _, anchor = href.partition("#")
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.is_file() and target.is_relative_to(ROOT)
    if anchor:
        assert anchor in slugs(target.relative_to(ROOT).as_posix())


def test_every_page_is_linked_from_the_readme():
    linked = {href.partition("#")[0] for page, href in links() if page == "README.md"}
    assert {page for page in PAGES if page != "README.md"} <= linked


def test_paths_in_sentences_exist():
    paths = {(page, text) for page, text in spans() if PATH.fullmatch(text)}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not list(ROOT.glob(path[1]))] == []


def test_the_tree_of_folders_is_the_repositorys():
    (tree,) = [block for block in blocks("text") if block.page == "CONTRIBUTING.md"]
    lines = [re.split(r" {2,}|(?<=/) ", line, maxsplit=1) for line in tree.text.splitlines()]
    paths = [path for entry, _ in lines for path in entry.split(", ")]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    # The rooms, in the order in which they may import.
    rooms = [path.split("/")[2] for path in paths if re.fullmatch(r"workflow/colbert_zero/\w+/", path)]
    import colbert_zero

    assert rooms == re.findall(r"^- `(\w+)`:", colbert_zero.__doc__, re.MULTILINE)
    assert set(rooms) == {path.parent.name for path in (WORKFLOW / "colbert_zero").glob("*/__init__.py")}


def test_the_demos_table_is_of_the_embedded_study():
    header, *rows = table_with("README.md", "recipe", "stages")
    assert header == ["recipe", "stages", *sorted(EMBEDDED["collections"]), "mean", "training"]
    stages = {
        name: " → ".join(stage if isinstance(stage, str) else next(iter(stage)) for stage in recipe["stages"])
        for name, recipe in EMBEDDED["recipes"].items()
    }
    assert {row[0]: row[1] for row in rows} == stages | dict.fromkeys(EMBEDDED["baselines"], "–")
    # Baselines, then recipes, each from the best to the worst.
    means = [float(row[header.index("mean")]) for row in rows]
    baselines = len(EMBEDDED["baselines"])
    assert [row[0] in EMBEDDED["baselines"] for row in rows] == [True] * baselines + [False] * len(EMBEDDED["recipes"])
    assert means == sorted(means[:baselines], reverse=True) + sorted(means[baselines:], reverse=True)


def test_the_table_of_partial_reruns_is_the_contract():
    changes = [row[0] for row in table_with("docs/studies.md", "change")[1:]]
    assert [change for change in CONTRACT if not any(row.startswith(change) for row in changes)] == []
    # Two rows have tests of their own beside the contract's.
    assert len(changes) == len(CONTRACT) + 1


def test_the_readme_counts_the_packages_of_the_lock():
    count = len(re.findall(r"^[A-Za-z0-9]\S*==", (ROOT / "envs" / "local.txt").read_text(), re.MULTILINE))
    assert f" {count} packages" in (ROOT / "README.md").read_text()


def test_the_readme_is_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


# The files that call the linters and the tests


def test_hooks_are_the_linters_of_make_lint(on_a_laptop):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = {hook["entry"] for hook in hooks[0]["hooks"]}
    linters = run_make(Command(None, ["make", "lint"], "", []), on_a_laptop).splitlines()
    assert {entry.removeprefix(".venv/bin/") for entry in entries} == {
        line for line in linters if re.match(r"(ruff|mypy|snakefmt|lint-imports)\b", line)
    }


def test_the_workflow_file_tests_every_python_that_the_locks_are_for():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    (job,) = workflow["jobs"].values()
    first, last = map(
        int,
        re.search(r"OLDEST, NEWEST = \(3, (\d+)\), \(3, (\d+)\)", (ROOT / "envs" / "install.py").read_text()).groups(),
    )
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(first, last + 1)]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test PYTHON=python"]
    assert workflow["permissions"] == {"contents": "read"}


def test_the_catalogs_flags_are_those_of_the_demo():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert f"snakemake {usage['mandatory-flags']['flags']}\n" in (ROOT / "Makefile").read_text()
    # The catalog only lists a workflow whose README has these words.
    assert {"snakemake", "workflow"} <= set(re.findall(r"\w+", (ROOT / "README.md").read_text().lower()))
