"""Measure how well this machine is used, and advise what to change.

measure.py     the measurements of `thera bench`: training, prediction and loading, and the time of a decision
images.py      the images that it measures with
throughput.py  training, prediction and loading as repeatable work
clock.py       the speed of a piece of work
roofline.py    the limits of the machine
rates.py       the speed of training folds, to plan a budget by
advice.py      a sentence of advice for each further measurement
"""
