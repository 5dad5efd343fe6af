"""Divides the weights of a student among the processes of a run, and puts them together again."""
