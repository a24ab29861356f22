"""Efficient attention for PyTorch: fused operators with autograd, thin modules.

``subquad.nn`` holds modules with the fairseq-style forward, ``subquad.functional``
the operators as typed functions, ``subquad.reference`` their definitions in plain
PyTorch, ``subquad.compat`` the surfaces of other projects. The operators are also
``torch.ops.subquad.*``.
"""

from subquad import _library

_library.load()

from subquad import functional, nn, reference  # noqa: E402
from subquad.errors import UnsupportedPattern  # noqa: E402

__version__: str = _library.build_info()["version"]

__all__ = [
    "UnsupportedPattern",
    "__version__",
    "functional",
    "nn",
    "reference",
]
