"""What the compiler made of the CUDA kernels, read from the built library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

BUDGETS = Path(__file__).with_name("cuda_budgets.json")

# Per multiprocessor, from the CUDA C++ Programming Guide 13.0, section "Compute
# Capabilities", table "Technical Specifications per Compute Capability"; the
# units of allocation from the guide's occupancy calculator.
LIMITS = {
    80: {"threads": 2048, "blocks": 32, "registers": 65536, "shared": 164 * 1024},
    86: {"threads": 1536, "blocks": 16, "registers": 65536, "shared": 100 * 1024},
    89: {"threads": 1536, "blocks": 24, "registers": 65536, "shared": 100 * 1024},
    90: {"threads": 2048, "blocks": 32, "registers": 65536, "shared": 228 * 1024},
    100: {"threads": 2048, "blocks": 32, "registers": 65536, "shared": 228 * 1024},
    120: {"threads": 1536, "blocks": 24, "registers": 65536, "shared": 100 * 1024},
}
WARP = 32
REGISTER_UNIT = 256  # registers of a warp
WARP_UNIT = 4  # warps among which the register file is divided
SHARED_UNIT = 128  # bytes
SHARED_RESERVED = 1024  # bytes of every block


@dataclass
class Kernel:
    """One kernel for one architecture."""

    name: str
    arch: int
    registers: int
    stack: int
    static_shared: int
    instructions: Counter[str] = field(default_factory=Counter)

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.instructions["LDL"] + self.instructions["STL"]


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Returns ``kernel<arguments>`` of each mangled name, without namespaces."""
    mangled = sorted(set(names))
    done = subprocess.run(
        ["c++filt"],
        input="\n".join(mangled),
        capture_output=True,
        text=True,
        check=True,
    )
    short = {}
    for name, text in zip(mangled, done.stdout.splitlines(), strict=True):
        found = re.search(r"(\w+_kernel(?:<.*?>)?)\(", text)
        short[name] = found.group(1) if found else text
    return short


def parse_resources(lines: Iterable[str]) -> dict[tuple[str, int], Kernel]:
    """Reads ``cuobjdump -res-usage``; keys are (mangled name, architecture)."""
    kernels = {}
    arch, name = 0, ""
    for line in lines:
        if found := re.match(r"arch = sm_(\d+)", line):
            arch = int(found.group(1))
        elif found := re.match(r"\s*Function (\S+):", line):
            name = found.group(1)
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            registers, stack, shared = map(int, found.groups())
            kernels[name, arch] = Kernel(name, arch, registers, stack, shared)
    return kernels


def count_instructions(
    lines: Iterable[str], kernels: dict[tuple[str, int], Kernel]
) -> None:
    """Reads ``cuobjdump -sass`` into the kernels' instruction counts."""
    arch = 0
    counts: Counter[str] = Counter()
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)")
    for line in lines:
        if found := instruction.match(line):
            counts[found.group(1)] += 1
        elif found := re.match(r"\s*arch = sm_(\d+)", line):
            arch = int(found.group(1))
        elif found := re.match(r"\s*Function : (\S+)", line):
            counts = kernels[found.group(1), arch].instructions


