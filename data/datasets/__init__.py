"""Annotated data sets on disk: PASCAL VOC, COCO and caption files, read into common records."""
