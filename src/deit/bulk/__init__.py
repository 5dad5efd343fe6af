"""Classifies any number of images in units of work, so that a job can stop anywhere and go on exactly."""
