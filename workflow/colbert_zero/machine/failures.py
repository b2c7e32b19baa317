"""Explain a failed run: for each missing artifact, a line with the rows that need it, the cause and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from colbert_zero.graph.artifact import KEY_DIGITS, SPEC_FILE, Spec
from colbert_zero.graph.console import MESSAGE_PREFIX, one_line
from colbert_zero.graph.evaluation_jobs import EvaluationJobs
from colbert_zero.graph.faults import explain_fault
from colbert_zero.graph.rules import SHARING_RULES, rule_of
from colbert_zero.graph.study import Study
from colbert_zero.machine.images import hint_for

FAILED_ATTEMPT = re.compile(
    r"^Error in rule (?P<rule>\w+):\n(?P<fields>(?:(?!Error in rule ).*\n)*?    output: .*\n(?:    .*\n)*)",
    re.MULTILINE,
)
"""Snakemake's report of a failed attempt. Before the output, a message from SLURM may add lines of any kind."""
EXTERNAL_JOB_FIELD = "\n    external_jobid: "
"""Stands in the report of an attempt that ran as a SLURM job."""
SUBMISSION_ERROR = re.compile(
    r"^    message: (?:SLURM sbatch failed\.|Job submission failed with exception:) (.*?)(?:For further.*)?$",
    re.MULTILINE,
)
GPU_OUT_OF_MEMORY = re.compile(r"(CUDA|HIP) (error: )?out of memory", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(
    r"oom.?kill|exceeded (job |step )?memory limit|out of memory|std::bad_alloc|memory allocation of \d+ bytes failed"
    r"|java\.lang\.OutOfMemoryError",
    re.IGNORECASE,
)
"""Stands in the log of a step that was killed for memory, or that C++, Rust or Java code ended for lack of it."""
KILLED = re.compile(r"^Command '(.*)' returned non-zero exit status 137\.$", re.MULTILINE)
"""What Snakemake says of a step that was killed: the shell's status is then 128 + 9."""


def explain_failures(log_text: str, study: Study) -> list[str]:
    """Write a line for each artifact that a run failed to make.

    Args:
        log_text: Snakemake's whole log.
        study: The study of the run.

    Returns:
        The lines, in the order in which the artifacts first failed; none for an artifact that a later attempt made.
    """
    killed = KILLED.findall(log_text)
    last_attempts: dict[str, tuple[str, str, int]] = {}
    for report in FAILED_ATTEMPT.finditer(log_text):
        fields = report["fields"]
        output = _field(fields, "output")
        _, previous_fields, attempts = last_attempts.get(output, ("", "", 0))
        # Below its report of a failed SLURM job, Snakemake prints the job's log. There, the Snakemake inside of the job
        # reports the same failure: do not count it twice.
        if not (EXTERNAL_JOB_FIELD in previous_fields and _field(fields, "message") == "None"):
            last_attempts[output] = report["rule"], fields, attempts + 1
    return [
        one_line(f"{_artifact_and_rows(output, study)}: {_cause(output, rule, fields, attempts, study, killed)}")
        for output, (rule, fields, attempts) in last_attempts.items()
        if output and not Path(output).is_file()
    ]


def _field(fields: str, name: str) -> str:
    match = re.search(rf"^    {name}: (.*)$", fields, re.MULTILINE)
    return match[1] if match else ""


def _spec(output: str, study: Study) -> Spec | None:
    """The artifact that a job makes, or shares the work on."""
    path = Path(output)
    name = path.parent.name if path.name == SPEC_FILE else path.name.rpartition(".")[0]
    return study.specs.get(name[-KEY_DIGITS:])


def _artifact_and_rows(output: str, study: Study) -> str:
    """The artifact's name and the rows of the table that need it; the path of an output that is no artifact."""
    spec = _spec(output, study)
    if spec is None:
        return output
    rows = study.rows_using(spec.key)
    return f"{spec.name}" + (f" (of {rows})" if rows else "")


def _fault_at_the_end(log_text: str) -> str | None:
    """The fault of the machine that the last line of a log tells of: a step may end before it can report errors."""
    lines = log_text.splitlines()
    return explain_fault(RuntimeError(lines[-1])) if lines else None


def _cause(output: str, rule: str, fields: str, attempts: int, study: Study, killed: Sequence[str]) -> str:
    """Why the last attempt failed, and what to do; `killed` has the commands that were killed on this machine."""
    spec = _spec(output, study)
    if rule in SHARING_RULES.values() and spec is not None:
        rule = rule_of(spec).name
    # The config names a training by its stage and every other step by its rule.
    step = spec.label if spec is not None and spec.kind == "models" else re.sub("_(source|collection)$", "", rule)

    def had(resource: str) -> int:
        if spec is None:
            return int(study.resource(step, resource))
        return int(EvaluationJobs(study).resource(spec, step, resource, attempts))

    status_match = re.search(r"SLURM status is: '(\w+)", fields)
    status = status_match[1] if status_match else None
    log_files = [Path(name) for name in _field(fields, "log").rpartition(" (check log")[0].split(", ")]
    log_files = [path for path in log_files if path.is_file()]
    log_text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in log_files)
    times = f", {attempts} times" if attempts > 1 else ""
    refused = SUBMISSION_ERROR.search(fields)
    if refused:
        reason = re.search(r"sbatch: error: (.*?)'?\.?$", fields, re.MULTILINE) or refused
        return f"SLURM did not take the job: {reason[1].strip()}"
    if GPU_OUT_OF_MEMORY.search(log_text):
        return f"out of GPU memory{times}: request a GPU with more memory, resources.{step}.gpu_model in config.yaml"
    if status == "OUT_OF_MEMORY" or OUT_OF_MEMORY.search(log_text):
        return f"killed for memory{times}: {rule} had {had('mem_mb')} MB; raise resources.{step}.mem_mb in config.yaml"
    if status == "TIMEOUT":
        return (
            f"ran into its time limit{times}: {rule} had {had('runtime')} minutes; "
            f"raise resources.{step}.runtime in config.yaml"
        )
    if status is None and spec is not None and any(str(spec.argument_file("spec")) in command for command in killed):
        return (
            f"killed{times}, as the system does when memory runs out: {rule} had {had('mem_mb')} MB; "
            f"raise resources.{step}.mem_mb in config.yaml, so that less runs beside it"
        )
    messages = [line for line in log_text.splitlines() if line.startswith(MESSAGE_PREFIX)]
    if messages:
        return messages[-1].removeprefix(MESSAGE_PREFIX)
    hint = hint_for(log_text) or _fault_at_the_end(log_text)
    if hint:
        return hint
    slurm_status = f"SLURM says {status}; " if status else ""
    return f"{slurm_status}see {' and '.join(map(str, log_files)) or 'the message of Snakemake'}"
