import pytest
import torch

from utils.deep_learning import digits, models


@pytest.mark.parametrize("name", models.MODELS)
def test_a_batch_of_digits_gives_ten_logits_each(name):
    model = models.make(name)
    assert model(digits.load()[0][:3].images).shape == (3, 10)
    assert model(torch.empty(0, 1, 28, 28)).shape == (0, 10)  # a rank without a share


def test_the_small_one_has_as_many_parameters_as_the_article_s():
    assert sum(parameter.numel() for parameter in models.make("small").parameters()) == 21_840


def test_the_seed_decides_and_the_caller_s_random_numbers_stay():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = models.make("small", 1), models.make("small", 1), models.make("small", 2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.fc1.weight, same.fc1.weight)
    assert not torch.equal(one.fc1.weight, other.fc1.weight)
    with pytest.raises(ValueError, match="name='huge'.*small, deep, tower"):
        models.make("huge")


def test_accuracy_is_the_share_named_rightly():
    held_out = digits.load()[1]
    model = torch.nn.Module()
    model.forward = lambda images: torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]
    model.train()
    assert models.accuracy(model, held_out) == 0.1  # always "0": one digit of ten
    assert model.training
