"""Which images, which classes, which half: from photographs or ImageNet's archives to image lists and splits."""
