"""Networks, their training and their logits. Only this folder uses torch, timm and albumentations.

To follow a training, read backbones, sampling, training. To follow a prediction, read inference, predictor.

backbones.py          the name of an architecture -> a timm network with one logit, or one a class; pretrained weights
weights.py            loads the weights of a file into a network
lean_timm.py          imports timm without torch's compiler
small_cnns.py         small CNNs of public solutions, registered with timm
safe_convolutions.py  correct gradients for convolutions that oneDNN computes wrongly
losses.py             focal loss and cross-entropy on logits, class weights, label smoothing
augment.py            training augmentation and the views of test-time augmentation
joined_pixels.py      the images of two stores as one array
fold_job.py           the data and config of one fold's training
sampling.py           the rows of each batch
data_workers.py       the augmented batches, made in the training process or by data workers
optimiser.py          parameter groups, and the schedule of the learning rate
position.py           the position of a training within an epoch
graphed.py            the update as one CUDA graph, which is checked before it is used
learner.py            a network in training: the update, the EMA of the weights, the state
saving.py             when the state of a training is saved; on a GPU in a thread
training.py           one member, one fold: epochs, resuming from the last saved state
hub_cache.py          an architecture's files in the cache of the model hub, and whether they are undamaged
hub_download.py       downloads them, with a clear answer within seconds where that fails
devices.py            the devices that are used, and why a GPU is not; moves networks and data there
machine_facts.py      what of a machine decides the bits of a result
mps_check.py          compares a training step on Apple's GPU with the CPU
watch.py              a measurement on held-out rows after each epoch
inference.py          one network: pixels -> logits, one column a view
parallel.py           folds in parallel: on the cores of a CPU, on one GPU, on several
tensorboard_log.py    writes the histories of trainings for TensorBoard while they are trained
budget.py             how many folds fit side by side into the memory of a GPU, by a measured update
memory.py             the memory of a GPU: its errors, and how it is freed
resident.py           an epoch's images on a GPU, augmented once for all folds
process_start.py      starts processes, without Ctrl-C and without the user's script
processes.py          a pool of processes, each pinned to its cores and its GPU
predictor.py          the logits of many fold models on one set of images
onnx_networks.py      a network as an ONNX graph
onnx_graph.py         the ONNX graph of a whole decision
attribution.py        what a network looks at: the change of its logit where a square of an image is covered
precision.py          number formats, and which of them a device computes correctly
plans.py              the plans (precision and kind of convolutions) that a device can compute
probe.py              measures and checks the plans, and chooses and caches the fastest
probe_updates.py      whole updates in a probe on a GPU: their speed, and whether a graph trains as launches do
probe_timing.py       the timing of a probe: steps of several plans in turn
probe_cache.py        the cache of the probe's results
cpu/                  optional kernels that are faster on a CPU; without this folder everything still runs
"""

from ensemble.members import lean_timm as lean_timm  # before any file of this folder imports timm
