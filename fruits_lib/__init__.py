"""Photographs of fruit to features, principal components, a model and a proof, on Apache Spark."""

__version__ = "0.1.0"
