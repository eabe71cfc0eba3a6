"""Layer discovery: which modules have a spatial output, and where in the pixels each activation lies."""
