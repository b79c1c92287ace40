"""Trained models in use: pipelines, export, the choice of a budget."""
