"""Fixtures for all tests."""

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """Gives different TCP ports of this machine that nothing listens on."""

    def find(number: int) -> list[int]:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
            for sock in sockets:
                sock.bind(('127.0.0.1', 0))
            return [sock.getsockname()[1] for sock in sockets]

    return find


@pytest.fixture
def free_port(free_ports) -> int:
    """One of them."""
    return free_ports(1)[0]


@pytest.fixture(params=['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu'])
def device(request) -> str:
    """'cpu' and, where there is a CUDA device, 'cuda'."""
    return request.param


@pytest.fixture(autouse=True)
def leave_no_globals():
    """Forget the toolbox that a test entered, and what its runners made for the whole process.

    mmengine names loggers after the second in which a run starts. Of two tests in one second, the second would write to
    the output of the first, which pytest has closed.
    """
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for named in (MMLogger, MessageHub, Visualizer, *Visualizer.__subclasses__()):
        named._instance_dict.clear()


def pytest_collection_modifyitems(items):
    """Mark what starts other runtimes, and run it last; `make test` runs it in processes of its own.

    In a process where hundreds of other tests have run, such a test can end in a segmentation fault, and a data loader
    that forks beside OpenVINO's threads can end the process.
    """
    runtimes = ('test_export', 'test_quantize', 'test_runtimes', 'test_compare_speed')
    for item in items:
        if any(name in item.nodeid for name in runtimes):
            item.add_marker('runtimes')
    items.sort(key=lambda item: item.get_closest_marker('runtimes') is not None)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Say how a worker of xdist ended that ended early: minus the signal, or its exit code."""
    if error:
        print(f'\n{node.gateway.id} ended with {node.gateway._io.popen.wait(10)}')
