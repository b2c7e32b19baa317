"""The memory of a machine, and of the control group that a container or a SLURM job is limited to."""

import os

import pytest

from colbert_zero.machine.memory import available_memory_mb, steps_beyond_memory

GB = 10**9
V2 = {"limit": "memory.max", "usage": "memory.current", "cached": "inactive_file {}\nactive_file 0\nanon 9\n"}
V1 = {
    "limit": "memory.limit_in_bytes",
    "usage": "memory.usage_in_bytes",
    "cached": "total_inactive_file {}\ntotal_active_file 0\ninactive_file 5\n",
}


@pytest.fixture
def machine(tmp_path):
    """A machine with 16 GB free and no control groups."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {16 * GB // 1024} kB\nHugePages: 0\n")
    return tmp_path


def add_group(machine, version, name, limit, usage=0, cached=0):
    folder = machine / "sys" / "fs" / "cgroup" / ("memory" if version is V1 else "") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / version["limit"]).write_text(f"{limit}\n")
    (folder / version["usage"]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(version["cached"].format(cached))


def test_without_control_groups_it_is_what_the_kernel_estimates(machine):
    assert available_memory_mb(machine) == 16 * GB // 1024 * 1024 // 10**6


def test_where_nothing_is_known_it_is_all_memory(tmp_path):
    assert available_memory_mb(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 10**6


@pytest.mark.parametrize(("version", "entry"), [(V2, "0::/job/step"), (V1, "4:memory:/job/step")])
def test_each_group_on_the_way_limits(machine, version, entry):
    """Cached files give way, so they do not count as used."""
    (machine / "proc" / "self" / "cgroup").write_text(f"1:cpu:/other\n{entry}\n")
    add_group(machine, version, "other", GB)
    add_group(machine, version, "job/step", 9223372036854771712 if version is V1 else "max")
    assert available_memory_mb(machine) > 15_000
    add_group(machine, version, "job", 8 * GB, usage=5 * GB, cached=2 * GB)
    assert available_memory_mb(machine) == 5000
    add_group(machine, version, "job/step", 4 * GB, usage=3 * GB)
    assert available_memory_mb(machine) == 1000
    add_group(machine, version, "job/step", GB, usage=3 * GB)
    assert available_memory_mb(machine) == 0


@pytest.mark.parametrize(("version", "entry"), [(V2, "0::/"), (V2, "0::/unseen/here"), (V1, "4:memory:/unseen/here")])
def test_a_containers_own_group_may_be_the_top(machine, version, entry):
    (machine / "proc" / "self" / "cgroup").write_text(f"{entry}\n")
    add_group(machine, version, "", 2 * GB)
    assert available_memory_mb(machine) == 2000


def test_only_settings_of_steps_to_run_that_ask_for_too_much_have_a_line():
    resources = {"default": {"mem_mb": 2001}, "mine": {"mem_mb": 3000}, "teach": {"mem_mb": 9000}, "plan": {"gpu": 1}}
    assert [line.split()[:3] for line in steps_beyond_memory(resources, ["mine", "plan"], 2000)] == [
        ["resources.default.mem_mb", "is", "2001,"],
        ["resources.mine.mem_mb", "is", "3000,"],
    ]
    assert steps_beyond_memory(resources, ["mine"], 3000) == []
    assert steps_beyond_memory(resources, ["mine"], None) == []
