"""Build batches of images from records, on the CPU and on a GPU."""
