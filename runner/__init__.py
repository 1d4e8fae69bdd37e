"""A catalogue of model-optimisation recipes, and the runner that executes and measures them."""

__version__ = "0.1.0"
