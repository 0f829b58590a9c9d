"""COCO-panoptic and COCO files: what they mean, and each rule about them once, for loading and checking."""
