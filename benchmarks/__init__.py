"""``subquad bench``: how fast the operators and modules are on this machine.

One entry per operator and module, each in a file of ``ops`` or ``nn`` that registers
its cases. A case is run by the library and by everything it has to stand up to, in
turns within one process; see :mod:`subquad.benchmarks.run`. Beside it stand studies
of quality, cost and support; see :mod:`subquad.benchmarks.studies`.
"""

from subquad.benchmarks.commands import main

__all__ = ["main"]
