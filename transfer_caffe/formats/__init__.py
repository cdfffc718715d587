"""Reading and writing Caffe's files (messages, weights, databases, image lists, logs), independent of any engine."""
