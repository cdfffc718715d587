"""From records to a batch of images, on the CPU and on a GPU."""
