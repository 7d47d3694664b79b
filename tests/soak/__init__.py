"""Many random faults, and whether thera survives them. `make soak` runs them for an hour, the tests for a minute.

__main__.py   the command: it shares the time among the kinds and prints a table
lanes.py      trials side by side in processes, one on each core; a crash or a hang ends its trial alone
tiny_run.py   the smallest whole run (train, fit-stacker, predict), its results, and what is torn or left behind
mutations.py  damages bytes, JSON and lines of text
kills.py      SIGKILL at a random time, a third of them aimed into a save
disk.py       ENOSPC, EIO and a kill before and after each operation that changes the disk
images.py     mutated JPEG, PNG, BMP and WebP files
artifacts.py  mutated files of a run, configs and label files
starts.py     two commands that start at once in one run
workers.py    OOF logits with 0, 1, 2 and 4 data workers

A trial is a function of a seed and a number. Where one fails, its kind, seed and number are printed, and
`python -m soak --only KIND --seed SEED --number NUMBER` repeats it.
"""
