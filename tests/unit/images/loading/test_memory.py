from pathlib import Path

import pytest

from remask.images.loading.memory import available_mb, half_of_memory_mb, shared_memory_left

MEMINFO = "MemTotal:  4194304 kB\nMemAvailable:  2097152 kB\n"


def test_this_machine_has_some() -> None:
    assert 0 < available_mb() < 1e9
    assert 0 < half_of_memory_mb() <= available_mb()
    assert shared_memory_left() > 0


def test_the_lower_of_the_machine_and_the_control_group(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir(), groups.mkdir()
    assert available_mb(proc, groups) == float("inf")
    (proc / "meminfo").write_text(MEMINFO)
    assert available_mb(proc, groups) == 2048
    (groups / "memory.current").write_text(f"{2**28}\n")
    (groups / "memory.max").write_text("max\n")
    assert available_mb(proc, groups) == 2048, "no limit"
    (groups / "memory.max").write_text(f"{2**30}\n")
    assert available_mb(proc, groups) == 768
    (groups / "memory.max").write_text(f"{2**27}\n")
    assert available_mb(proc, groups) == 0, "already beyond the limit"


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text(f"{2**20}\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**29}\n")
    assert available_mb(tmp_path, tmp_path) == 511


@pytest.mark.parametrize(
    ("line", "root", "files"),
    [
        ("0::/jobs/mine/step\n", "", ("memory.max", "memory.current")),
        ("9:cpu,memory:/jobs/mine/step\n0::/\n", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
    ids=["version 2", "version 1"],
)
def test_the_group_that_the_process_is_in_and_those_above(
    tmp_path: Path, line: str, root: str, files: tuple[str, str]
) -> None:
    """The lowest of all of them counts; a group without a limit, or of another process, does not."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    own = groups / root / "jobs" / "mine" / "step"
    (proc / "self").mkdir(parents=True), own.mkdir(parents=True), (own.parent / "other").mkdir()
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self" / "cgroup").write_text(line)

    def limited(folder: Path, limit: str, used: int) -> None:
        (folder / files[0]).write_text(limit)
        (folder / files[1]).write_text(str(used))

    limited(own.parent / "other", str(2**20), 0)
    assert available_mb(proc, groups) == 2048
    limited(own, str(2**29), 2**28)
    assert available_mb(proc, groups) == 256
    limited(own.parents[1], str(2**28), 2**27)
    assert available_mb(proc, groups) == 128
    limited(own, "max", 2**28)
    assert available_mb(proc, groups) == 128
    limited(own.parents[1], "max", 0)
    assert available_mb(proc, groups) == 2048


def test_the_path_of_a_host_that_a_container_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/../../kubepods/pod1\n")
    (tmp_path / "memory.max").write_text(str(2**30))
    (tmp_path / "memory.current").write_text(str(2**29))
    assert available_mb(tmp_path, tmp_path) == 512
