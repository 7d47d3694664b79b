"""How well this machine is used, and what to change.

measure.py     what `thera bench` measures: speed of training, prediction and loading, time of a decision
images.py      the images that it measures with
throughput.py  training, prediction and loading as pieces of work that are done again and again
clock.py       how fast such a piece of work is, over several rounds
roofline.py    what the machine can do at most
advice.py      what to change, one sentence for each further measurement
"""
