"""Thin networks for the packages that stand on PyTorch."""

import pytest
from networks import make_card, make_network


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def card(network):
    return make_card(network)
