"""The preprocessing inside an export, written once and built for each library."""
