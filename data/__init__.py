"""Installed as `gradlight.data`: images, generated scenes, annotated data sets, and HDF5 files of maps."""
