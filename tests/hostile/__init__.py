"""Inputs that are made to eat the machine or to break a reader, each given to the real command."""
