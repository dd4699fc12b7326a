"""The network that a run starts from: what running it shows, and what cannot be trained."""

import pytest
import torch
from encoders import encoder_config
from torch import nn

from runtime.errors import ConfigError
from unet_core.training.auto_loss import start_from_share
from unet_core.training.starting_network import leave_out_unused, require_batches, starting_network

THIN = ("decoder_pyramid_channels=16", "decoder_segmentation_channels=32")


def test_a_network_that_looks_at_the_whole_picture_is_never_padded():
    local = starting_network(encoder_config("data", "run"))
    assert (local.input.padded, local.input.stride, local.input.min_size) == (True, 32, (1, 1))
    assert local.made_by == ("segmentation-models-pytorch", "timm")
    whole = starting_network(encoder_config("data", "run", network="smp.FPN", network_arg=THIN))
    assert (whole.input.padded, whole.input.min_size) == (False, (64, 64))


def test_such_a_network_takes_no_pictures_at_their_own_size():
    with pytest.raises(ConfigError) as caught:
        starting_network(encoder_config("data", "run", network="smp.FPN", network_arg=THIN, fit="native"))
    assert str(caught.value) == (
        "--fit native: smp.FPN with the encoder tu-test_resnet takes pictures of one size, since the network looks at "
        "the whole picture at once, so that padding would change all of its answers; give --fit stretch or letterbox, "
        "or a network without such parts, such as --network smp.Unet --encoder resnet34"
    )


def test_options_that_change_the_answers_size_are_refused():
    options = (*THIN, "encoder_depth=4")
    with pytest.raises(ConfigError) as caught:
        starting_network(encoder_config("data", "run", network="smp.FPN", network_arg=options))
    assert str(caught.value) == (
        "--network smp.FPN: with the encoder tu-test_resnet and these options, the network answers [1, 1, 128, 128] to "
        "pictures of [1, 3, 64, 64], expected [1, classes, 64, 64]; give another --encoder or --network-arg"
    )
    options = (*options, "upsampling=2")
    assert starting_network(encoder_config("data", "run", network="smp.FPN", network_arg=options)).input.stride == 32


def test_the_same_seed_makes_the_same_weights():
    first, again, other = (starting_network(encoder_config("data", "run", seed=seed)).make() for seed in (1, 1, 2))
    name = "decoder.blocks.0.conv1.0.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_weights_that_the_answer_does_not_depend_on_are_not_trained():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1))
    network[0].register_parameter("unused", nn.Parameter(torch.ones(3)))
    leave_out_unused(network, 3)
    assert [name for name, weight in network.named_parameters() if not weight.requires_grad] == ["0.unused"]
    assert all(weight.grad is None for weight in network.parameters())


def test_a_batch_of_one_image_is_refused_where_batchnorm_has_no_statistics():
    config = encoder_config("data", "run", network="smp.DeepLabV3Plus", network_arg=("decoder_channels=8",))
    network = starting_network(config).make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    require_batches(network, config, 8, 1)
    require_batches(network, config, 6, 1)
    with pytest.raises(ConfigError) as caught:
        require_batches(network, config, 9, 1)
    assert str(caught.value) == (
        "--batch-size 4: leaves a batch of 1 image, of 9, and --network smp.DeepLabV3Plus cannot be trained on one "
        "alone, since it pools a picture to one value, of which BatchNorm has no statistics; give --batch-size 3"
    )
    with pytest.raises(ConfigError, match=r"give --batch-size 6$"):  # two processes have one each of the last two
        require_batches(network, config, 6, 2)
    with pytest.raises(ConfigError, match="; train on more images"):
        require_batches(network, config, 1, 1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_other_networks_take_any_batch():
    config = encoder_config("data", "run")
    require_batches(starting_network(config).make(), config, 9, 1)


def test_rare_foreground_is_what_such_a_network_begins_with():
    network = starting_network(encoder_config("data", "run")).make()
    start_from_share(network, 0.01, 0)
    assert network.segmentation_head[0].bias.sigmoid().tolist() == pytest.approx([0.01])
