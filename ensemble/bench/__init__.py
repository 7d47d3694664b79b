"""How well this machine is used, and what to change.

images.py      the images that are measured on
throughput.py  the product's own training, prediction and loading, and the plan that they are done by
roofline.py    what the machine can do at most
advice.py      what to change, by what was measured
clock.py       contestants in turn
"""
