"""Metrics by plain loops, and thin networks that answer every class, so that no figure is right by chance."""

from dataclasses import replace

import numpy as np
import torch
from networks import make_card, make_network

from runtime.image import fit, load_image, restore
from unet_core.checkpoint import save_checkpoint
from unet_core.model import Segmenter


def write_model(path, images, *, fit="stretch", size=(32, 48), **config):
    """A checkpoint whose network answers every class on these images; returns network and card."""
    network = make_network(**config)
    channels = "RGB" if network.config.in_channels == 3 else "L"
    planes = [torch.from_numpy(load_image(image, channels)).permute(2, 0, 1)[None] / 255 for image in images]
    with torch.inference_mode():
        logits = torch.cat([network(one[:, :, :16, :16]).flatten(2) for one in planes], dim=2)  # [1, classes, pixels]
        network.final_conv.bias -= logits.median(dim=2).values[0]
    card = make_card(network, size)
    card = replace(card, input=replace(card.input, fit=fit))
    save_checkpoint(path, network.state_dict(), card)
    return network, card


def probability_by_hand(network, card, path):
    """The probability float32 [classes, height, width] of one image file, at its original size."""
    fitted = fit(load_image(path, card.input.channels), card.input)
    with torch.inference_mode():
        return restore(Segmenter(network, card).eval()(torch.from_numpy(fitted.image)[None]).numpy()[0], fitted)


def labels_by_hand(probability):
    """The labels that these probabilities mean."""
    return (probability[0] > 0.5).astype(np.uint8) if len(probability) == 1 else probability.argmax(0).astype(np.uint8)


def metrics_by_hand(answers, classes):
    """The figures of pairs (predicted, truth), where a truth of 255 does not count, over these labels."""
    right = pixels = 0
    counts = {label: np.zeros(3, int) for label in classes}  # both, predicted, true
    dices = {label: [] for label in classes}
    for predicted, truth in answers:
        predicted, truth = predicted[truth != 255], truth[truth != 255]
        right, pixels = right + int((predicted == truth).sum()), pixels + truth.size
        for label in classes:
            found, there = predicted == label, truth == label
            counts[label] += [(found & there).sum(), found.sum(), there.sum()]
            whole = found.sum() + there.sum()
            dices[label].append(2 * (found & there).sum() / whole if whole else 1.0)
    both, found, there = np.stack(list(counts.values()), axis=1)
    assert (both > 0).all() and (both < found).all() and (both < there).all(), "a figure would be right by chance"
    return {
        "accuracy": right / pixels,
        "image_dice": np.mean([np.mean(of_class) for of_class in dices.values()]),
        "pixel_dice": np.mean(2 * both / (found + there)),
        "iou": np.mean(both / (found + there - both)),
    }
