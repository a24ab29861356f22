"""Holds the folder for ``--user-dir``, whose parent becomes a place of imports."""
