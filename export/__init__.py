"""Installed as `gradlight.export`: whole data sets explained into HDF5."""
