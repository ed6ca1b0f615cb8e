"""Models of the three toolboxes as one graph: from an image of bytes to boxes, classes and masks."""
