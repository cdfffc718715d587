"""Which images, which classes, which half: image lists and class maps."""
