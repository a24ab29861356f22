"""Whole models built from the attention modules of :mod:`subquad.nn`."""

from subquad.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
