"""Exceptions of the library."""


class UnsupportedPattern(NotImplementedError, AssertionError):
    """A mechanism cannot have the pattern it was asked for.

    A pattern is causal or not, self or cross, parallel or decoding. Code written
    for the research projects behind ``subquad.compat`` expects an AssertionError,
    PyTorch's habit is NotImplementedError; this is both.
    """
