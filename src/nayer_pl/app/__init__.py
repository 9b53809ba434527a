"""The application: Hydra, run directories, signals, sweeps and exit codes."""
