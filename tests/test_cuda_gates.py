"""Static gates on the compiled CUDA kernels: registers, spills, occupancy."""

import shutil

import pytest

from subquad import _library
from tests import cuda_gates

BUDGET = {
    "kernel": r"toy_kernel<\w+>",
    "threads": 128,
    "dynamic_shared": 0,
    "registers": 40,
    "occupancy": 0.5,
}
RESOURCES = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN7subquad10toy_kernelIfEEvl:
  REG:{registers} STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:408 TEXTURE:0
"""
SASS = """
arch = sm_90
\t\tFunction : _ZN7subquad10toy_kernelIfEEvl
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ; /* 0x0 */
                                                                          /* 0x0 */
        /*0010*/               @P0 STL.64 [R1], R2 ;                      /* 0x0 */
        /*0020*/              @!P1 LDL R4, [R1+0x8] ;                     /* 0x0 */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;   /* 0x0 */
        /*0040*/                   LDGSTS.E.BYPASS.128 [R3], [R2.64] ;    /* 0x0 */
        /*0050*/                   EXIT ;                                 /* 0x0 */
"""


def toy(registers=32, stack=0, sass=""):
    text = RESOURCES.format(registers=registers, stack=stack)
    kernels = cuda_gates.parse_resources(text.splitlines())
    cuda_gates.count_instructions(sass.splitlines(), kernels)
    (kernel,) = kernels.values()
    kernel.name = "toy_kernel<float>"
    return kernel


def test_a_good_kernel_passes():
    assert cuda_gates.violations([toy()], [BUDGET]) == []


@pytest.mark.parametrize(
    ("kernel", "budget", "words"),
    [
        (toy(sass=SASS), {}, "spills: 2 accesses"),
        (toy(stack=16), {}, "16 bytes of stack"),
        (toy(registers=41), {}, "41 registers, budget 40"),
        (toy(), {"dynamic_shared": 100 * 1024}, "12% of a multiprocessor"),
        (toy(), {"kernel": "other_kernel"}, "no entry in cuda_budgets.json"),
        (toy(), {"tensor_cores": True}, "tensor_cores without HMMA"),
        (toy(), {"async_copies": True}, "async_copies without LDGSTS"),
    ],
)
def test_the_gate_fails(kernel, budget, words):
    (sentence,) = cuda_gates.violations([kernel], [BUDGET | budget])
    assert words in sentence
    assert "toy_kernel<float> on sm_90" in sentence


def test_instructions_are_counted():
    counts = toy(sass=SASS).instructions
    assert counts["HMMA"] == counts["LDGSTS"] == counts["LDL"] == counts["STL"] == 1
    assert counts.total() == 6


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "expected"),
    [
        # By NVIDIA's occupancy calculator (cuda_occupancy.h).
        (80, 32, 128, 0, 1.0),
        (80, 33, 128, 0, 0.75),
        (80, 168, 128, 0, 0.1875),
        (80, 64, 256, 80 * 1024, 0.25),
        (86, 32, 128, 0, 1.0),
        (90, 255, 128, 0, 0.125),
        (90, 64, 128, 100 * 1024, 0.125),
    ],
)
def test_occupancy(arch, registers, threads, shared, expected):
    kernel = cuda_gates.Kernel("toy", arch, registers, stack=0, static_shared=0)
    assert cuda_gates.occupancy(kernel, threads, shared) == expected


@pytest.mark.skipif(
    not _library.build_info()["cuda"],
    reason=f"no CUDA kernels: {_library.build_info()['cuda_reason']}",
)
@pytest.mark.skipif(
    cuda_gates.find_cuobjdump() is None,
    reason="needs cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)",
)
@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt (binutils)")
def test_kernels_of_the_library(capsys):
    kernels = cuda_gates.read_library(
        cuda_gates.find_cuobjdump(), _library.library_path()
    )
    budgets = cuda_gates.load_budgets()
    with capsys.disabled():
        print(f"\n{cuda_gates.table(kernels, budgets)}")
    assert kernels
    assert cuda_gates.violations(kernels, budgets) == []
