"""Cores and memory that a process may use, with control groups of both versions in a folder of the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ensemble import machine

CORES = list(range(8))


@pytest.fixture(autouse=True)
def _fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CORES))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_without_control_groups_the_affinity_mask_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.available_cores() == CORES
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2})
    assert machine.available_cores() == [2, 5]
    assert machine.available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("1600000 100000", 8)],
)
def test_a_quota_of_version_2_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "membership", "0::/a/b")
    write(tmp_path / "cgroup/a/b/cpu.max", quota)
    assert machine.available_cores() == CORES[:cores]


def test_the_tightest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/a/b")
    write(tmp_path / "cgroup/a/cpu.max", "300000 100000")
    write(tmp_path / "cgroup/a/b/cpu.max", "500000 100000")
    write(tmp_path / "cgroup/a/memory.max", str(2**20))
    write(tmp_path / "cgroup/a/b/memory.max", "max")
    assert machine.available_cores() == CORES[:3]
    assert machine.available_memory() == 2**20


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3)])
def test_a_quota_of_version_1_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "membership", "4:cpu,cpuacct:/job\n3:memory:/job\n1:name=systemd:/")
    write(tmp_path / "cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", quota)
    write(tmp_path / "cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000")
    write(tmp_path / "cgroup/memory/job/memory.limit_in_bytes", str(2**21))
    assert machine.available_cores() == CORES[:cores]
    assert machine.available_memory() == 2**21


def test_a_group_namespace_that_starts_above_the_root_ends(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/../other")
    assert machine.available_cores() == CORES


def test_the_model_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    assert machine.cpu_model() == "arm64"
    core = "processor\t: {}\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\n"
    write(tmp_path / "cpuinfo", core.format(0) + core.format(1))
    assert machine.cpu_model() == "AMD EPYC 9R14"
