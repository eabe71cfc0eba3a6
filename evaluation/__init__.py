"""Experiments: how good the maps are, measured."""
