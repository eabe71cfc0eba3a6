"""Export of whole data sets: explain every image, and write the maps to HDF5."""
