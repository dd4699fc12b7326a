"""Run MODEL with OpenCV's dnn: IMAGES.npy -> ANSWERS.npy, and print the version. OpenCV 4 takes float32 only."""

import sys

import cv2
import numpy as np

_, model, images, answers = sys.argv
network = cv2.dnn.readNetFromONNX(model)
network.setInput(np.load(images).astype(np.float32), "image")
np.save(answers, network.forward("probability"))
print(cv2.__version__)
