"""The viewer of saliency maps: a Jupyter widget, and the same program as an HTML page of its own."""
