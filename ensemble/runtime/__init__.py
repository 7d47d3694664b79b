"""Prediction with a file that `thera export` wrote: one ONNX graph, computed by onnxruntime, without torch.

facts.py        what the file states about itself: classes, threshold, expected HTER, image policy, hashes
outputs.py      the types of what it returns
self_test.py    drawn images whose logits the file states
onnx_file.py    seals and opens the file: its hash, and what it may not contain
classifier.py   OnnxClassifier: paths or pixels in, labels out
openvino_file.py  the same graph in the form of OpenVINO
batching.py     batches of the images of concurrent requests
server.py       the HTTP service, as an application of FastAPI
"""
