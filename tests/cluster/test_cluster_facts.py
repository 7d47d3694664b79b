"""Nodes that would compute something else are refused with the difference; so is a cluster that cannot be had."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import hiding
import pytest
from tiny import fails

from ensemble import extras
from ensemble.cluster.facts import MachineFacts, facts_of_this_machine, refuse_unequal
from ensemble.commands.checks import check_compute
from ensemble.config import ComputeConfig
from ensemble.errors import ConfigError, ResourceError

A = MachineFacts("a", {"python": "3.11.7", "torch": "2.15.0"}, {"CPU": "Xeon 8488C", "CPU capability": "AVX512"})


def test_the_facts_of_this_machine() -> None:
    facts = facts_of_this_machine()
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts.software["python"])
    assert re.fullmatch(r"0\.1\.0 \([0-9a-f]{8}\)", facts.software["thera"])
    assert set(facts.software) >= {"torch", "timm", "numpy"} and all(facts.software.values())
    assert facts.hardware["CPU capability"] in {"DEFAULT", "AVX2", "AVX512"} and facts.hardware["CPU"]
    refuse_unequal([facts, facts], facts)
    refuse_unequal([])


def test_unequal_nodes_are_refused_with_the_difference() -> None:
    other = replace(A, host="b", hardware={"CPU": "EPYC 7R13", "CPU capability": "AVX2"})
    with pytest.raises(ResourceError) as refused:
        refuse_unequal([A, A, other])
    assert str(refused.value) == (
        "--cluster: nodes a and b differ: CPU is Xeon 8488C and EPYC 7R13, CPU capability is AVX512 and AVX2; "
        "use nodes of one kind"
    )
    newer = replace(A, host="b", software={"python": "3.11.7", "torch": "2.16.0"})
    with pytest.raises(ResourceError, match=r"torch is 2\.15\.0 and 2\.16\.0; install the same versions on all nodes"):
        refuse_unequal([A, newer])


def test_the_driver_needs_the_same_versions_but_another_cpu_will_do() -> None:
    refuse_unequal([A], replace(A, host="driver", hardware={"CPU": "another", "CPU capability": "DEFAULT"}))
    with pytest.raises(ResourceError, match=r"nodes a and driver differ: python is 3\.11\.7 and 3\.12\.1"):
        refuse_unequal([A], replace(A, host="driver", software={**A.software, "python": "3.12.1"}))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    known = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "ray" else known(name))
    given = ["train-member", "--arch", "lenet", "--images", "photos", "--run", "r", "--cluster", "auto"]
    assert fails(capsys, 6, *given) == "error: --cluster auto: needs the package ray; pip install 'thera[cluster]'"


def test_local_work_does_not_load_ray(tmp_path: Path) -> None:
    code = "from ensemble.cluster.resources import resources_of; print('ray' in sys.modules)"
    done = hiding.run(code, folder=tmp_path)
    assert done.stdout == "False\n", done.stderr


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"^--task-cores: is for the tasks of a cluster; give --cluster, too"):
        check_compute(ComputeConfig(task_cores=2))
    with pytest.raises(ConfigError, match=r"^--device: must be auto, cpu or cuda with --cluster; got cuda:1"):
        check_compute(ComputeConfig(cluster="auto", device="cuda:1"))
    check_compute(ComputeConfig(cluster="auto", device="cuda", task_cores=2))  # this machine needs no GPU


def test_a_time_is_planned_by_the_speed_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, 2, "fit", tmp_path, "--time", "1h", "--cluster", "auto")
    assert said.startswith("error: --time: plans by the speed of this machine, which is not that of a cluster; give")
