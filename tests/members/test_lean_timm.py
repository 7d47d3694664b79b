"""timm is imported without torch's compiler, and what the compiler has to do works as ever."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import ensemble.members.backbones
print([name for name in ("torch._dynamo", "sympy", "albumentations") if name in sys.modules])
import torch, torchvision
boxes = torch.tensor([[0, 0, 0, 4, 4.0]])
torch.use_deterministic_algorithms(True)  # the case in which roi_align asks for the compiler
print(tuple(torchvision.ops.roi_align(torch.rand(1, 3, 8, 8), boxes, 2).shape))
from ensemble.members.lean_timm import _disable
double = _disable(lambda value: 2 * value)
plain = _disable(recursive=False)(lambda value: 3 * value)
print(double(torch.ones(1)).item(), plain(torch.ones(1)).item())
compiled = torch.compile(lambda value: double(value) + 1, backend="eager")
print(compiled(torch.ones(1)).item(), torch._dynamo.__spec__ is not None)
"""


def test_the_compiler_is_loaded_only_when_it_is_called() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == ["[]", "(1, 3, 2, 2)", "2.0 3.0", "3.0 True"]


def test_a_timm_that_is_imported_already_is_left_as_it_is() -> None:
    code = "import timm, sys; before = sys.modules['torch._dynamo']; import ensemble.members; "
    code += "print(sys.modules['torch._dynamo'] is before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "True\n"
