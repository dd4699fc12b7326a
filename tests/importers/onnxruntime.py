"""Run MODEL with this process's ONNX Runtime: IMAGES.npy -> ANSWERS.npy, and print the version."""

import sys

import numpy as np
import onnxruntime

_, model, images, answers = sys.argv
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
np.save(answers, session.run(["probability"], {"image": np.load(images)})[0])
print(onnxruntime.__version__)
