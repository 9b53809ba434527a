"""Train a student without data, or a teacher with it: python train.py --help."""

from nayer_pl.app.main import main

if __name__ == "__main__":
    main(__file__)
