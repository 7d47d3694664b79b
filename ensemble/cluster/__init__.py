"""Computes jobs on a Ray cluster. Only this wing imports ray; the rest of thera uses a pool that computes jobs.

Files in reading order:

resources.py   chooses the device and the pool of a command, on this machine or on a cluster; it does not need ray
nodes.py       joins a cluster, and checks that its nodes are equal
pool.py        the pool, which runs each job as a task and starts a lost task again
relay.py       the actor on the driver's node, which collects progress and reads and writes files for the nodes that do
               not see the run's folder
travel.py      sends images, weights and training states to a task
tasks.py       the function that a task runs on its node
display.py     shows the progress of each member, and which node computes which fold
facts.py       compares the software and hardware of nodes, and refuses nodes that differ
"""
