"""Samples: what calibration and verification run the model on.

samples.py   the way in: `open_samples` of any source
feeds.py     what a sample is, and whether it fits the inputs
sources.py   arrays, files of arrays, sequences, one-shot sources
images.py    image files
prefetch.py  reading ahead of inference
split.py     which samples calibrate and which are held out
"""
