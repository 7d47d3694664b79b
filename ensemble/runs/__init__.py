"""What lies where on disk.

files.py        whole or not at all: bytes, JSON, tables, tensors, locks
run.py          a run's folder: run.json, the fold table, where members and predictions lie
member.py       a member's folder: weights, OOF logits, training state (StateFolder)
predictions.py  one set of images: kept logits, the run's label_val.txt and predictions.csv, facts
migration.py    files of older versions -> the current form
"""
