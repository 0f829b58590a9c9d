"""Files made from the files of a data set: label maps, instances, panoptic annotations."""
