"""A fault of the machine is one line that says what, where and what to do; a bug of ours is none."""

import errno
import os
import resource
import subprocess
import sys

import pyarrow as pa
import pytest

from colbert_zero.graph.faults import AGAIN, FAULTS, explain_fault
from colbert_zero.graph.paths import WORKFLOW


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_is_known_by_its_number_or_its_words(number):
    """As Python, Rust libraries (safetensors, tokenizers), Arrow and C++ libraries report it."""
    words = os.strerror(number)
    at = explain_fault(OSError(number, words, "results/x"))
    assert at == FAULTS[number].format(where="results/x") + f", {AGAIN}"
    assert "\n" not in at
    somewhere = FAULTS[number].format(where="the study's folder") + f", {AGAIN}"
    assert explain_fault(OSError(number, words)) == somewhere
    assert explain_fault(RuntimeError(f"Error while serializing: I/O error: {words} (os error {number})")) == somewhere
    assert (
        explain_fault(OSError(f"[Errno {number}] Error writing bytes. Detail: [errno {number}] {words}")) == somewhere
    )
    assert explain_fault(RuntimeError(f"write error: 3 != 4 ({words})")) == somewhere


def test_of_two_names_the_target_is_where():
    error = OSError(errno.ENOSPC, "No space left on device", "data/rows.parquet", None, "results/rows.parquet")
    assert "while writing results/rows.parquet:" in explain_fault(error)


def test_a_process_that_may_start_no_thread():
    """`ulimit -u`, from which root is exempt."""
    assert "ulimit -u" in explain_fault(RuntimeError("can't start new thread"))


NO_MEMORY = FAULTS[errno.ENOMEM] + f", {AGAIN}"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        Exception("JVM exception occurred: Java heap space java.lang.OutOfMemoryError"),
    ],
)
def test_no_memory_has_many_names(error):
    assert explain_fault(error) == NO_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        KeyError("No space left on device"),
        TypeError("Cannot allocate memory"),
        ZeroDivisionError(),
        ValueError("invalid literal"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "results/x"),
        OSError("Consistency check failed: file should be of size 1"),
        RuntimeError("step 28 failed (os error 2)"),
    ],
)
def test_a_bug_is_no_fault_of_the_machine(error):
    assert explain_fault(error) is None


def raised(error, **how):
    """`error` as it is when raised while a full disk is handled: `from_full` as its cause, else as its context."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "results/x")
        except OSError as full:
            if how.get("from_full"):
                raise error from full
            raise error  # noqa: B904 (its context is what is tested)
    except Exception as caught:
        return caught


def test_the_cause_of_an_error_is_looked_at():
    assert "results/x" in explain_fault(raised(RuntimeError("failed to save"), from_full=True))
    assert "results/x" in explain_fault(raised(RuntimeError("failed to clean up")))


def test_a_bug_in_the_handling_of_a_fault_is_a_bug():
    assert explain_fault(raised(KeyError("x"))) is None


WRITE_OR_ALLOCATE = {
    "numpy": ("import numpy as np; np.save('f', np.zeros(10**6))", "not all of"),
    "safetensors": (
        "import numpy as np, safetensors.numpy as s; s.save_file({'x': np.zeros(10**6)}, 'f')",
        "is larger than a file may be",
    ),
    "tokenizers": (
        "from tokenizers import Tokenizer, models\n"
        "    Tokenizer(models.WordLevel({f'w{i:06}': i for i in range(50000)}, 'w000000')).save('f')",
        "is larger than a file may be",
    ),
    "pyarrow": (
        "import pyarrow as pa, pyarrow.parquet as pq, numpy as np\n"
        "    pq.write_table(pa.table({'x': np.random.rand(10**6)}), 'f')",
        "is larger than a file may be",
    ),
    "text": ("open('f', 'w').write('x' * 10**6)", "is larger than a file may be"),
    "open files": ("held = [open('/dev/null') for _ in range(100)]", "too many files are open"),
    "name": ("open('x' * 256, 'w')", "the name is too long"),
    "file for a folder": ("open('g', 'w').close(); __import__('os').makedirs('g/h')", "in the way"),
    "folder for a file": ("__import__('os').makedirs('i'); open('i', 'w')", "is a folder, where a file should be"),
    "memory": ("b = bytearray(10**11)", "not enough memory"),
    "arrow memory": ("import pyarrow as pa; pa.allocate_buffer(10**11)", "not enough memory"),
    "numpy memory": ("import numpy as np; np.ones(10**11)", "not enough memory"),
}


@pytest.mark.parametrize(("code", "words"), WRITE_OR_ALLOCATE.values(), ids=WRITE_OR_ALLOCATE)
def test_real_faults_are_one_line(tmp_path, code, words):
    """Under limits of the process, which need no rights: files of 100 kB, 60 of them open, 8 GB of memory."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, 8 * 10**9))

    main = f"from colbert_zero.graph.console import run_reporting_errors\ndef main():\n    {code}\n    return 0\n"
    done = subprocess.run(
        [sys.executable, "-c", main + "raise SystemExit(run_reporting_errors(main))"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(WORKFLOW), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("colbert-zero: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
