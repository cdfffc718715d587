"""Data preparation: from photographs or ImageNet's archives to image lists, class files and splits."""
