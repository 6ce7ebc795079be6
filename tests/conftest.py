"""Tests share a data set cache of their own, do not reach for the network, and can be ended by Ctrl-C."""

from __future__ import annotations

import gc
import signal

import datasets
import huggingface_hub
import pytest
import torch

from tests.world import World, make_world


def pytest_collection() -> None:
    gc.disable()  # importing makes a million objects that stay


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # no collection in a test looks through them again


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True, scope="session")
def private_and_offline(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_DATASETS_CACHE", str(cache))  # for processes that a test starts
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """A shell starts a background job with SIGINT ignored, and its children inherit that: the tests of Ctrl-C fail."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    """The runs of a study, in the process of the test."""
    from tests.studies import InThisProcess
    from tools.studies.execution import Execution

    started = InThisProcess()
    *others, _ = Execution.__init__.__defaults__
    monkeypatch.setattr(Execution.__init__, "__defaults__", (*others, started))
    return started
