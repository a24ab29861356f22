"""Training: the language model of ``subquad train lm`` and ``subquad generate``.

The submodules are imported on use; this package itself imports nothing.
"""
