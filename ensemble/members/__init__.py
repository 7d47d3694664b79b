"""What learns: networks, their training and their logits. torch, timm and albumentations live here.

To read one training from end to end: backbones, sampling, training; to read a prediction: inference, predictor.

backbones.py          the name of an architecture -> a timm network with one logit; loads pretrained weights
small_cnns.py         small CNNs of public solutions, registered with timm
lean_torchvision.py   imports torchvision, which timm needs, without torch's compiler
safe_convolutions.py  convolutions whose gradients oneDNN computes wrong, computed right
losses.py             focal loss and cross-entropy on logits, class weights, label smoothing
augment.py            training augmentation and the views of test-time augmentation
fold_job.py           the data and config of one fold's training
sampling.py           the rows of each batch, and the augmented batches
optimiser.py          parameter groups, and the schedule of the learning rate
training.py           one member, one fold: updates, EMA of the weights, epochs, resuming from the last one
inference.py          one network: pixels -> logits, one column a view
parallel.py           folds side by side: on the cores of a CPU, on one GPU, in several processes on a GPU
resident.py           an epoch's images on a GPU, augmented once for all folds
processes.py          a pool of processes, each pinned to its cores
predictor.py          the logits of many fold models on one set of images
precision.py          number formats, and which of them this CPU has
plans.py              the plans (precision and kind of convolutions) that a device can compute
probe.py              measures and checks the plans, and chooses the fastest; keeps the choice
cpu/                  optional kernels that are faster on a CPU; without this folder everything still runs
"""

from ensemble.members import lean_torchvision as lean_torchvision  # before any file of this folder imports timm