def read_library(cuobjdump: Path, library: Path) -> list[Kernel]:
    """Returns the kernels of a library, by name and architecture."""

    def dump(option: str) -> Iterable[str]:
        command = [str(cuobjdump), option, str(library)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield from process.stdout
        assert process.returncode == 0, f"{command} failed"

    kernels = parse_resources(dump("-res-usage"))
    count_instructions(dump("-sass"), kernels)
    names = demangle(name for name, _ in kernels)
    for kernel in kernels.values():
        kernel.name = names[kernel.name]
    return sorted(kernels.values(), key=lambda kernel: (kernel.name, kernel.arch))


def ceil_to(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(kernel: Kernel, threads: int, dynamic_shared: int) -> float:
    """Returns resident threads over the threads that a multiprocessor can hold."""
    limits = LIMITS[kernel.arch]
    warps = -(-threads // WARP)
    per_warp = ceil_to(kernel.registers * WARP, REGISTER_UNIT)
    resident_warps = limits["registers"] // per_warp // WARP_UNIT * WARP_UNIT
    shared = ceil_to(
        kernel.static_shared + dynamic_shared + SHARED_RESERVED, SHARED_UNIT
    )
    blocks = min(
        limits["blocks"],
        limits["threads"] // (warps * WARP),
        resident_warps // warps,
        limits["shared"] // shared,
    )
    return blocks * warps * WARP / limits["threads"]


def load_budgets() -> list[dict]:
    return json.loads(BUDGETS.read_text(encoding="utf-8"))["kernels"]


def budget_of(kernel: Kernel, budgets: list[dict]) -> dict | None:
    """Returns the first entry whose pattern is the kernel's whole name."""
    for budget in budgets:
        if re.fullmatch(budget["kernel"], kernel.name):
            return budget
    return None


def violations(kernels: Iterable[Kernel], budgets: list[dict]) -> list[str]:
    """Returns what exceeds its budget, one sentence each."""
    found = []
    for kernel in kernels:
        where = f"{kernel.name} on sm_{kernel.arch}"
        budget = budget_of(kernel, budgets)
        if budget is None:
            found.append(f"{where} has no entry in {BUDGETS.name}")
            continue
        if kernel.spills > 0:
            found.append(f"{where} spills: {kernel.spills} accesses of local memory")
        if kernel.stack > 0:
            found.append(f"{where} uses {kernel.stack} bytes of stack")
        if kernel.registers > budget["registers"]:
            found.append(
                f"{where} uses {kernel.registers} registers, budget "
                f"{budget['registers']}"
            )
        share = occupancy(kernel, budget["threads"], budget["dynamic_shared"])
        if share < budget["occupancy"]:
            found.append(
                f"{where} fills {share:.0%} of a multiprocessor, budget "
                f"{budget['occupancy']:.0%}"
            )
        for claim, instruction in (
            ("tensor_cores", "HMMA"),
            ("async_copies", "LDGSTS"),
        ):
            if budget.get(claim) and kernel.instructions[instruction] == 0:
                found.append(f"{where} claims {claim} without {instruction}")
    return found


def table(kernels: Iterable[Kernel], budgets: list[dict]) -> str:
    """Returns one line per kernel and architecture."""
    head = ["arch", "regs", "budget", "stack", "spills", "static", "dynamic"]
    lines = [
        "".join(f"{name:>8}" for name in [*head, "occup.", "HMMA", "LDGSTS"])
        + "  kernel"
    ]
    for kernel in kernels:
        budget = budget_of(kernel, budgets)
        values: list[object] = [kernel.arch, kernel.registers]
        values.append("-" if budget is None else budget["registers"])
        values += [kernel.stack, kernel.spills, kernel.static_shared]
        if budget is None:
            values += ["-", "-"]
        else:
            share = occupancy(kernel, budget["threads"], budget["dynamic_shared"])
            values += [budget["dynamic_shared"], f"{share:.0%}"]
        values += [kernel.instructions["HMMA"], kernel.instructions["LDGSTS"]]
        lines.append("".join(f"{value!s:>8}" for value in values) + f"  {kernel.name}")
    return "\n".join(lines)


def find_cuobjdump() -> Path | None:
    """Returns the tool of the nvidia-cuda-cuobjdump package, or that in PATH."""
    try:
        import nvidia
    except ImportError:
        folders = []
    else:
        folders = [Path(folder) for folder in nvidia.__path__]
    for folder in folders:
        for tool in sorted(folder.glob("cu*/bin/cuobjdump")):
            return tool
    path = shutil.which("cuobjdump")
    return None if path is None else Path(path)
