"""From files to arrays: images and labels become one `Dataset`, whose rows are assigned to folds. No torch here.

dataset.py     images that can be read (`Source`), and decoded ones (`Dataset`)
source.py      recognises a folder, a zip, a manifest or a list, and joins each image to its label
folders.py     images in a folder or a zip: numbered, of any names, or in a folder for each class
listing.py     images that are named one by one: files, globs, lists of paths
manifest.py    tables of images, with labels and groups
shard_lists.py lists and reads any number of images one by one: trees of folders, manifests, tars and zips
tars.py        lists the images of tar files, and reads them in place
input_files.py archives and manifests as they were listed, and whether one was changed since then
tables.py      reads CSV and Parquet tables and finds their columns
labels.py      reads labels: 0 and 1, other spellings of these, the names of two classes, or those of more
classes.py     the names of classes, and which label each stands for
overlay.py     tables of training rows to leave out, relabel or weigh
joining.py     joins images to the labels of a file
files.py       lists and reads files in folders and zips, and refuses unsafe or damaged ones
pixels.py      decodes a file to RGB pixels under one image policy
form.py        the form of images in a store: resized or not, EXIF orientations applied or not
store.py       decodes every image once, into a memory map on disk
mapped.py      opens decoded images as a memory map, and reads rows of it
stored.py      finds the decoded images of a run without its image files
arrays.py      images that Python code passes: paths or pixels
blocks.py      walks over decoded images in blocks, in threads
hashes.py      perceptual hashes of images, and the search for similar ones
duplicates.py  images that are identical or nearly identical
quality.py     images that may be faulty: constant, blank, dark, bright, blurred or odd
pixel_maps.py  the mean image of each class, and the pixels that differ most between classes
folds.py       assigns rows to folds, by class and group
synthetic.py   generates the demo images
synthetic_people.py  generates people, seven images each, of 18 classes
bayes.py       computes the best rates of any rule where the densities are known
drawing.py     draws the heads of the generated images
"""

from __future__ import annotations

import os

MAX_PIXELS = 2**26
"""The largest image that is decoded, in pixels: 8192 × 8192. It bounds the memory that a hostile header can claim."""

# OpenCV reads its limit when it is imported, so it is set before the first import of cv2.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
