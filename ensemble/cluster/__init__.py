"""The same jobs on a Ray cluster. Only this wing imports ray; the rest of thera knows a pool that computes jobs.

Files in reading order:

resources.py   the device and the pool of a command: of this machine or of a cluster; it does not need ray
nodes.py       join a cluster, and check that its nodes are equal
pool.py        the pool: each job is a task, which is begun again where it is lost
relay.py       the actor on the driver's node: progress, and files for nodes that do not see the run's folder
travel.py      how images, weights and training states reach a task
tasks.py       what a task does on its node
display.py     the progress by member, with what runs where
facts.py       what the results of a machine depend on; nodes that differ are refused
"""
