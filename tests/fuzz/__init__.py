"""Fuzzing: random changes of every kind of file and request that the package reads; see `run.py`."""
