"""The rules of the COCO-panoptic format, each stated once, for loading and checking alike."""
