"""The bundled networks of the generated scenes: a classifier and a captioner, with their training."""
