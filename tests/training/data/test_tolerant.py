"""A few unreadable images are replaced and named; too many end the work."""

import pytest

from training.data.images import UnreadableImage
from training.data.tolerant import Tolerant, load_tolerant
from training.engine.errors import RunError


class Numbers:
    """The numbers from 0, some of which cannot be read."""

    def __init__(self, count, *unreadable, error=UnreadableImage):
        self.count, self.unreadable, self.error = count, unreadable, error

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.unreadable:
            raise self.error(f"number {index} cannot be read: it is damaged")
        return index, 10 * index


@pytest.mark.parametrize("workers", [0, 2])
def test_another_sample_comes_in_the_place_of_an_unreadable_one(workers, capfd):
    loader = load_tolerant(Numbers(300, 4, 5, 299), batch_size=2, workers=workers)
    for _ in range(2):
        samples = [sample for batch in loader for sample in zip(*(part.tolist() for part in batch), strict=True)]
        assert samples[:7] == [(i, 10 * i, True) for i in range(4)] + [(6, 60, False)] * 2 + [(6, 60, True)]
        assert (len(samples), samples[-1]) == (300, (0, 0, False))
    said = capfd.readouterr().err.splitlines()
    assert sorted(said) == [f"skipped: number {i} cannot be read: it is damaged" for i in (299, 4, 5)]


def test_those_that_can_be_read_one_by_one():
    assert list(Tolerant(Numbers(4, 1))) == [(0, 0), (2, 20), (3, 30)]


# When the first batch raises, torch closes the queue of indices, to which its feeder thread may be writing still.
FEEDER = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@FEEDER
@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_end_the_work(workers):
    with pytest.raises(
        RunError, match=r"number 2 .* damaged; at least 2 of 9 images are unreadable: repair or remove them"
    ):
        list(load_tolerant(Numbers(9, 1, 2), batch_size=3, workers=workers))
    with pytest.raises(RunError, match="1 of 1 images"):
        list(load_tolerant(Numbers(1, 0), batch_size=3, workers=workers))


@FEEDER
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_otherwise_ends_the_work(workers):
    with pytest.raises(RunError, match="number 1 cannot be read"):
        list(load_tolerant(Numbers(300, 1, error=ValueError), batch_size=3, workers=workers))
