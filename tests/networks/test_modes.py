import pytest

from nayer_pl.networks.modes import frozen, preserve_mode


def test_frozen_restores_mode_and_gradients(tiny_classifier):
    net = tiny_classifier().train()
    net.network.head.requires_grad_(False)
    with frozen(net):
        assert not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
    assert net.training
    assert net.network.conv1.weight.requires_grad
    assert not net.network.head.weight.requires_grad


def raise_in(net):
    assert not net.training
    raise RuntimeError("half way")


@pytest.mark.parametrize("for_a_while", [frozen, preserve_mode])
def test_a_part_in_another_mode_stays_in_it(tiny_classifier, for_a_while):
    net = tiny_classifier().train()
    net.network.head.eval()
    with pytest.raises(RuntimeError, match="half way"), for_a_while(net):
        raise_in(net.eval())
    assert {name for name, module in net.named_modules() if not module.training} == {"network.head"}
