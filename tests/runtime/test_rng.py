import torch

from nayer_pl.runtime.numerics import Stream, restore_generator, stream_seed


def numbers(rng):
    return torch.rand(5, generator=rng).tolist()


def test_stream_seed__distinct():
    questions = [(s, r, p) for s in range(20) for r in range(64) for p in Stream]
    assert len({stream_seed(*question) for question in questions}) == len(questions)


def test_restore_generator():
    rng = torch.Generator().manual_seed(3)
    numbers(rng)
    state = rng.get_state()
    expected, other = numbers(rng), torch.Generator()
    restore_generator(other, state)
    assert numbers(other) == expected


def test_restore_generator__other_device():
    of_cuda = torch.arange(16, dtype=torch.uint8)  # the size of a CUDA generator's state
    found = []
    for state in (of_cuda, of_cuda, of_cuda + 1):
        rng = torch.Generator().manual_seed(3)
        restore_generator(rng, state)
        found.append(numbers(rng))
    fresh = numbers(torch.Generator().manual_seed(3))
    assert found[0] == found[1]
    assert len({tuple(each) for each in (*found, fresh)}) == 3
