"""What lies where on disk.

files.py        whole or not at all: bytes, JSON, tables, tensors
locks.py        a folder is held by one process at a time
artifacts.py    JSON files whose hashes run.json records
run.py          a run's folder: run.json, the fold table, where members and predictions lie
member.py       a member's folder: weights, OOF logits, what it was trained with
training_state.py the resumable state of a fold's training
changed_rows.py  the training rows of a fold that have another label or weight, and the overlay of a member
attribution.py  what a member looks at, as numbers
predictions.py  one set of images: kept logits, label file, predictions.csv, facts
distilled.py     the teacher of a distilled member, and the teacher's logits
label_issues.py label_issues/: the doubtful labels, the page of their review, the overlay
shards.py       a prediction in shards: lists of images, parts and their notes
tar_lists.py    the list of the images of one tar, and its hash
label_files.py  the two forms of a label file, and where it may be written
migration.py    files of older versions -> the current form
"""
