from pathlib import Path

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
