"""The training loop: synthesis rounds, student updates, evaluation, and what is saved."""
