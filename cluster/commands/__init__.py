"""One module per command of `python -m cluster`: parses, checks, then imports what it needs and calls one function.

Imports nothing heavy at the top, so that `--help` answers at once.
"""
