"""fairseq with the mechanisms of this library.

``subquad info --fairseq-user-dir`` prints the folder for fairseq's ``--user-dir``: it
adds the architectures ``subquad_transformer*`` and ``subquad_transformer_lm*``, whose
attention is chosen on the command line. :class:`MultiheadAttention` takes the place
of ``fairseq.modules.MultiheadAttention`` in code.
"""

from subquad._fairseq import require

require()

from subquad.fairseq.models import register  # noqa: E402
from subquad.fairseq.multihead_attention import MultiheadAttention  # noqa: E402

__all__ = ["MultiheadAttention", "register"]
