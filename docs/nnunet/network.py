"""nnU-Net's network from its plans, for unet-export --network; see docs/networks.md."""

import json
from pathlib import Path
from pydoc import locate


def network(plans="plans.json", configuration="2d", channels=1, classes=2):
    """Make the network of a configuration as for prediction: one output, without deep supervision."""
    architecture = json.loads(Path(plans).read_text())["configurations"][configuration]["architecture"]
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:  # classes, which the plans hold by their names
        arguments[name] = arguments[name] and locate(arguments[name])
    make = locate(architecture["network_class_name"])
    return make(input_channels=channels, num_classes=classes, deep_supervision=False, **arguments)
