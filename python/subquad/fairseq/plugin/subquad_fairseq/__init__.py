"""What fairseq's ``--user-dir`` imports: registers models and architectures."""

from subquad.fairseq import register

register()
