"""Surfaces of the projects whose mechanisms the library has.

Each module exports a project's public names with its constructor and forward
signatures, parameter names and numbers, defects included: change one import and
keep code and checkpoints. ``docs/differences.md`` lists what differs.
"""

from subquad.compat.installation import install, uninstall

__all__ = ["install", "uninstall"]
