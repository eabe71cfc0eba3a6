"""Annotated data sets on disk: PASCAL VOC, COCO instances and caption files, read into common records."""
