"""The HDF5 format of saliency maps: its schema, reading and writing, guards against hostile files, verification."""
