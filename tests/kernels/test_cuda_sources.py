"""The CUDA C++ routing compiles and links wherever nvcc is; only a GPU can run it."""

import re
import shutil
import subprocess
import sysconfig

import pytest
import torch
from torch.utils import cpp_extension

from moe_kernels.cuda.extension import SOURCES
from tests.kernels.layers import assert_close_to_truth, make_layer

BINDING, KERNELS = SOURCES
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kernels_compile_without_spills(arch, tmp_path):
    command = ["nvcc", "-O3", "-std=c++17", f"-arch={arch}", "-Xptxas", "-v", "-c", KERNELS]
    run = subprocess.run(
        [*command, "-o", tmp_path / "kernels.o"], capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr
    spills = re.findall(r"(\d+) bytes spill stores", run.stderr)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", run.stderr)]
    print(f"{arch}: {len(registers)} kernels, {min(registers)} to {max(registers)} registers")
    assert len(spills) == len(registers) > 0 and set(spills) == {"0"}


def test_binding_compiles_without_cuda_or_torch_libraries(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    command = [compiler, "-std=c++17", "-fsyntax-only", "-DTORCH_EXTENSION_NAME=moe_routing_cuda"]
    run = subprocess.run(
        [*command, *(f"-I{path}" for path in includes), BINDING], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0, 16, 24, 2, 4), (129, 33, 70, 8, 4), (500, 64, 96, 2, 9)])
def test_results_and_gradients_are_as_exact_as_plain_pytorchs(shape, dtype):
    assert_close_to_truth(make_layer(*shape, dtype), "cuda")
