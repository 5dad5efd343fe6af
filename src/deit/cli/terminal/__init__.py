"""Printing, options and errors of the command line."""
