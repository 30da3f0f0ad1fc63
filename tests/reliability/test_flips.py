"""One bit that is not what was written, in any file of a run: refused, or healed from another."""

from __future__ import annotations

import os
import warnings

import pytest

from gpugrad.train import checkpoint
from gpugrad.train.config import TrainConfig
from gpugrad.train.data import open_data
from gpugrad.train.folder import RunFolder


@pytest.fixture(scope="module")
def folder(runs):
    """The folder of a run that has ended."""
    out = runs.new_folder()
    assert runs.train(out, n_embd=4, max_steps=3).status == 0
    return RunFolder(out)


def flipped(path, stride):
    """Yield the number of each bit, or of each so many, while it is another one."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        for bit in range(0, 8 * os.fstat(descriptor).st_size, stride):
            good = os.pread(descriptor, 1, bit // 8)
            os.pwrite(descriptor, bytes([good[0] ^ 1 << bit % 8]), bit // 8)
            yield bit
            os.pwrite(descriptor, good, bit // 8)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
def test_a_checkpoint_is_healed_from_the_one_before(folder, name, request, record_property):
    stride = request.config.getoption("--flip-stride", 211)
    before, newest = checkpoint.steps(folder.checkpoints)[-2:]
    path = folder.checkpoints / f"step-{newest:08d}" / name
    trials = 0
    for bit in flipped(path, stride):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = folder.latest()
        assert found.step == before, bit
        assert f"step-{newest:08d}" in str(told[0].message), bit
        trials += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.latest().step == newest
    assert trials > 20
    outcome = "said by name, the checkpoint before it is used"
    record_property("fault", (trials, f"one bit flipped in a checkpoint's {name}", outcome))


@pytest.mark.parametrize("name", ["config.json", "tokens.bin", "tokenizer.json"])
def test_other_files_are_refused(folder, name, request, record_property):
    stride = request.config.getoption("--flip-stride", 211)

    def read():
        config = TrainConfig(**folder.read_config())
        return open_data(config, folder).checksum

    good = read()
    trials = 0
    for bit in flipped(folder.path / name, stride):
        with pytest.raises(ValueError, match=name.partition(".")[0]):
            pytest.fail(f"bit {bit}: {read()}")
        trials += 1
    assert read() == good
    assert trials > 3
    record_property("fault", (trials, f"one bit flipped in {name}", "refused by name"))
