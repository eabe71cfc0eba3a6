"""Layer discovery: which modules have a spatial output, and the coordinates of each activation in the pixels."""
