"""Caffe's files: messages, weights, databases, image lists, logs; read and written without any engine."""
