"""Tables and curves of any set of runs: `python -m nayer_pl.report RUN_DIR...`."""
