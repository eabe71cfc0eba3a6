"""Experiments that measure the quality of maps, one file each."""
