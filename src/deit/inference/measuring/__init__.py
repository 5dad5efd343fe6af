"""Measures how fast models answer on this machine, each measurement in a process of its own."""
