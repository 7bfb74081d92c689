import pytest
import torch

from utils.deep_learning import digits, models
from utils.deep_learning.recipe import Recipe, fit, loss_of, share_of_loss, trained


def test_every_digit_is_seen_once_an_epoch_and_epochs_differ():
    recipe = Recipe(epochs=2, batch=32)
    batches = list(recipe.batches(100))
    assert [len(batch) for batch in batches] == [32, 32, 32, 4] * 2
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    assert not torch.equal(first, second)
    assert all(map(torch.equal, batches, recipe.batches(100)))


def test_the_rate_falls_to_zero():
    recipe = Recipe(epochs=2, batch=50, rate=0.1)
    rates = [recipe.rate_at(step, 100) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0])


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"rate": 0}, {"shift": -1}], ids=str
)
def test_bad_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_a_digit_is_moved_alike_whoever_takes_it():
    train, recipe, which = digits.load()[0][:50], Recipe(shift=2), torch.arange(50)
    whole = recipe.take(train, which, step=3)
    part = recipe.take(train, which[20:30], step=3)
    assert torch.equal(whole.images[20:30], part.images)
    assert torch.equal(whole.labels, train.labels)
    assert not torch.equal(whole.images, recipe.take(train, which, step=4).images)
    assert torch.equal(Recipe().take(train, which, 3).images, train.images)


def test_moves_are_whole_pixels_within_the_limit():
    train, recipe = digits.load()[0][:20], Recipe(shift=2)
    for before, after in zip(
        train.images, recipe.take(train, torch.arange(20), 0).images, strict=True
    ):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2), mode="replicate")
        places = [(y, x) for y in range(5) for x in range(5)]
        assert any(torch.equal(padded[:, y : y + 28, x : x + 28], after) for y, x in places)


def test_shares_of_a_loss_add_up_to_it_and_nobody_s_is_zero():
    model, data = models.make("small", dtype=torch.float64), digits.load()[0][:30].to(torch.float64)
    parts = [
        share_of_loss(model, data[part], 30) for part in (slice(0, 4), slice(4, 4), slice(4, 30))
    ]
    assert sum(parts).item() == pytest.approx(loss_of(model, data).item(), abs=1e-12)
    assert parts[1].item() == 0
    parts[1].backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_fit_learns():
    model = models.make("small")
    losses = fit(model, digits.load()[0][:640], Recipe(epochs=6, batch=32))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_the_trained_model_reads_and_is_shared():
    model = trained()
    assert model is trained() and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert models.accuracy(model, digits.load()[1]) >= 0.97
