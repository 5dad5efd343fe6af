"""Where and how code runs: processes, devices, random state, signals, locks."""
